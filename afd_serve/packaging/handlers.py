"""Where the TorchServe handler and its settings lie, and what a client must know of them; torch is not needed."""

from functools import cache
from pathlib import Path

from afd_serve.errors import PackagingError

__all__ = ["handlers_dir", "max_request_bytes"]


def handlers_dir() -> Path:
    """The folder with the handler and its settings: inside an installed package, beside the package in a checkout.

    Raises:
        PackagingError: The installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    for parent in (package, package.parent):
        if (parent / "handlers" / "afd_handler.py").is_file():
            return parent / "handlers"
    raise PackagingError(f"the TorchServe handler is missing from the installation in {package}")


@cache
def max_request_bytes() -> int:
    """The largest body, or gRPC message, that a TorchServe with the settings that come with it takes.

    Raises:
        PackagingError: The installation lacks the settings.
    """
    lines = (handlers_dir() / "config.properties").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return int(settings["max_request_size"])
