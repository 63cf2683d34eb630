"""What an archive's files were when it was built, and whether they still are.

The seal finds damage and single files that were exchanged. It does not say who built the archive: who can write all of
it can write a new seal. Archives are reproducible, so that their digests can be compared with a build of one's own.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from afd_serve.errors import CheckpointError

__all__ = ["SEAL_NAME", "check_seal", "make_seal"]

SEAL_NAME: Final = "files.json"
"""A file of the archive: the SHA-256, in hexadecimal digits, of each other file by its name."""


def make_seal(files: Mapping[str, bytes]) -> bytes:
    """The seal for files by their names in the archive."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    return json.dumps(digests, indent=1).encode()


def check_seal(folder: Path) -> None:
    """Compare an unpacked archive with its seal. Files that the seal does not name are left alone: nothing reads them.

    Raises:
        CheckpointError: There is no seal, or a file is missing or another; the message names it.
    """
    for name, expected in _read_seal(folder).items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"the archive lacks {name}: {error}") from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(f"{name} is not the file that was packaged; package the model again")


def _read_seal(folder: Path) -> Mapping[str, str]:
    try:
        digests = json.loads((folder / SEAL_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the archive has no {SEAL_NAME} that can be read: {error}") from error
    if not isinstance(digests, dict) or not digests:
        raise CheckpointError(f"{SEAL_NAME} names no files")
    return digests
