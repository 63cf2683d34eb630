"""Speed of reading JPEGs, one thread, against the readers that a Python program would otherwise use.

Usage: python benchmarks/extraction.py [FOLDER] [--pictures N] [--rounds N]

Every reader reads every picture of a kind in turn, round after round, so that whatever else the machine does slows all
of them alike; the table shows pictures per second in the best round and the ratio of our time to each reader's.
Without a folder, pictures are made.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jpeglib
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from afd_serve import jpeg

Reader = Callable[[Path, bytes], object]

READERS: dict[str, Reader] = {
    "coefficients": lambda _, data: jpeg.read(data),
    "coefficients + RGB": lambda _, data: jpeg.read(data, pixels=True),
    "coefficients + RGB / 8": lambda _, data: jpeg.read(data, pixels=True, scale=1),
    "Pillow RGB": lambda _, data: Image.open(io.BytesIO(data)).convert("RGB"),
    "jpeglib coefficients": lambda path, _: jpeglib.read_dct(str(path)).load(),
}
OURS = "coefficients"
RECOMPRESSIONS: dict[str, dict[str, object]] = {
    "Q10 4:2:0": {"quality": 10, "subsampling": "4:2:0"},
    "Q75 4:2:0": {"quality": 75, "subsampling": "4:2:0"},
    "Q75 progressive": {"quality": 75, "subsampling": "4:2:0", "progressive": True},
}


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


def seconds_per_round(files: Sequence[tuple[Path, bytes]], rounds: int) -> dict[str, float]:
    """Best time of each reader over all files, the readers taking turns within a round."""
    best = dict.fromkeys(READERS, float("inf"))
    for _ in range(rounds):
        for name, read in READERS.items():
            start = time.perf_counter()
            for path, data in files:
                read(path, data)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def add_rows(table: Table, kind: str, count: int, seconds: dict[str, float]) -> None:
    for name, duration in seconds.items():
        table.add_row(kind, name, f"{count / duration:.0f}", f"{duration / seconds[OURS]:.2f}")
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

    table = Table("pictures", "reader", "pictures/s", "time / ours", title="One thread, best round")
    kinds = {"originals": originals}
    kinds |= {kind: [recompressed(data, options) for data in originals] for kind, options in RECOMPRESSIONS.items()}
    with tempfile.TemporaryDirectory() as folder:
        for kind, datas in kinds.items():
            files = [(Path(folder) / f"{number}.jpg", data) for number, data in enumerate(datas)]
            for path, data in files:
                path.write_bytes(data)
            add_rows(table, kind, len(files), seconds_per_round(files, arguments.rounds))
    Console().print(table)


if __name__ == "__main__":
    main()
