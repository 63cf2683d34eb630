"""What is in an exported model's folder: the signature, and the files that it describes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from afd_serve.engines import ENGINES
from afd_serve.errors import CheckpointError
from afd_serve.signature import SIGNATURE_NAME, Signature

__all__ = ["FEATURES_NAME", "digest", "exported_files", "read_files", "read_signature"]

FEATURES_NAME: Final = "features.pt"


def exported_files(folder: str | Path) -> tuple[str, ...] | None:
    """The names of the files that make up the exported model in a folder, the classifier's first; None where none is.

    Raises:
        CheckpointError: There is a signature that cannot be read, or a file beside it is missing or is not the one that
            was exported: better now than when a server that has made way is gone.
    """
    folder = Path(folder)
    if not (folder / SIGNATURE_NAME).is_file():
        return None
    signature = read_signature(folder)
    files = ENGINES[signature.engine].files
    read_files(folder, files, signature.sha256)
    if not signature.features_sha256:
        return (*files, SIGNATURE_NAME)
    read_files(folder, (FEATURES_NAME,), signature.features_sha256)
    return (*files, FEATURES_NAME, SIGNATURE_NAME)


def read_signature(folder: Path) -> Signature:
    """The signature of an exported folder.

    Raises:
        CheckpointError: It cannot be read, or is for an engine that this version does not know.
    """
    path = folder / SIGNATURE_NAME
    try:
        signature = Signature.from_json(path.read_bytes())
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if signature.engine not in ENGINES:
        raise CheckpointError(f"{folder} was exported for the engine {signature.engine!r}, unknown to this version")
    return signature


def read_files(folder: Path, names: Sequence[str], sha256: str) -> bytes:
    """The bytes of exported files, joined. They are hashed before anything looks into them.

    Raises:
        CheckpointError: A file is missing, or they are not those with this digest.
    """
    try:
        data = b"".join((folder / name).read_bytes() for name in names)
    except OSError as error:
        raise CheckpointError(f"{folder} has a signature, but a file is missing: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(
            f"{' and '.join(names)} in {folder} are not the files that were exported; export them again"
        )
    return data


def digest(folder: Path, *names: str) -> str:
    """The SHA-256, in hexadecimal digits, of files, joined."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()
