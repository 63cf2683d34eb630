"""The picture that shows that all is well: a start-up check, a first example, a health probe."""

from importlib import resources
from typing import Final

__all__ = ["SAMPLE_NAME", "sample_picture"]

SAMPLE_NAME: Final = "wall_clock_qf10.jpg"


def sample_picture() -> bytes:
    """A drawing of a wall clock as a JPEG of quality 10; ``scripts/render_sample.py`` made it."""
    return resources.files("afd_serve").joinpath("data").joinpath(SAMPLE_NAME).read_bytes()
