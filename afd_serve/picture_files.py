"""Files of pictures in folders, and whether they are those of before; for fitting and for evaluation."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["digest_of", "file_size", "files_below"]


def files_below(folder: Path, without: Iterable[Path] = ()) -> Iterator[Path]:
    """The files below a folder and below those that it links to, each of which is entered once: links may go round.

    Args:
        folder: where to begin; paths begin with it, whatever links they lead through.
        without: folders that are not entered.
    """
    entered = {place.resolve() for place in without}
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        if here in entered:
            folders.clear()
            continue
        entered.add(here)
        folders.sort()  # so that a folder with several names is found under the same one everywhere
        yield from (Path(place, name) for name in files)


def file_size(path: Path) -> int:
    """Bytes; -1 for a picture that is missing or out of reach."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # which a name with a null character raises
        return -1


def digest_of(pictures: Iterable[tuple[object, ...]]) -> str:
    """SHA-256 (hex) of what is known of a set of pictures, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(pictures)).encode()).hexdigest()
