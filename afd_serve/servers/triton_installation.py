"""The Python environment for Triton: the running one where it has the server, or else one made in the state directory.

Triton's Python backend needs an older NumPy than most environments have. One made here holds what this package needs
with that NumPy and the server, and a link to the very package that runs; pip finds its indexes and settings as always,
in its configuration files and in the variables ``PIP_...``. What an interruption leaves is completed by the next call.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path
from typing import Final

import torch

import afd_serve
from afd_serve.errors import DependencyError
from afd_serve.servers.triton_environment import NoServerError, find_environment

__all__ = ["install", "suitable_python"]

_EXTRA: Final = "triton-server"
_INSTALLED: Final = "installed.txt"


def suitable_python(state_dir: Path) -> Path:
    """A Python whose environment has the server; where this one has not, one is installed, which takes minutes.

    Raises:
        DependencyError: The installation fails, or something is missing that pip does not bring.
    """
    here = Path(sys.executable)
    try:
        find_environment(here)
    except NoServerError:
        return install(state_dir / "environment")
    return here


def install(folder: Path) -> Path:
    """Make or complete an environment with the server; returns its Python.

    Raises:
        DependencyError: See `suitable_python`.
    """
    python, installed, wanted = folder / "bin" / "python3", folder / _INSTALLED, _requirements()
    package = Path(afd_serve.__file__).resolve().parent
    state = "\n".join([sys.version, str(package), *wanted])
    lost = python.is_symlink() and not python.exists()  # once the Python that it was made with is moved or removed
    if installed.is_file() and installed.read_text() == state and not lost:
        return python
    print(f"Triton gets an environment of its own in {folder}; pip says how far it is", file=sys.stderr, flush=True)
    _run([sys.executable, "-P", "-m", "venv", *(["--clear"] if lost else []), str(folder)])
    _run([str(python), "-P", "-m", "pip", "install", *wanted])
    link = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / package.name
    link.unlink(missing_ok=True)
    link.symlink_to(package)
    find_environment(python)
    installed.write_text(state)
    return python


def _requirements() -> list[str]:
    """What pip is asked for: this package's requirements and those of the server, with the torch that runs here."""
    wanted = [f"torch=={torch.__version__.partition('+')[0]}"]
    for line in requires("afd-serve") or ():
        requirement, _, marker = line.partition(";")
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", marker)
        if extra is None or extra[1] == _EXTRA:
            wanted.append(requirement.strip())
    return wanted


def _run(command: Sequence[str]) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # Standard output is the caller's, for answers.
    done = subprocess.run(command, env=variables, stdout=sys.stderr.fileno(), check=False)
    if done.returncode != 0:
        raise DependencyError(f"Triton's environment could not be installed: {' '.join(command[:4])} failed; see above")
