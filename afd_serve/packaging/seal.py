"""What an archive's files were when it was built, and whether they still are.

The seal finds damage, and single files that were exchanged or added. It does not say who built the archive: who can
write all of it can write a new seal. Archives are reproducible, so that their digests can be compared with a build of
one's own.

An archive is compared twice. `check_archive` does it before anything in it runs, in this installation's own words: a
worker imports modules from the archive's folder, and an archive's own handler could leave its check out. `check_seal`
does it in the worker, on any TorchServe, for what became of the files since.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from afd_serve.errors import CheckpointError
from afd_serve.packaging.handlers import handlers_dir

__all__ = ["HANDLER_NAME", "MANIFEST_NAME", "SEAL_NAME", "check_archive", "check_seal", "make_seal"]

HANDLER_NAME: Final = "afd_handler.py"
MANIFEST_NAME: Final = "MAR-INF/MANIFEST.json"

_DAMAGES: Final = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, LookupError, ValueError, TypeError)
"""What reading a damaged ZIP archive, or a manifest of another kind, raises."""

SEAL_NAME: Final = "files.json"
"""A file of the archive: the SHA-256, in hexadecimal digits, of each other file by its name."""


def make_seal(files: Mapping[str, bytes]) -> bytes:
    """The seal for files by their names in the archive."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    return json.dumps(digests, indent=1).encode()


def check_archive(archive: Path) -> None:
    """Compare an archive with its seal, and its handler with this installation's, without unpacking it.

    Raises:
        CheckpointError: It was not built by `package_torchserve`, is damaged, or has another handler.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            names = packed.namelist()
            if len(set(names)) != len(names):
                raise CheckpointError("it has two files of one name")
            found = {name: hashlib.sha256(packed.read(name)).hexdigest() for name in names}
            _compare(_read_seal(packed.read(SEAL_NAME) if SEAL_NAME in found else None), found)
            handler = json.loads(packed.read(MANIFEST_NAME))["model"]["handler"]
        own = hashlib.sha256((handlers_dir() / HANDLER_NAME).read_bytes()).hexdigest()
        if handler != HANDLER_NAME or found.get(HANDLER_NAME) != own:
            raise CheckpointError("its handler is not the one of the installed afd-serve")
    except (CheckpointError, *_DAMAGES) as error:
        raise CheckpointError(f"the archive cannot be served: {error}; package the model again") from error


def check_seal(folder: Path) -> None:
    """Compare an unpacked archive with its seal; what Python keeps of the modules that it has imported may lie there.

    Raises:
        CheckpointError: There is no seal, a file is missing or another, or it is none of the archive's; the message
            names it.
    """
    found = {}
    try:
        for path in folder.rglob("*"):
            if not path.is_dir() and path.parent.name != "__pycache__":
                found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        seal = (folder / SEAL_NAME).read_bytes() if SEAL_NAME in found else None
    except OSError as error:
        raise CheckpointError(f"the archive cannot be read: {error}") from error
    _compare(_read_seal(seal), found)


def _compare(expected: Mapping[str, object], found: Mapping[str, str]) -> None:
    for name in sorted(found.keys() - expected.keys() - {SEAL_NAME}):
        raise CheckpointError(f"{name} is not among the files that were packaged")
    for name, digest in expected.items():
        if name not in found:
            raise CheckpointError(f"the archive lacks {name}")
        if found[name] != digest:
            raise CheckpointError(f"{name} is not the file that was packaged; package the model again")


def _read_seal(text: bytes | None) -> Mapping[str, object]:
    try:
        if text is None:
            raise ValueError("it is not there")
        digests = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the archive has no {SEAL_NAME} that can be read: {error}") from error
    if not isinstance(digests, dict) or not digests:
        raise CheckpointError(f"{SEAL_NAME} names no files")
    return digests
