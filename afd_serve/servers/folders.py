"""Folders that other accounts of the machine may not look into: pictures, models, logs and tokens pass through them."""

from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["PRIVATE_UMASK", "make_private", "make_state_dir"]

PRIVATE_UMASK: Final = 0o077
"""For the processes of a server: what they write, shared memory included, is for their own account."""


def make_state_dir(folder: Path) -> None:
    """Make a server's state directory for its owner alone.

    One that is there keeps its permissions, because it may be any folder that somebody has named; those inside of it
    are ours, and are made with `make_private`.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)


def make_private(folder: Path) -> Path:
    """Make a folder for its owner alone; one that is there, as of an earlier version, becomes so."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
