"""What a picture's tables and coefficients tell of its compression: quality factor, earlier compressions, the gate.

Everything here is in libjpeg's quality factors (QF): the standard luminance table of ITU-T T.81, K.1, scaled by
200 - 2 QF per cent above 50 and 5000 / QF per cent below.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afd_serve.dct import ZIGZAG_TO_NATURAL

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

STANDARD_TABLES: Final = np.array(
    [
        [
            [16, 11, 10, 16, 24, 40, 51, 61],
            [12, 12, 14, 19, 26, 58, 60, 55],
            [14, 13, 16, 24, 40, 57, 69, 56],
            [14, 17, 22, 29, 51, 87, 80, 62],
            [18, 22, 37, 56, 68, 109, 103, 77],
            [24, 35, 55, 64, 81, 104, 113, 92],
            [49, 64, 78, 87, 103, 121, 120, 101],
            [72, 92, 95, 98, 112, 100, 103, 99],
        ],
        [
            [17, 18, 24, 47, 99, 99, 99, 99],
            [18, 21, 26, 66, 99, 99, 99, 99],
            [24, 26, 56, 99, 99, 99, 99, 99],
            [47, 66, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
        ],
    ],
    dtype=np.int64,
)
"""Luminance and chrominance tables of ITU-T T.81, K.1 and K.2, natural order."""


def scaled_table(quality: int, *, chroma: bool = False) -> NDArray[np.uint16]:
    """The table [8, 8] that libjpeg makes of a quality factor from 1 to 100, natural order, baseline (1..255)."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    scaled: NDArray[np.int64] = (STANDARD_TABLES[int(chroma)] * percent + 50) // 100
    return scaled.clip(1, 255).astype(np.uint16)


_LUMA_TABLES: Final = np.stack([scaled_table(quality) for quality in range(1, 101)]).astype(np.float32)


def estimate_quality(quant_table: NDArray[np.uint16]) -> int:
    """The QF, 1 to 100, whose standard luminance table is nearest to ``quant_table`` [8, 8], natural order.

    Nearest in the logarithm of the steps, so that custom tables are judged by how coarse they are. Where several
    qualities share a table, the highest of them.
    """
    distance = np.abs(np.log(_LUMA_TABLES) - np.log(np.maximum(quant_table, 1).astype(np.float32))).sum(axis=(1, 2))
    return 100 - int(np.argmin(distance[::-1]))


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


_TESTED_QUALITIES: Final = tuple(range(3, 86))
_TESTED_FREQUENCIES: Final = np.array(ZIGZAG_TO_NATURAL[1:22])
_TESTED_STEPS: Final = np.stack([scaled_table(q).reshape(64)[_TESTED_FREQUENCIES] for q in _TESTED_QUALITIES]).astype(
    np.float32
)
_LEAST_EVIDENCE: Final = 40
_MOST_OFF_GRID: Final = 0.12
_NEAR_ZERO: Final = 0.3
_OFF_GRID: Final = 0.25
_CLEAR_RATIO: Final = 1.9
_LEAST_STEP: Final = 6.0
_MOST_VALUES: Final = 1536


def earlier_quality(dequantized: NDArray[np.int16], quant_table: NDArray[np.uint16]) -> int | None:
    """The QF of an earlier and coarser compression on the same block grid, or None where none shows.

    Quantizing with a coarse step leaves values at its multiples; a finer step afterwards moves them a little but does
    not fill the gaps between them. For each candidate QF the values that are not near zero are counted, and how many
    of them lie in the middle between two multiples: about half when the candidate never took part, almost none when
    it did. Multiples of a step are multiples of its divisors too, so the best of the coarsest run of candidates wins.

    Args:
        dequantized: Luminance blocks [..., 8, 8], dequantized, natural order.
        quant_table: The picture's own luminance table [8, 8]; all ones for pixels that carry no table.
    """
    values, frequencies = _telling_values(dequantized)
    own_steps = quant_table.reshape(64)[_TESTED_FREQUENCIES].astype(np.float32)
    usable = np.maximum(_CLEAR_RATIO * own_steps, _LEAST_STEP) <= _TESTED_STEPS
    ratio = values / _TESTED_STEPS[:, frequencies]
    counted = usable[:, frequencies] & (ratio > _NEAR_ZERO)
    distance = np.abs(ratio - np.rint(ratio))
    evidence = counted.sum(axis=1)
    off_grid = (counted & (distance > _OFF_GRID)).sum(axis=1)
    explains = (evidence >= _LEAST_EVIDENCE) & (off_grid < _MOST_OFF_GRID * evidence)
    if not explains.any():
        return None
    first = int(explains.argmax())
    coarsest_run = np.logical_and.accumulate(explains[first:])
    misfit = (distance * counted)[first:].sum(axis=1) / evidence[first:].clip(1)
    return _TESTED_QUALITIES[first + int(np.where(coarsest_run, misfit, np.inf).argmin())]


def _telling_values(dequantized: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Magnitudes that are not near zero for any candidate, and their positions in `_TESTED_FREQUENCIES`.

    No more than `_MOST_VALUES`, evenly spread over the picture: more find nothing new (250 pictures, 18 histories).
    """
    blocks = np.take(dequantized.reshape(-1, 64), _TESTED_FREQUENCIES, axis=1)
    magnitudes = np.abs(blocks.astype(np.float32)).reshape(-1)
    chosen = np.flatnonzero(magnitudes > _NEAR_ZERO * _LEAST_STEP)
    if chosen.size > _MOST_VALUES:
        chosen = chosen[np.linspace(0, chosen.size - 1, _MOST_VALUES).astype(np.int64)]
    return magnitudes[chosen], chosen % len(_TESTED_FREQUENCIES)


def compression_history(dequantized: NDArray[np.int16], quant_table: NDArray[np.uint16]) -> CompressionHistory:
    """Judge a picture by its luminance blocks [..., 8, 8] (dequantized) and its luminance table [8, 8]."""
    own = estimate_quality(quant_table)
    earlier = earlier_quality(dequantized, quant_table)
    if earlier is not None and earlier < own:
        return CompressionHistory(quality=earlier, resaved=True)
    return CompressionHistory(quality=own, resaved=False)
