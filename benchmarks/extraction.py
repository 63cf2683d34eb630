"""Speed of reading JPEGs against libjpeg-turbo in C and the readers that a Python program would otherwise use.

Usage: python benchmarks/extraction.py [FOLDER] [--pictures N] [--rounds N]

The readers take turns on every picture, round after round, so that whatever else the machine does slows all of them
alike; the best round of each counts. "time / LJT coefficients" and "time / LJT RGB" compare with libjpeg-turbo's own
decoder in C, which copies nothing; "two threads" says how many times as many pictures two threads read as one. Needs
cmake, ninja and a compiler, and uses torchjpeg, pyjpegio and simplejpeg where they are installed. Without a folder,
pictures are made.
"""

import argparse
import importlib
import io
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jpeglib
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from afd_serve import jpeg

ROOT = Path(__file__).resolve().parents[1]

Reader = Callable[[Path, bytes], object]

READERS: dict[str, Reader] = {
    "afd_serve: coefficients": lambda _, data: jpeg.read(data),
    "afd_serve: coefficients + RGB": lambda _, data: jpeg.read(data, pixels=True),
    "afd_serve: coefficients + RGB / 8": lambda _, data: jpeg.read(data, pixels=True, scale=1),
    "Pillow: RGB": lambda _, data: Image.open(io.BytesIO(data)).convert("RGB"),
    "jpeglib: coefficients": lambda path, _: jpeglib.read_dct(str(path)).load(),
}
# Name, module and function of readers that need not be installed.
PEERS: dict[str, tuple[str, Callable[[Any], Reader]]] = {
    "torchjpeg: coefficients": ("torchjpeg.codec", lambda module: lambda path, _: module.read_coefficients(str(path))),
    "pyjpegio: coefficients": ("pyjpegio", lambda module: lambda path, _: module.read(str(path))),
    "simplejpeg: RGB": ("simplejpeg", lambda module: lambda _, data: module.decode_jpeg(data)),
}
RECOMPRESSIONS: dict[str, dict[str, object]] = {
    "Q10 4:2:0": {"quality": 10, "subsampling": "4:2:0"},
    "Q75 4:2:0": {"quality": 75, "subsampling": "4:2:0"},
    "Q75 progressive": {"quality": 75, "subsampling": "4:2:0", "progressive": True},
}
LJT_COEFFICIENTS = "libjpeg-turbo in C: coefficients"
LJT_PIXELS = "libjpeg-turbo in C: RGB"


def installed_readers() -> dict[str, Reader]:
    readers = dict(READERS)
    for name, (module, reader) in PEERS.items():
        try:
            readers[name] = reader(importlib.import_module(module))
        except ImportError:
            continue
    return readers


def made_pictures(count: int) -> list[bytes]:
    """Noise with the spectrum of photographs, 500x375, saved at quality 95."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.fftfreq(500)[None]) + 1e-3
    files = []
    for _ in range(count):
        spectrum = np.fft.fft2(rng.normal(size=(375, 500, 3)), axes=(0, 1)) / frequency[..., None]
        field = np.fft.ifft2(spectrum, axes=(0, 1)).real
        samples = (128 + 50 * field / field.std()).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(samples).save(out, "JPEG", quality=95)
        files.append(out.getvalue())
    return files


def recompressed(data: bytes, options: dict[str, object]) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(out, "JPEG", **options)
    return out.getvalue()


def built_decoders(folder: Path) -> Path:
    """The program of decoders.cpp, built as the extension is."""
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DAFD_PYTHON=OFF", "-DAFD_BENCHMARK=ON"]
    subprocess.run(["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "decoders"


def native_seconds(program: Path, files: Sequence[Path], rounds: int) -> dict[str, float]:
    """Seconds of the readers in C and C++ for all files."""
    command = [str(program), str(rounds), *map(str, files)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: float(seconds) for name, seconds in (line.split("\t") for line in lines)}


def python_seconds(files: Sequence[tuple[Path, bytes]], rounds: int) -> dict[str, float]:
    """Seconds of the readers in Python for all files."""
    readers = installed_readers()
    total = dict.fromkeys(readers, 0.0)
    for path, data in files:
        best = dict.fromkeys(readers, float("inf"))
        for _ in range(rounds):
            for name, read in readers.items():
                start = time.perf_counter()
                read(path, data)
                best[name] = min(best[name], time.perf_counter() - start)
        for name, duration in best.items():
            total[name] += duration
    return total


def two_threads(datas: Sequence[bytes], rounds: int) -> float:
    """How many times as fast two threads read a batch as one."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for i in range(2):
            start = time.perf_counter()
            jpeg.read_batch(datas, threads=1 + i)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]


def add_rows(table: Table, kind: str, count: int, seconds: dict[str, float], scaling: float) -> None:
    for name, duration in seconds.items():
        table.add_row(
            kind,
            name,
            f"{count / duration:.0f}",
            f"{duration / seconds[LJT_COEFFICIENTS]:.2f}",
            f"{duration / seconds[LJT_PIXELS]:.2f}",
        )
    table.add_row(kind, "afd_serve: two threads", "", f"{scaling:.2f}x", "")
    table.add_section()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="JPEGs; made ones by default")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.folder:
        paths = sorted(p for p in arguments.folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg"})
        originals = [path.read_bytes() for path in paths[: arguments.pictures]]
    else:
        originals = made_pictures(arguments.pictures)

    columns = ("pictures", "reader", "pictures/s", "time / LJT coefficients", "time / LJT RGB")
    table = Table(*columns, title="One thread, best rounds")
    kinds = {"originals": originals}
    kinds |= {kind: [recompressed(data, options) for data in originals] for kind, options in RECOMPRESSIONS.items()}
    with tempfile.TemporaryDirectory() as folder:
        program = built_decoders(Path(folder) / "build")
        for kind, datas in kinds.items():
            files = [(Path(folder) / f"{number}.jpg", data) for number, data in enumerate(datas)]
            for path, data in files:
                path.write_bytes(data)
            seconds = native_seconds(program, [path for path, _ in files], arguments.rounds)
            seconds |= python_seconds(files, arguments.rounds)
            add_rows(table, kind, len(files), seconds, two_threads(datas, arguments.rounds))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
