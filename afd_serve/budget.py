"""What the pictures of one request may cost together, on every server.

A limit on one picture is none on a request, which carries up to `request.MAX_PICTURES`. A JPEG's cost is bounded by its
bytes, and so by those of the request; other formats fill any number of pixels with a few bytes, so their pixels are
counted. An explanation's request has one picture and is bounded by the limit on that.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

from afd_serve.jpeg_types import JpegLimits
from afd_serve.other_formats import Buffer, pixels_to_decode
from afd_serve.request import CROWDED_OUT
from afd_serve.results import Failure

__all__ = ["MAX_OTHER_PIXELS_PER_REQUEST", "within_budget"]

MAX_OTHER_PIXELS_PER_REQUEST: Final = 75_000_000
"""Pixels of a request's pictures that are no JPEGs, in sum: 32 screens of full HD, or three of the largest pictures,
which take two or three seconds at worst."""

Item = TypeVar("Item", bound=Buffer | Failure)


def within_budget(pictures: Sequence[Item], limits: JpegLimits | None = None) -> list[Item | Failure]:
    """A request's pictures, in order; those that `MAX_OTHER_PIXELS_PER_REQUEST` has no room for are failures.

    Nothing is decoded here, only headers are read. What fails for a reason of its own takes no room.

    Args:
        pictures: All pictures of one request.
        limits: On one picture, as `prepare` will get them.
    """
    limits = limits or JpegLimits()
    if len(pictures) * limits.max_other_pixels <= MAX_OTHER_PIXELS_PER_REQUEST:
        return list(pictures)
    left, kept = MAX_OTHER_PIXELS_PER_REQUEST, list[Item | Failure]()
    for picture in pictures:
        pixels = 0 if isinstance(picture, Failure) else pixels_to_decode(picture, limits)
        if pixels > left:
            kept.append(_beyond(pixels))
        else:
            kept.append(picture)
            left -= pixels
    return kept


def _beyond(pixels: int) -> Failure:
    return Failure(
        CROWDED_OUT,
        f"the picture's {pixels} pixels are too many beside those of the request's other pictures: those that are no "
        f"JPEGs may have {MAX_OTHER_PIXELS_PER_REQUEST} together; send it in a request of its own, or as a JPEG",
    )
