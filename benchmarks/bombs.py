"""What it costs to refuse small files that would cost a decoder much: seconds and gigabytes, where nobody looks first.

Some are read: a JPEG whose metadata claim 13 billion entries and hold none, JPEGs that are just within a limit, and
pictures in other formats that are just within theirs on pixels, the most that one of these can cost. The densest
arithmetic-coded one is made with libjpeg-turbo's jpegtran, and left out where there is none.

Usage: python benchmarks/bombs.py

Each is read in a process of its own within the default limits: JPEGs strictly and tolerantly, with pixels; other
formats as servers do, for a model of 224x224 pixels. "ms" is the slowest of five reads, in processor time, the first
one with cold caches among them; "MiB" says how far the process's peak memory rose. Needs Linux.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import other_files  # noqa: E402 - the path is set above
from tests.jpeg_files import (  # noqa: E402
    COM,
    SOS,
    BitWriter,
    after_soi,
    empty_exif_segment,
    make_jpeg,
    patched_size,
    segment,
)

ROUNDS = 5


def pillow_jpeg(mode: str, size: tuple[int, int], **options: object) -> bytes:
    samples = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    out = io.BytesIO()
    Image.frombytes(mode, size, samples.tobytes()).save(out, "JPEG", **options)
    return out.getvalue()


def many_scans(count: int) -> bytes:
    data = patched_size(pillow_jpeg("RGB", (60, 40), progressive=True), 4000, 3000)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + b"\xff\xd9"


def arithmetic() -> bytes:
    data = (ROOT / "tests/data/jpeg/arithmetic-grayscale.jpg").read_bytes()
    return patched_size(data, 31600, 31600)[:230]


def flat(process: str, size: int) -> bytes:
    """A file without data for its blocks, in 4:4:4."""
    data = make_jpeg(8, 8, [(1, 1)] * 3, process=process).data  # type: ignore[arg-type]
    return patched_size(data, size, size)


def filled(data: bytes, blocks: int) -> bytes:
    """The file with comments that make up for the bytes that so many blocks should have."""
    return after_soi(data, segment(COM, bytes(0xFFFD)) * (blocks // 8 // 0xFFFD + 1))


def arithmetic_without_data(side: int) -> bytes:
    """A gray picture whose data end with its first blocks: what follows is decoded from zeros."""
    data = (ROOT / "tests/data/jpeg/arithmetic-grayscale.jpg").read_bytes()
    return filled(patched_size(data, side, side), (side // 8) ** 2)


def dense_arithmetic(side: int) -> bytes:
    """A gray picture without a coefficient that is zero; needs jpegtran."""
    basis = np.cos((2 * np.arange(8) + 1) * 7 * np.pi / 16)
    noise = np.random.default_rng(0).integers(-20, 21, (side, side))
    samples = 128 + np.tile(100 * np.outer(basis, basis), (side // 8, side // 8)) + noise
    out = io.BytesIO()
    Image.fromarray(samples.clip(0, 255).astype(np.uint8)).save(out, "JPEG", qtables=[[1] * 64])
    command = ["jpegtran", "-arithmetic"]
    return subprocess.run(command, input=out.getvalue(), stdout=subprocess.PIPE, check=True).stdout


def unchanging_scans(side: int, last_bit: int, *, junk: bytes) -> bytes:
    """A progressive picture in 4:4:4 of one gray, whose scans of AC coefficients say that all blocks stay as they are.

    Args:
        side: Of the picture, in pixels.
        last_bit: That of the first scan of each component; each further scan refines by one.
        junk: What lies in front of the file's end. Any leaves the file to libjpeg, once ours has been through it.
    """
    head = make_jpeg(8, 8, [(1, 1)] * 3, process="progressive").data
    head = patched_size(head[: head.index(b"\xff\xda")], side, side)
    blocks = (side // 8) ** 2
    runs = BitWriter()
    for run in [*[0x7FFF] * (blocks // 0x7FFF), blocks % 0x7FFF]:
        power = run.bit_length() - 1
        runs.write(power << 4, 8)  # the tables give a symbol its own value for a code
        runs.write(run - (1 << power), power)
    unchanged = runs.flush()
    scans = [segment(SOS, bytes([3, 1, 0, 2, 0, 3, 0, 0, 0, 0])) + bytes(3 * blocks // 2 + 1)]
    for component in (1, 2, 3):
        steps = [last_bit, *(bit + 1 << 4 | bit for bit in reversed(range(last_bit)))]
        scans += [segment(SOS, bytes([1, component, 0, 1, 63, step])) + unchanged for step in steps]
    return head + b"".join(scans) + junk + b"\xff\xd9"


def claimed_metadata(segments: int) -> bytes:
    return after_soi(pillow_jpeg("RGB", (60, 40)), empty_exif_segment() * segments)


BOMBS: dict[str, Callable[[], bytes]] = {
    "3 KB that say 65500x65500": lambda: patched_size(pillow_jpeg("RGB", (300, 200))[:3000], 65500, 65500),
    "arithmetic, 15.6 million blocks": arithmetic,
    "no data, 2.4 GB of coefficients": lambda: flat("baseline", 20_000),
    "progressive, no data, 2.4 GB": lambda: flat("progressive", 20_000),
    "no data, just within the limit on pixels": lambda: flat("baseline", 9_999),
    "12 megapixels, progressive, 1,000 scans": lambda: many_scans(1_000),
    "arithmetic, no data, 1.6 million blocks": lambda: arithmetic_without_data(9_984),
    "arithmetic, no data, just within the limit": lambda: arithmetic_without_data(2_528),
    "22 scans, just within the limit on their blocks": lambda: unchanging_scans(9_984, 6, junk=b""),
    "the same, left to libjpeg": lambda: unchanging_scans(9_984, 6, junk=b"\x12\x34"),
    "34 scans, left to libjpeg": lambda: unchanging_scans(9_984, 10, junk=b"\x12\x34"),
    "200,000 EXIF segments without the entries": lambda: claimed_metadata(200_000),
}


if shutil.which("jpegtran"):
    BOMBS["arithmetic, dense, just within the limit"] = lambda: dense_arithmetic(2_528)


def flat_picture(kind: str, width: int, height: int, **options: object) -> bytes:
    """A picture of one colour: a few kilobytes, however many pixels."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(out, kind, **options)
    return out.getvalue()


OTHERS: dict[str, Callable[[], bytes]] = {
    "100 megapixels of PNG": lambda: flat_picture("PNG", 10_000, 10_000),
    "100 megapixels of lossless WebP": lambda: flat_picture("WEBP", 16_383, 6_103, lossless=True, quality=0),
    "100 megapixels of AVIF": lambda: flat_picture("AVIF", 10_000, 10_000, speed=10),
    "100 megapixels of JPEG 2000": lambda: flat_picture("JPEG2000", 10_000, 10_000),
    "100 megapixels of run-length BMP": lambda: other_files.bmp_rle(65_500, 1_526),
    "10 megapixels of run-length BMP": lambda: other_files.bmp_rle(10_000, 1_000),
    "9 megapixels of PPM, samples to 254": lambda: other_files.ppm("P6", 3_000, 3_000, 254),
    "5 megapixels of plain PPM": lambda: other_files.ppm("P3", 2_300, 2_300, 255),
    "PNG, a million empty chunks": lambda: other_files.png_of_chunks(1_000_000, where="before"),
    "GIF, a million comments": lambda: other_files.gif_of_comments(1_000_000),
    "TIFF, a million tiles": lambda: other_files.tiff_of_pieces(1_000_000),
    "TIFF, a tile of 1.6 gigapixels": lambda: other_files.tiff_with_a_tile(40_000, 40_000),
    "25 megapixels of PNG": lambda: flat_picture("PNG", 5_000, 5_000),
    "25 megapixels of lossless WebP": lambda: flat_picture("WEBP", 5_000, 5_000, lossless=True, quality=0),
    "25 megapixels of AVIF": lambda: flat_picture("AVIF", 5_000, 5_000, speed=10),
    "25 megapixels of TIFF, LZW": lambda: flat_picture("TIFF", 5_000, 5_000, compression="tiff_lzw"),
    "25 megapixels of TIFF, a JPEG per row": lambda: other_files.tiff_of_jpeg_rows(
        patched_size(pillow_jpeg("RGB", (60, 40), progressive=True), 5_000, 1), 5_000
    ),
}
"""What is no JPEG."""


def peak_bytes() -> int:
    """The most memory that this process has had since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(path: Path, mode: str) -> None:
    """Runs in the child: prints what happened as JSON."""
    from afd_serve import jpeg  # noqa: PLC0415 - only the child pays for it
    from afd_serve.errors import InputError  # noqa: PLC0415
    from afd_serve.preprocess import prepare  # noqa: PLC0415
    from afd_serve.transforms import Preprocessing  # noqa: PLC0415

    preprocessing = Preprocessing(224, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)
    data = path.read_bytes()
    forget_peak()
    before = peak_bytes()
    slowest, verdict = 0.0, "read"
    for _ in range(ROUNDS):
        start = time.process_time()
        try:
            if mode == "served":
                prepare(data, preprocessing)
            else:
                jpeg.read(data, pixels=True, tolerant=mode == "tolerant")
        except InputError as error:
            verdict = f"{type(error).__name__}: {error}"
        slowest = max(slowest, time.process_time() - start)
    print(json.dumps({"ms": 1e3 * slowest, "mib": (peak_bytes() - before) / 2**20, "verdict": verdict}))


def main() -> None:
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]), sys.argv[2])
        return
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table = Table("bomb", "bytes", "mode", "ms", "MiB", "verdict", title="Refusing what would cost much")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (BOMBS | OTHERS).items():
            path = Path(folder) / "bomb"
            path.write_bytes(make())
            for mode in ("strict", "tolerant") if name in BOMBS else ("served",):
                command = [sys.executable, __file__, str(path), mode]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                result = json.loads(output)
                figures = (f"{result['ms']:.2f}", f"{result['mib']:.1f}")
                table.add_row(name, str(path.stat().st_size), mode, *figures, result["verdict"])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
