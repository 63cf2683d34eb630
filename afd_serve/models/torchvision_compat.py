"""Import torchvision and timm where only a CPU build of torch is installed.

torchvision from PyPI is built against CUDA's torch; beside a CPU-only torch its native library does not load, and its
import fails because the operators ``torchvision::nms`` and ``torchvision::qnms``, for which it registers shape
functions, do not exist. Defining the two schemas first is enough: no classifier calls them.
"""

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from afd_serve.errors import DependencyError

__all__ = ["import_timm", "import_torchvision_models", "make_torchvision_importable"]

_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision_models() -> ModuleType:
    """Return the module ``torchvision.models``.

    Raises:
        DependencyError: torchvision is not installed or does not fit the installed torch.
    """
    return _import("torchvision.models", "torchvision")


def import_timm() -> ModuleType:
    """Return the module ``timm``.

    Raises:
        DependencyError: timm or torchvision is not installed or does not fit the installed torch.
    """
    return _import("timm", "timm")


def make_torchvision_importable() -> None:
    """Let code that is not ours import torchvision, or what needs it, as well; nothing to do where there is none."""
    if importlib.util.find_spec("torchvision") is not None:
        _define_operators(_find("torchvision"))


def _import(module: str, package: str) -> ModuleType:
    _find(package)
    _define_operators(_find("torchvision"))
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, AttributeError) as error:
        raise DependencyError(f"{package} does not work with torch {torch.__version__}: {error}") from error


def _find(package: str) -> Path:
    """Return a package's folder without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DependencyError(f"{package} is not installed: run `pip install {package} torch=={torch.__version__}`")
    return Path(spec.origin).parent


@cache
def _define_operators(package: Path) -> torch.library.Library | None:
    """Load the native library, or define the schemas that it would have.

    The library goes first, because an operator that is already defined makes it fail. The returned definitions vanish
    with the object; the cache keeps it.
    """
    if _native_library_loads(package):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(name + _ARGUMENTS)  # type: ignore[no-untyped-call]
    return library


def _native_library_loads(package: Path) -> bool:
    path = next(package.glob("_C*.so"), None)
    if path is None:
        return False
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True
