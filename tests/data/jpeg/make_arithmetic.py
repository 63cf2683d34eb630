"""Makes the arithmetic-coded files beside this script, which Pillow cannot write.

Needs libjpeg-turbo's jpegtran. Each file holds the coefficients of a file that tests/jpeg_files.py makes: the recipes
are in ARITHMETIC below, and the tests use the same ones.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from tests.jpeg_files import ARITHMETIC  # noqa: E402 - the path is set above


def main() -> None:
    for name, recipe in ARITHMETIC.items():
        arguments = [
            "jpegtran",
            "-arithmetic",
            *(["-restart", "2B"] if "restarts" in name else []),
            *(["-progressive"] if "progressive" in name else []),
        ]
        done = subprocess.run(arguments, input=recipe().data, stdout=subprocess.PIPE, check=True)
        (HERE / name).write_bytes(done.stdout)


if __name__ == "__main__":
    main()
