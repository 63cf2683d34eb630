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

from afd_serve.errors import ClientClosedError

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

    @property
    def closed(self) -> bool:
        """Whether it is no longer mapped here."""
        return self._memory.closed

    def close(self) -> None:
        """Unmap it here."""
        self.forget_name()
        self._memory.close()


class RegionPool:
    """The regions of one client, until they are drained; for several threads.

    Those that the server may still read, because a call did not wait for its answer, are lost to further calls. A call
    hands each region that it took back in one of three ways: it gives it back, loses it or forgets it.
    """

    def __init__(self) -> None:
        self._free: list[Region] = []
        self._taken: list[Region] = []
        self._lost: list[Region] = []
        self._drained = False
        self._lock = Lock()

    def take(self, size: int) -> Region:
        """A region of at least ``size`` bytes, new where none is free.

        Raises:
            ClientClosedError: The pool has been drained: nobody would give the region back to the server.
        """
        with self._lock:
            if self._drained:
                raise ClientClosedError("the client has been closed")
            region = next((region for region in self._free if region.size >= size), None)
            if region:
                self._free.remove(region)
            else:
                region = Region(max(_SMALLEST, 1 << (size - 1).bit_length()))
            self._taken.append(region)
        return region

    def give_back(self, region: Region) -> None:
        """Let other calls have the region."""
        if not self._hand_back(region, self._free):
            region.close()

    def lose(self, region: Region) -> None:
        """Unmap the region here, and keep it for `drain` alone."""
        region.close()
        self._hand_back(region, self._lost)

    def forget(self, region: Region) -> None:
        """Unmap the region here; the server does not know it."""
        region.close()
        self._hand_back(region, [])

    def _hand_back(self, region: Region, regions: list[Region]) -> bool:
        """Put a region that was taken among others; whether that could be done before the end."""
        with self._lock:
            if not self._drained:
                self._taken.remove(region)
                regions.append(region)
            return not self._drained

    def drain(self) -> list[Region]:
        """Give all away, once and for all: free ones, lost ones, and those in use, which their calls unmap."""
        with self._lock:
            self._drained = True
            regions = [*self._free, *self._lost, *self._taken]
            for region in self._free:
                region.close()
            self._free, self._lost, self._taken = [], [], []
        return regions
