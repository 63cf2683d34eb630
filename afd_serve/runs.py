"""Folders in which work goes on: by one process at a time, and with no file that is half written."""

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from afd_serve.errors import ConfigError

__all__ = ["alone_in", "write_atomically", "write_text"]

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def alone_in(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, which is made where it is missing; what a process held is free when it ends, however it ends.

    Where the work fails before it has left anything there, what was made is removed again.

    A fork of the process, as a loader of pictures is, holds it too until it ends; programs that it starts do not.

    Args:
        folder: Where the work goes on.
        wait: Let another run there come to its end.

    Raises:
        ConfigError: another run is at work there, and ``wait`` is false.
        OSError: the work's own; of a disk that is full it names the folder, where the system names nothing.
    """
    missing = [] if wait else [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder, wait)
        with _leaving_nothing_empty(missing):
            yield
    except OSError as error:
        if error.errno in _NO_ROOM and error.filename is None:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
    finally:
        os.close(handle)


@contextmanager
def _leaving_nothing_empty(made: list[Path]) -> Iterator[None]:
    """Remove folders that are empty where the work fails; the innermost comes first."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # which one that is not empty raises
            for folder in made:
                folder.rmdir()
        raise


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path`` and then rename it, so that ``path`` is never half a file.

    Where that fails, as on a full disk, nothing is left but what was there before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # else a power failure may leave an empty file under the new name
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, as `write_atomically` does; names of files that are no UTF-8 are escaped in it."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def _lock(handle: int, folder: Path, wait: bool) -> None:
    busy = f"another run is at work in {folder}"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise ConfigError(f"{busy}; wait for it or choose another folder") from None
        print(f"{busy}; this one waits for it", file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
