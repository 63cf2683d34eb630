"""How many pictures one request to each server has room for."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from afd_serve.packaging.handlers import max_request_bytes

__all__ = ["torchserve_fits", "triton_fits"]

_BESIDE_PICTURES: Final = 1024
"""Bytes of a request for all but its pictures: the options, and what each protocol says of them."""


def triton_fits(pictures: Sequence[bytes]) -> int:
    """How many of the first pictures to send to Triton in one request; 1 where the first alone is larger than others.

    Triton itself has no limit, but a proxy before it has: the one that deploy/ shows has that of TorchServe.

    Raises:
        PackagingError: The installation lacks TorchServe's settings.
    """
    return max(1, _fitting(4 + len(picture) for picture in pictures))


def torchserve_fits(pictures: Sequence[bytes]) -> int:
    """How many of the first pictures one request to TorchServe has room for; 0 where the first alone is too large.

    Raises:
        PackagingError: The installation lacks TorchServe's settings.
    """
    return _fitting(len('{"b64": ""}, ') + 4 * -(-len(picture) // 3) for picture in pictures)


def _fitting(sizes: Iterable[int]) -> int:
    room = max_request_bytes() - _BESIDE_PICTURES
    return sum(total <= room for total in accumulate(sizes))
