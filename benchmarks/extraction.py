"""Speed of reading JPEGs against libjpeg-turbo in C and the readers that a Python program would otherwise use.

Usage: python benchmarks/extraction.py [FOLDER] [--pictures N] [--rounds N] [--kinds NAME,NAME...]

The readers take turns on every picture, and the program in C takes turns with Python, round after round, so that
whatever else the machine does slows all of them alike. The best round of each counts, in processor time: waiting for
others costs nobody. "time / LJT coefficients" and "time / LJT RGB" compare with libjpeg-turbo's own decoder in C, which
copies nothing; "times as fast" says how many pictures `jpeg.read` reads in the time of one. "two threads" compares
elapsed times, so that it needs two idle cores; "fresh memory" with reading into the caller's. Readers that take bytes
get bytes, the others a path.

Needs cmake, ninja and a compiler. Peers that are not installed are left out, with a note. Without a folder, pictures
are made.
"""

import argparse
import importlib
import io
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pictures import made_pictures
from PIL import Image
from rich.console import Console
from rich.table import Table

from afd_serve import jpeg

ROOT = Path(__file__).resolve().parents[1]

Reader = Callable[[Path, bytes], object]

# Pages that no picture needs are never touched.
WARM = jpeg.JpegOutput(coefficients=np.empty(100_000_000, np.int16))

READERS: dict[str, Reader] = {
    "afd_serve: coefficients": lambda _, data: jpeg.read(data),
    "afd_serve: coefficients + RGB": lambda _, data: jpeg.read(data, pixels=True),
    "afd_serve: coefficients + RGB / 8": lambda _, data: jpeg.read(data, pixels=True, scale=1),
    "Pillow: RGB": lambda _, data: Image.open(io.BytesIO(data)).convert("RGB"),
}
# Name, module and function of readers that need not be installed.
PEERS: dict[str, tuple[str, Callable[[Any], Reader]]] = {
    "torchjpeg: coefficients": ("torchjpeg.codec", lambda module: lambda path, _: module.read_coefficients(str(path))),
    "pyjpegio: coefficients": ("jpegio", lambda module: lambda path, _: module.read(str(path))),
    "jpeg2dct: coefficients": ("jpeg2dct.numpy", lambda module: lambda _, data: module.loads(data, normalized=False)),
    "jpeglib: coefficients": ("jpeglib", lambda module: lambda path, _: module.read_dct(str(path)).load()),
    "simplejpeg: RGB": ("simplejpeg", lambda module: lambda _, data: module.decode_jpeg(data)),
    "OpenCV: RGB": ("cv2", lambda module: lambda _, data: module.imdecode(np.frombuffer(data, np.uint8), 1)),
}
LJT_COEFFICIENTS = "libjpeg-turbo in C: coefficients"
LJT_PIXELS = "libjpeg-turbo in C: RGB"
OURS = "afd_serve: coefficients"
ROUNDS_IN_A_ROW = 3  # the first one finds its caches cold


def installed_readers() -> tuple[dict[str, Reader], list[str]]:
    """The readers, and notes on those that are not there."""
    readers, notes = dict(READERS), []
    for name, (module, reader) in PEERS.items():
        try:
            readers[name] = reader(importlib.import_module(module))
        except ImportError as error:
            notes.append(f"left out: {name} ({str(error).splitlines()[0]})")
    return readers, notes


def saved(picture: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", **{"subsampling": "4:2:0"} | options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def mosaics(originals: Sequence[bytes], count: int = 2) -> list[bytes]:
    """Pictures of 12 megapixels made of the others, at quality 90."""
    files = []
    for number in range(count):
        canvas = Image.new("RGB", (4000, 3000))
        for tile in range(64):
            picture = opened(originals[(tile * 7 + number) % len(originals)]).resize((500, 375))
            canvas.paste(picture, (tile % 8 * 500, tile // 8 * 375))
        files.append(saved(canvas, quality=90))
    return files


def kinds_of(originals: Sequence[bytes]) -> dict[str, Callable[[], list[bytes]]]:
    def recompressed(**options: Any) -> Callable[[], list[bytes]]:
        return lambda: [saved(opened(data), **options) for data in originals]

    return {
        "originals": lambda: list(originals),
        "Q10": recompressed(quality=10),
        "Q75": recompressed(quality=75),
        "Q90": recompressed(quality=90),
        "Q10 progressive": recompressed(quality=10, progressive=True),
        "Q75 progressive": recompressed(quality=75, progressive=True),
        "224 px": lambda: [saved(opened(data).resize((224, 224)), quality=75) for data in originals],
        "12 MP": lambda: mosaics(originals),
    }


def built_decoders(folder: Path) -> Path:
    """The program of decoders.cpp, built as the extension is."""
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DAFD_PYTHON=OFF", "-DAFD_BENCHMARK=ON"]
    subprocess.run(["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "decoders"


class Best:
    """The best time of each reader on each file."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, int], float] = {}

    def add(self, reader: str, file: int, seconds: float) -> None:
        self.seconds[reader, file] = min(seconds, self.seconds.get((reader, file), float("inf")))

    def totals(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        for (reader, _), seconds in self.seconds.items():
            totals[reader] = totals.get(reader, 0) + seconds
        return totals


def time_native(best: Best, program: Path, files: Sequence[Path]) -> None:
    command = [str(program), str(ROUNDS_IN_A_ROW), *map(str, files)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    per_file = len(lines) // len(files)
    for number, line in enumerate(lines):
        name, seconds = line.split("\t")
        best.add(name, number // per_file, float(seconds))


def time_python(best: Best, readers: dict[str, Reader], files: Iterable[tuple[Path, bytes]]) -> None:
    for number, (path, data) in enumerate(files):
        for name, read in readers.items():
            for _ in range(ROUNDS_IN_A_ROW):
                start = time.process_time()
                read(path, data)
                best.add(name, number, time.process_time() - start)


def two_threads(datas: Sequence[bytes], rounds: int) -> float:
    """How many times as fast two threads read a batch as one."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for i in range(2):
            start = time.perf_counter()
            jpeg.read_batch(datas, threads=1 + i)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]


def fresh_memory(datas: Sequence[bytes], rounds: int) -> float:
    """How much longer a read takes than one into memory that is there.

    The two take turns: the processor learns a picture's branches, so that whatever reads it later reads it faster.
    """
    best = Best()
    for number, data in enumerate(datas):
        for _ in range(rounds * ROUNDS_IN_A_ROW):
            for name, out in (("fresh", None), ("warm", WARM)):
                start = time.process_time()
                jpeg.read(data, out=out)
                best.add(name, number, time.process_time() - start)
    seconds = best.totals()
    return seconds["fresh"] / seconds["warm"]


def add_rows(table: Table, kind: str, seconds: dict[str, float], datas: Sequence[bytes], rounds: int) -> None:
    for name, duration in seconds.items():
        table.add_row(
            kind,
            name,
            f"{len(datas) / duration:.0f}",
            f"{duration / seconds[LJT_COEFFICIENTS]:.2f}",
            f"{duration / seconds[LJT_PIXELS]:.2f}",
            f"{duration / seconds[OURS]:.2f}",
        )
    table.add_row(kind, "afd_serve: two threads", "", "", "", f"{two_threads(datas, rounds):.2f}")
    table.add_row(kind, "afd_serve: fresh memory, time / warm", "", "", "", f"{fresh_memory(datas, rounds):.2f}")
    table.add_section()


def measured(program: Path, folder: Path, datas: Sequence[bytes], rounds: int, readers: dict[str, Reader]) -> Best:
    files = [(folder / f"{number}.jpg", data) for number, data in enumerate(datas)]
    for path, data in files:
        path.write_bytes(data)
    best = Best()
    for _ in range(rounds):
        time_native(best, program, [path for path, _ in files])
        time_python(best, readers, files)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="JPEGs; made ones by default")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--kinds", help="of pictures, separated by commas; all by default")
    arguments = parser.parse_args()
    if arguments.folder:
        paths = sorted(p for p in arguments.folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg"})
        originals = [path.read_bytes() for path in paths[: arguments.pictures]]
    else:
        originals = [saved(picture, quality=95) for picture in made_pictures(arguments.pictures)]
    kinds = kinds_of(originals)
    readers, notes = installed_readers()

    columns = ("pictures", "reader", "pictures/s", "time / LJT coefficients", "time / LJT RGB", "times as fast")
    table = Table(*columns, title="One thread, processor time, best rounds")
    with tempfile.TemporaryDirectory() as folder:
        program = built_decoders(Path(folder) / "build")
        for kind in arguments.kinds.split(",") if arguments.kinds else kinds:
            datas = kinds[kind]()
            best = measured(program, Path(folder), datas, arguments.rounds, readers)
            add_rows(table, kind, best.totals(), datas, arguments.rounds)
    console = Console(width=140)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


if __name__ == "__main__":
    main()
