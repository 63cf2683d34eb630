"""Writes a seed corpus for the fuzzer: one small file of every kind. Usage: make_seeds.py FOLDER."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.jpeg_files import (  # noqa: E402 - the path is set above
    Process,
    adobe_segment,
    after_soi,
    exif_segment,
    make_jpeg,
    pillow_jpeg,
)

SAMPLINGS = ([(1, 1)], [(2, 2), (1, 1), (1, 1)], [(1, 2), (1, 1), (1, 1)], [(4, 1), (1, 1), (1, 1)], [(1, 1)] * 4)

PROCESSES: tuple[Process, ...] = ("baseline", "extended", "progressive")


def seeds() -> list[bytes]:
    files = [path.read_bytes() for path in sorted((ROOT / "tests/data/jpeg").glob("*.jpg"))]
    files += [
        make_jpeg(19, 17, sampling, process=process, interleaved=interleaved, restart_interval=2).data
        for sampling in SAMPLINGS
        for process in PROCESSES
        for interleaved in (True, False)
    ]
    files += [pillow_jpeg(16, 16, mode, quality=30) for mode in ("L", "RGB", "CMYK")]
    files += [after_soi(files[-2], exif_segment(6)), after_soi(files[-1], adobe_segment(2))]
    return files


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()):
        (folder / f"seed-{number:03}.jpg").write_bytes(data)


if __name__ == "__main__":
    main()
