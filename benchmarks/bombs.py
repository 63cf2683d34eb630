"""What it costs to refuse small files that would cost a decoder much: seconds and gigabytes, where nobody looks first.

The last one is a picture that is read: its metadata claim 13 billion entries and hold none.

Usage: python benchmarks/bombs.py

Each is read in a process of its own, strictly and tolerantly, with pixels, within the default limits. "ms" is the
slowest of five reads, in processor time, the first one with cold caches among them; "MiB" says how far the process's
peak memory rose. Needs Linux.
"""

import argparse
import io
import json
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

from tests.jpeg_files import after_soi, empty_exif_segment, make_jpeg, patched_size  # noqa: E402 - the path is set above

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


def claimed_metadata(segments: int) -> bytes:
    return after_soi(pillow_jpeg("RGB", (60, 40)), empty_exif_segment() * segments)


BOMBS: dict[str, Callable[[], bytes]] = {
    "3 KB that say 65500x65500": lambda: patched_size(pillow_jpeg("RGB", (300, 200))[:3000], 65500, 65500),
    "arithmetic, 15.6 million blocks": arithmetic,
    "no data, 2.4 GB of coefficients": lambda: flat("baseline", 20_000),
    "progressive, no data, 2.4 GB": lambda: flat("progressive", 20_000),
    "no data, just within the limit on pixels": lambda: flat("baseline", 9_999),
    "12 megapixels, progressive, 1,000 scans": lambda: many_scans(1_000),
    "200,000 EXIF segments without the entries": lambda: claimed_metadata(200_000),
}


def peak_bytes() -> int:
    """The most memory that this process has had since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(path: Path, tolerant: bool) -> None:
    """Runs in the child: prints what happened as JSON."""
    from afd_serve import jpeg  # noqa: PLC0415 - only the child pays for it
    from afd_serve.errors import InputError  # noqa: PLC0415

    data = path.read_bytes()
    forget_peak()
    before = peak_bytes()
    slowest, verdict = 0.0, "read"
    for _ in range(ROUNDS):
        start = time.process_time()
        try:
            jpeg.read(data, pixels=True, tolerant=tolerant)
        except InputError as error:
            verdict = f"{type(error).__name__}: {error}"
        slowest = max(slowest, time.process_time() - start)
    print(json.dumps({"ms": 1e3 * slowest, "mib": (peak_bytes() - before) / 2**20, "verdict": verdict}))


def main() -> None:
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]), sys.argv[2] == "tolerant")
        return
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table = Table("bomb", "bytes", "mode", "ms", "MiB", "verdict", title="Refusing what would cost much")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in BOMBS.items():
            path = Path(folder) / "bomb.jpg"
            path.write_bytes(make())
            for mode in ("strict", "tolerant"):
                command = [sys.executable, __file__, str(path), mode]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                result = json.loads(output)
                figures = (f"{result['ms']:.2f}", f"{result['mib']:.1f}")
                table.add_row(name, str(path.stat().st_size), mode, *figures, result["verdict"])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
