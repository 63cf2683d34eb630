"""Folders of servers: none of somebody else's, and none that other accounts of the machine may look into.

Pictures, models, logs and tokens pass through them.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

from afd_serve.errors import ServingError

__all__ = ["PRIVATE_UMASK", "make_private", "make_state_dir"]

PRIVATE_UMASK: Final = 0o077
"""For the processes of a server: what they write, shared memory included, is for their own account."""

_MARK: Final = ".afd-serve"
_WORDS: Final = "The state directory of a server: afd-serve removes and overwrites what lies here.\n"

_EARLIER: Final = (
    "server.json",
    "archives/*.sources",
    "log4j2.xml",
    "backends/python",
    "environment/bin/python3",
    "model_repository-" + 12 * "[0-9a-f]",
)
"""What earlier versions, which did not write the mark, left in theirs."""

_NOBODYS: Final = ("lost+found", _MARK)
"""What a file system makes, and what another start may have written by now."""


def make_state_dir(folder: Path) -> None:
    """Make a server's state directory for its owner alone.

    One that is there keeps its permissions, because it may be any folder that somebody has named; those inside of it
    are ours, and are made with `make_private`.

    Raises:
        ServingError: It holds what is no server's. Servers remove and overwrite under names, as ``logs`` and
            ``model_store``, that others use too.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    mark = folder / _MARK
    if not mark.exists():
        _check_ours(folder)
        mark.write_text(_WORDS, encoding="utf-8")


def _check_ours(folder: Path) -> None:
    other = next((path.name for path in sorted(folder.iterdir()) if path.name not in _NOBODYS), None)
    if other is not None and not any(next(folder.glob(sign), None) for sign in _EARLIER):
        raise ServingError(
            f"{folder} holds {other}, which is no server's and could be overwritten: let --state-dir name an empty "
            "folder or none that is there"
        )


def make_private(folder: Path) -> Path:
    """Make a folder for its owner alone; one that is there, as of an earlier version, becomes so."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
