"""Shared memory for requests to a server on the same machine.

A region's name goes away as soon as the server has mapped it, so that nothing stays behind whatever happens to either
side; the memory lives as long as one of them holds it.
"""

import mmap
import os
import uuid
from pathlib import Path
from threading import Lock
from typing import Final

__all__ = ["Region", "RegionPool"]

_FOLDER: Final = Path("/dev/shm")
_SMALLEST: Final = 1 << 18


class Region:
    """One piece of shared memory, with a name until `forget_name`."""

    def __init__(self, size: int) -> None:
        self.name = f"afd_client_{uuid.uuid4().hex}"
        self.size = size
        self.registered = False
        descriptor = os.open(_FOLDER / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
        except BaseException:
            self.forget_name()
            raise
        finally:
            os.close(descriptor)

    def write(self, data: bytes) -> None:
        """Put data at the beginning."""
        self._memory[: len(data)] = data

    def forget_name(self) -> None:
        """Let the memory go with the last of those who have mapped it."""
        (_FOLDER / self.name).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmap it here."""
        self.forget_name()
        self._memory.close()


class RegionPool:
    """The regions that a server knows and no call is using; for several threads.

    Those that the server may still read, because a call did not wait for its answer, are lost to further calls.
    """

    def __init__(self) -> None:
        self._free: list[Region] = []
        self._lost: list[Region] = []
        self._lock = Lock()

    def take(self, size: int) -> Region:
        """A region of at least ``size`` bytes, new where none is free."""
        with self._lock:
            for region in self._free:
                if region.size >= size:
                    self._free.remove(region)
                    return region
        return Region(max(_SMALLEST, 1 << (size - 1).bit_length()))

    def give_back(self, region: Region) -> None:
        """Let other calls have the region."""
        with self._lock:
            self._free.append(region)

    def lose(self, region: Region) -> None:
        """Unmap the region here, and keep it for `drain` alone."""
        region.close()
        with self._lock:
            self._lost.append(region)

    def drain(self) -> list[Region]:
        """Take all, the lost ones too."""
        with self._lock:
            regions, self._free, self._lost = [*self._free, *self._lost], [], []
        return regions
