"""Speed of making a classifier's inputs from a picture's bytes, against the libraries that servers use for it.

Usage: python benchmarks/preparing.py [FOLDER] [--pictures N] [--rounds N]

Every row crops and resizes to 224x224 as EfficientNet-Lite0 was trained; those of afd_serve also make the blocks,
tables and history that the protection needs, except "pixels only". The rows take turns on every picture in an order
that changes from round to round, so that what the machine and the last row leave behind slows all alike. Medians of the
thread's processor time count, and "times Pillow" compares with Pillow's decode and resize in the same run. Without a
folder, pictures are made. The large picture is one of them, enlarged to 4000x3000 and given a camera's noise.
"""

import argparse
import importlib
import io
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pictures import made_pictures
from PIL import Image
from rich.console import Console
from rich.table import Table

from afd_serve import jpeg
from afd_serve.preprocess import prepare
from afd_serve.transforms import Preprocessing, crop_box, resize_crop

PREPROCESSING = Preprocessing(224, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)
SIZE = (PREPROCESSING.size, PREPROCESSING.size)
DECODED_AT_LEAST = 512
"""Shorter side that a scaled decode keeps: 224 / 0.875 twice over, as afd_serve does."""

Reader = Callable[[bytes], object]


def with_pillow(data: bytes, *, draft: bool) -> object:
    picture = Image.open(io.BytesIO(data))
    if draft:
        picture.draft("RGB", (DECODED_AT_LEAST, DECODED_AT_LEAST))
    pixels = picture.convert("RGB")
    return np.asarray(pixels.resize(SIZE, Image.Resampling.BICUBIC, box=crop_box(*pixels.size, PREPROCESSING)))


def pixels_only(data: bytes) -> object:
    image = jpeg.read(data, pixels=True)
    return resize_crop(image.pixels, crop_box(image.width, image.height, PREPROCESSING), 224, "bicubic")


def with_simplejpeg(simplejpeg: Any, resize: Callable[[np.ndarray], object]) -> Reader:
    def read(data: bytes) -> object:
        pixels = simplejpeg.decode_jpeg(data, min_height=DECODED_AT_LEAST, min_width=DECODED_AT_LEAST, min_factor=1)
        left, top, right, bottom = crop_box(pixels.shape[1], pixels.shape[0], PREPROCESSING)
        return resize(pixels[top:bottom, left:right])

    return read


def installed(module: str) -> Any | None:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def readers() -> tuple[dict[str, Reader], list[str]]:
    """The rows, and a note for each that could not be made."""
    rows: dict[str, Reader] = {
        "Pillow": lambda data: with_pillow(data, draft=False),
        "Pillow with draft": lambda data: with_pillow(data, draft=True),
        "afd_serve": lambda data: prepare(data, PREPROCESSING),
        "afd_serve: pixels only, whole decode": pixels_only,
    }
    notes = []
    simplejpeg, cv2 = installed("simplejpeg"), installed("cv2")
    if simplejpeg is None:
        notes.append("simplejpeg is not installed: its rows are left out")
        return rows, notes
    rows["simplejpeg, Pillow"] = with_simplejpeg(
        simplejpeg, lambda pixels: np.asarray(Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC))
    )
    if cv2 is None:
        notes.append("opencv is not installed: its row is left out")
        return rows, notes
    cv2.setNumThreads(1)
    rows["simplejpeg, OpenCV (area)"] = with_simplejpeg(
        simplejpeg, lambda pixels: cv2.resize(pixels, SIZE, interpolation=cv2.INTER_AREA)
    )
    return rows, notes


def pictures_in(folder: Path, count: int) -> list[Image.Image]:
    """The first pictures of 500x375, in the folder's order."""
    found: list[Image.Image] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in {".jpg", ".jpeg"}:
            continue
        with Image.open(path) as picture:
            if picture.size == (500, 375) and picture.mode == "RGB":
                found.append(picture.copy())
        if len(found) == count:
            break
    return found


def large(picture: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 4, (3000, 4000, 1)).astype(np.int16)
    samples = np.asarray(picture.resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.int16) + noise
    return Image.fromarray(samples.clip(0, 255).astype(np.uint8))


def saved(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def median_seconds(rows: dict[str, Reader], files: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Mean over the files of the median over the rounds."""
    total = dict.fromkeys(rows, 0.0)
    order, shuffler = list(rows), random.Random(0)
    for data in files:
        durations: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(rounds):
            shuffler.shuffle(order)
            for name in order:
                start = time.thread_time()
                rows[name](data)
                durations[name].append(time.thread_time() - start)
        for name, values in durations.items():
            total[name] += statistics.median(values) / len(files)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="JPEGs, some of 500x375; made pictures by default")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    folder, count = arguments.folder, arguments.pictures
    pictures = pictures_in(folder, count) if folder else made_pictures(count)
    if not pictures:
        parser.error(f"no RGB picture of 500x375 pixels in {folder}")

    rows, notes = readers()
    big = large(pictures[0])
    kinds = {f"500x375, Q{quality}": [saved(picture, quality) for picture in pictures] for quality in (75, 85, 95)}
    kinds |= {f"4000x3000, Q{quality}": [saved(big, quality)] for quality in (75, 90)}
    console = Console(width=120)
    table = Table("pictures", "kB", "reader", "ms", "times Pillow", title="Bytes to inputs, one thread, medians")
    for kind, files in kinds.items():
        seconds = median_seconds(rows, files, arguments.rounds)
        size = sum(map(len, files)) / len(files) / 1000
        for name, duration in seconds.items():
            speed = seconds["Pillow"] / duration
            table.add_row(kind, f"{size:.0f}", name, f"{1000 * duration:.2f}", f"{speed:.2f}")
        table.add_section()
    console.print(table)
    for note in notes:
        console.print(note)


if __name__ == "__main__":
    main()
