"""From a decoded picture to the model's input, and from the JPEG's block grid to the model's.

A *box* is ``(left, top, right, bottom)`` in pixels of the picture, right and bottom exclusive.
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from afd_serve import _jpeg
from afd_serve.errors import BackboneError

__all__ = ["Box", "Interpolation", "Preprocessing", "Triple", "block_grid", "crop_box", "resize_crop"]

Box = tuple[float, float, float, float]
Triple = tuple[float, float, float]
Interpolation = Literal["bicubic", "bilinear"]


def _number(value: Any) -> float:
    return float(+value)  # which text has no sign for: "127" would be the numbers 1, 2 and 7


def _numbers(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(map(_number, values))


_PLAIN: Final[dict[str, tuple[Callable[[Any], object], str]]] = {
    "size": (operator.index, "one whole number of pixels for both sides"),
    "crop_fraction": (_number, "a number"),
    "mean": (_numbers, "three numbers (R, G, B)"),
    "std": (_numbers, "three numbers (R, G, B)"),
}
"""What makes Python's own numbers of a field's value, and what that value must be."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the model's input; numbers may be NumPy's or torch's, and become Python's own.

    Attributes:
        size: side of the square input, pixels.
        crop_fraction: side of the central square crop / ``min(width, height)``, in (0, 1].
        interpolation: how the crop is resized (antialiased).
        mean: subtracted, RGB, in units of 0..255.
        std: then divided by, RGB, in units of 0..255.
    """

    size: int
    crop_fraction: float
    interpolation: Interpolation
    mean: Triple
    std: Triple

    def __post_init__(self) -> None:
        """Let fields hold what can be written as JSON, and reject what no picture could be processed with."""
        for name, (plain, kind) in _PLAIN.items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, plain(value))
            except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last is torch's
                raise BackboneError(f"{name} must be {kind}, not {value!r}") from error
        if self.size < 8:
            raise BackboneError(f"input size must be at least 8 pixels, not {self.size}")
        if not 0.0 < self.crop_fraction <= 1.0:
            raise BackboneError(f"crop_fraction must be in (0, 1], not {self.crop_fraction}")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise BackboneError(f"interpolation must be bicubic or bilinear, not {self.interpolation!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise BackboneError("mean and std must have three values (R, G, B), and std must be positive")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise BackboneError(f"mean and std must be finite, not {self.mean} and {self.std}")
        if max(self.mean) <= 1 and max(self.std) < 1:
            raise BackboneError(f"mean {self.mean} and std {self.std} are in units of 0..1: multiply both by 255")


def crop_box(width: int, height: int, preprocessing: Preprocessing, orientation: int = 1) -> tuple[int, int, int, int]:
    """Return the central square that the model sees of a picture of ``width x height`` pixels.

    It is that of the upright picture, where it lies in one that is stored under an EXIF orientation, 1 to 8.

    Source: EfficientNet's evaluation preprocessing (``_decode_and_center_crop``), down to the rounding.
    """
    return _jpeg.crop_box(width, height, preprocessing.crop_fraction, orientation)


def resize_crop(
    pixels: npt.NDArray[np.uint8], box: Box, size: int, interpolation: Interpolation
) -> npt.NDArray[np.uint8]:
    """Resize the part of a picture that is in a box, antialiased.

    Bit for bit what Pillow's ``resize`` makes of the same box: the filter reads a few pixels beyond the box where the
    picture has them. The GIL is released meanwhile.

    Args:
        pixels: uint8 RGB ``[H, W, 3]``.
        box: part of the picture, not empty; fractions of a pixel are allowed.
        size: side of the result in pixels.
        interpolation: the filter.

    Returns:
        uint8 RGB ``[size, size, 3]``; ``pixels`` itself where the box is the whole picture and already of that size.

    Raises:
        ValueError: the box is empty or does not lie in the picture.
    """
    height, width = pixels.shape[:2]
    if tuple(box) == (0, 0, width, height) and (width, height) == (size, size):
        return pixels
    return _jpeg.resample(pixels, box, size, interpolation)


def block_grid(
    box: Box,
    size: int,
    width_in_blocks: int,
    height_in_blocks: int,
    block_width_px: float,
    block_height_px: float,
    orientation: int = 1,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the JPEG block under the centre of each 8x8 cell of the model's input.

    ``coefficients[rows[:, None], cols[None, :]]`` then gathers a component's blocks on the model's grid. The map is
    the identity where the JPEG is exactly the model's crop. Cells lie as over the upright picture: where an axis is
    stored mirrored and 8 does not divide the size, the first cell is cut, not the last.

    Args:
        box: the part of the picture that becomes the model's input.
        size: side of the model's input in pixels; the grid has ``G = ceil(size / 8)`` cells a side.
        width_in_blocks: of the component, without padding.
        height_in_blocks: of the component, without padding.
        block_width_px: width that one block covers, in pixels of the picture: 8, or 16 where chroma is halved.
        block_height_px: height that one block covers.
        orientation: EXIF's, 1 to 8, of the picture that the box and the blocks are those of, as stored.

    Returns:
        Row indices int64 ``[G]`` in ``0..height_in_blocks - 1`` and column indices int64 ``[G]`` in
        ``0..width_in_blocks - 1``, neither ever decreasing.
    """
    return _jpeg.block_grid(box, size, width_in_blocks, height_in_blocks, block_width_px, block_height_px, orientation)
