"""What a picture's tables and coefficients tell of its compression: quality factor, earlier compressions, the gate.

Everything here is in libjpeg's quality factors (QF): the standard luminance table of ITU-T T.81, K.1, scaled by
200 - 2 QF per cent above 50 and 5000 / QF per cent below.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afd_serve import _jpeg

__all__ = [
    "GOOD_QUALITY",
    "CompressionHistory",
    "compression_history",
    "earlier_quality",
    "estimate_quality",
    "scaled_table",
]

GOOD_QUALITY: Final = 90
"""From this estimated QF on, and without an earlier and heavier compression, the gate stays closed."""


def scaled_table(quality: int, *, chroma: bool = False) -> NDArray[np.uint16]:
    """The table [8, 8] that libjpeg makes of a quality factor from 1 to 100, natural order, baseline (1..255)."""
    return _jpeg.scaled_table(quality, chroma)


def estimate_quality(quant_table: NDArray[np.uint16]) -> int:
    """The QF, 1 to 100, whose standard luminance table is nearest to ``quant_table`` [8, 8], natural order.

    Nearest in the logarithm of the steps, so that custom tables are judged by how coarse they are. Where several
    qualities share a table, the highest of them.
    """
    return _jpeg.estimate_quality(quant_table)


@dataclass(frozen=True)
class CompressionHistory:
    """What is known of a picture's compressions.

    Attributes:
        quality: QF of the heaviest compression found, 1 to 100.
        resaved: Whether the coefficients show a compression that was heavier than the picture's own table.
    """

    quality: int
    resaved: bool

    @property
    def good(self) -> bool:
        """Whether the gate may stay closed."""
        return self.quality >= GOOD_QUALITY


def earlier_quality(dequantized: NDArray[np.int16], quant_table: NDArray[np.uint16]) -> int | None:
    """The QF of an earlier and coarser compression on the same block grid, or None where none shows.

    Quantizing with a coarse step leaves values at its multiples; a finer step afterwards moves them a little but does
    not fill the gaps between them. ``csrc/history.cpp`` says how that is told from chance.

    Args:
        dequantized: Luminance blocks int16 [..., 8, 8], dequantized, natural order.
        quant_table: The picture's own luminance table [8, 8]; all ones for pixels that carry no table.
    """
    return _jpeg.earlier_quality(dequantized, quant_table)


def compression_history(dequantized: NDArray[np.int16], quant_table: NDArray[np.uint16]) -> CompressionHistory:
    """Judge a picture by its luminance blocks [..., 8, 8] (dequantized) and its luminance table [8, 8]."""
    own = estimate_quality(quant_table)
    earlier = earlier_quality(dequantized, quant_table)
    if earlier is not None and earlier < own:
        return CompressionHistory(quality=earlier, resaved=True)
    return CompressionHistory(quality=own, resaved=False)
