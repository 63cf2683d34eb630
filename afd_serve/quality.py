"""What a picture's tables and coefficients tell of its compression: quality factor, earlier compressions, the gate.

Everything here is in libjpeg's quality factors (QF): the standard luminance table of ITU-T T.81, K.1, scaled by
200 - 2 QF per cent above 50 and 5000 / QF per cent below.

Note [When compression does no harm]
    AFD moves every picture's features a little, so the gate opens only where compression did more harm than that. A
    classifier sees a large picture reduced, and with it the errors of quantization: at QF 75 a picture at the model's
    own size needs AFD, one of twice that size is better left alone. `benchmarks/gate.py` compresses photographs of 1 to
    4 times the model's size and tells where the probabilities of the bare and of the protected classifier are equally
    far (KL divergence) from those of the uncompressed picture. For EfficientNet-Lite0, 1 and 2 that is at QF 90 or more
    for no reduction, at 84 to 87 for 1.2 times, 80 to 84 for 1.45, 64 to 74 for 2, 48 to 60 for 2.8 and 33 to 36 for 4.
    Where AFD would gain little it is left out too: the gate's line, straight in the standard tables' scale, is a few
    steps of QF below these. WebP does as much harm as AFD at 1.7 bits per pixel for no reduction, at 0.8 for 1.45
    times, 0.6 for 2 and 0.3 for 2.8.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afd_serve import _jpeg

__all__ = [
    "CompressionHistory",
    "compression_history",
    "earlier_quality",
    "estimate_quality",
    "harmless_from",
    "is_starved",
    "scaled_table",
]

_HARMLESS_SCALE: Final = 30
"""Scale of the standard tables, per cent, that does no harm to a picture at the model's own size: that of QF 85."""


def harmless_from(quality: int) -> float:
    """How many times a picture of this QF has to be reduced for its compression to do no harm; 0 for any size.

    See Note [When compression does no harm].
    """
    scale = 200 - 2 * quality if quality >= 50 else 5000 / quality
    return 0.0 if scale <= _HARMLESS_SCALE else (scale + 25) / 55  # reduced r times: 55 r - 25 per cent


_FEW_BITS: Final = 1.5
"""Bits per pixel below which another lossy codec harms a picture at its own size."""


def is_starved(data: bytes | bytearray | memoryview, pixels: int, reduction: float) -> bool:
    """Whether a WebP or an AVIF spent so few bits on its ``pixels`` that it does harm, reduced ``reduction`` times.

    Their quantizers lie deep in the coded stream; the bits per pixel tell nearly as much. See Note [When compression
    does no harm].
    """
    coded = _lossy_bytes(data)
    return coded is not None and 8 * coded < _FEW_BITS * pixels / max(1.0, reduction) ** 1.5


def _lossy_bytes(data: bytes | bytearray | memoryview) -> int | None:
    """How many bytes of a WebP or an AVIF hold a lossy picture, without profiles and metadata; None without one."""
    head = bytes(data[:12])
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return _lossy_webp_bytes(data)
    if head[4:8] == b"ftyp":  # whatever its brands: of the formats that `preprocess` opens, only AVIF begins so
        return sum(size for kind, size in islice(_boxes(data), _MOST_BOXES) if kind == b"mdat")
    return None


_CHUNKS_BEFORE_THE_PICTURE: Final = 16


def _lossy_webp_bytes(data: bytes | bytearray | memoryview) -> int | None:
    """Bytes of the first frame, a chunk ``VP8 `` (RFC 9649, 2.5); None where it is a ``VP8L``."""
    start = 12
    for _ in range(_CHUNKS_BEFORE_THE_PICTURE):
        kind, size = bytes(data[start : start + 4]), int.from_bytes(data[start + 4 : start + 8], "little")
        if kind in (b"VP8 ", b"VP8L", b""):
            return size if kind == b"VP8 " else None
        # An animation's frame is a chunk that holds chunks, behind 16 bytes of its own.
        start += 8 + (16 if kind == b"ANMF" else size + size % 2)
    return None


_MOST_BOXES: Final = 64


def _boxes(data: bytes | bytearray | memoryview) -> Iterator[tuple[bytes, int]]:
    """Type and size of a file's boxes (ISO/IEC 14496-12, 4.2)."""
    start = 0
    while start + 8 <= len(data):
        size, kind = int.from_bytes(data[start : start + 4], "big"), bytes(data[start + 4 : start + 8])
        if size == 1:
            size = int.from_bytes(data[start + 8 : start + 16], "big")
        if size < 8:  # 0: it goes on to the file's end
            size = len(data) - start
        yield kind, size
        start += size


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

    def good(self, reduction: float) -> bool:
        """Whether the gate may stay closed where a classifier sees the picture reduced ``reduction`` times."""
        return reduction >= harmless_from(self.quality)


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
