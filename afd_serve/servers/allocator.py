"""jemalloc in place of the C library's allocator, for the workers of a server.

TorchScript allocates memory for every feature map, which takes a tenth of a worker's time with the C library's
allocator, and half of that with jemalloc; a worker then also holds 50 MiB less. jemalloc must be preloaded
(``LD_PRELOAD``), for the whole server. It keeps what is freed for half a minute instead of ten seconds: otherwise it
returns the largest feature maps of a float32 model to the system and fetches them again with every picture, which takes
a quarter of the model's time. OpenVINO crashes with it: it resolves some of the allocator's symbols past the preloaded
library, so that memory is freed by another allocator than the one that made it.
"""

import ctypes.util
import json
import os
import zipfile
from pathlib import Path
from typing import Final

from afd_serve.signature import SIGNATURE_NAME

__all__ = ["jemalloc", "preloaded"]

_VARIABLE: Final = "LD_PRELOAD"
_SETTINGS: Final = {"MALLOC_CONF": "dirty_decay_ms:30000"}


def jemalloc() -> str | None:
    """The name by which the loader finds jemalloc, where it is installed."""
    return ctypes.util.find_library("jemalloc")


def preloaded(archive: Path) -> dict[str, str]:
    """What a server's environment needs for an archive: jemalloc, where it is installed and the engine gains by it.

    Nothing where the operator preloads something already, and for archives that are not ours. The operator's own
    settings for jemalloc stay.
    """
    if _VARIABLE in os.environ or _engine(archive) != "torchscript":
        return {}
    library = jemalloc()
    settings = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    return {_VARIABLE: library, **settings} if library else {}


def _engine(archive: Path) -> str | None:
    try:
        with zipfile.ZipFile(archive) as content:
            return str(json.loads(content.read(SIGNATURE_NAME))["engine"])
    except (KeyError, zipfile.BadZipFile):
        return None
