"""The picture that shows that all is well: a start-up check, a first example, a health probe."""

import io
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Final

from PIL import Image

__all__ = ["PROBE_ID", "SAMPLE_NAME", "is_probe", "sample_picture", "sample_variants"]

SAMPLE_NAME: Final = "wall_clock_qf10.jpg"

PROBE_ID: Final = "afd-health"
"""The id of requests for health, on either server; the metrics leave them out where `is_probe` agrees."""


@cache
def sample_picture() -> bytes:
    """A drawing of a wall clock as a JPEG of quality 10; ``scripts/render_sample.py`` made it."""
    return resources.files("afd_serve").joinpath("data").joinpath(SAMPLE_NAME).read_bytes()


def is_probe(request_id: object, pictures: Sequence[object]) -> bool:
    """Whether a request asks for health: it says so by its id, and has the sample picture alone.

    Metrics leave probes out. The id would hide any picture from them, so it is not enough.
    """
    return request_id == PROBE_ID and list(pictures) == [sample_picture()]


def sample_variants() -> Iterator[bytes]:
    """The sample and its quarters, as it is and as JPEGs of three more qualities."""
    yield sample_picture()
    with Image.open(io.BytesIO(sample_picture())) as whole:
        width, height = whole.size
        corners = [(0, 0), (width // 2, 0), (0, height // 2), (width // 2, height // 2)]
        parts = [whole.crop((x, y, x + width // 2, y + height // 2)) for x, y in corners]
    for part, quality in zip([whole, *parts], (20, 15, 30, 60, 95), strict=True):
        out = io.BytesIO()
        part.save(out, "JPEG", quality=quality)
        yield out.getvalue()
