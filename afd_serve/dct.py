"""The reference maths of the JPEG transform, in torch: differentiable, batched, independent of the codec.

A *block* is 8x8 with row ``v`` (vertical frequency) and column ``u`` (horizontal frequency), in natural order.
"""

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "ZIGZAG_TO_NATURAL",
    "block_dct",
    "block_idct",
    "blockify",
    "dct_matrix",
    "dequantize",
    "orient_blocks",
    "rgb_to_ycbcr",
    "unblockify",
    "ycbcr_to_rgb",
]

BLOCK: Final = 8
"""Side of a block in samples."""

LEVEL_SHIFT: Final = 128.0
"""Subtracted from 8-bit samples before the forward transform (ITU-T T.81, A.3.1)."""


def _zigzag_to_natural() -> tuple[int, ...]:
    cells = [(row, column) for row in range(BLOCK) for column in range(BLOCK)]
    # Diagonals alternate direction: even ones run up and to the right, odd ones down and to the left.
    cells.sort(key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]))
    return tuple(row * BLOCK + column for row, column in cells)


ZIGZAG_TO_NATURAL: Final = _zigzag_to_natural()
"""Natural-order index of each zigzag position (ITU-T T.81, figure A.6)."""


def dct_matrix(dtype: torch.dtype = torch.float64) -> Tensor:
    """The orthonormal 8-point DCT-II matrix ``C`` [8, 8]: ``C @ x`` transforms a column of samples.

    Source: ITU-T T.81, A.3.3, written as a matrix product.
    """
    frequency = torch.arange(BLOCK, dtype=torch.float64).unsqueeze(1)
    sample = torch.arange(BLOCK, dtype=torch.float64).unsqueeze(0)
    matrix = torch.cos((2 * sample + 1) * frequency * math.pi / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix.to(dtype)


def blockify(plane: Tensor) -> Tensor:
    """Cut planes [..., H, W] (multiples of 8) into blocks [..., H/8, W/8, 8, 8]."""
    height, width = plane.shape[-2:]
    if height % BLOCK or width % BLOCK:
        raise ValueError(f"a plane of {width}x{height} is not a whole number of 8x8 blocks; pad it first")
    blocks = plane.reshape(*plane.shape[:-2], height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return blocks.transpose(-3, -2)


def unblockify(blocks: Tensor) -> Tensor:
    """Put blocks [..., Hb, Wb, 8, 8] back into planes [..., 8*Hb, 8*Wb]."""
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)


def block_dct(samples: Tensor) -> Tensor:
    """Forward DCT of level-shifted sample blocks [..., 8, 8] (float) to dequantized coefficients of the same shape."""
    matrix = dct_matrix(samples.dtype).to(samples.device)
    return matrix @ samples @ matrix.T


def block_idct(dequantized: Tensor) -> Tensor:
    """Inverse DCT of dequantized coefficient blocks [..., 8, 8] (float) to level-shifted samples."""
    matrix = dct_matrix(dequantized.dtype).to(dequantized.device)
    return matrix.T @ dequantized @ matrix


def dequantize(coefficients: np.ndarray, quant_table: np.ndarray) -> np.ndarray:
    """Multiply coefficients [..., 8, 8] (int16) by their table [8, 8] (uint16); the result saturates at int16.

    No sound 8-bit picture needs more than 12 bits here, so only a hostile one is clipped.
    """
    product = coefficients.astype(np.int32) * quant_table.astype(np.int32)
    return np.clip(product, -32768, 32767).astype(np.int16)


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """RGB [..., 3, H, W] in 0..255 to full-range YCbCr of the same shape (JFIF 1.02, chroma centred on 128)."""
    red, green, blue = rgb.unbind(-3)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb = (blue - luma) / 1.772 + 128.0
    cr = (red - luma) / 1.402 + 128.0
    return torch.stack((luma, cb, cr), dim=-3)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of `rgb_to_ycbcr`, unclipped."""
    luma, cb, cr = ycbcr.unbind(-3)
    red = luma + 1.402 * (cr - 128.0)
    blue = luma + 1.772 * (cb - 128.0)
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack((red, green, blue), dim=-3)


def orient_blocks(blocks: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate or flip a grid of blocks [Hb, Wb, 8, 8] as an EXIF orientation asks, in the DCT domain.

    Mirroring a block negates its odd frequencies along that axis; transposing it swaps ``u`` and ``v``.

    Args:
        blocks: Coefficients or dequantized coefficients, natural order, any signed dtype.
        orientation: EXIF orientation, 1 to 8.

    Returns:
        The grid as an upright picture would have it; a view where nothing changes.
    """
    alternating = np.where(np.arange(BLOCK) % 2, -1, 1).astype(blocks.dtype)
    if orientation in (5, 6, 7, 8):
        blocks = blocks.transpose(1, 0, 3, 2)
    if orientation in (2, 3, 6, 7):
        blocks = blocks[:, ::-1] * alternating
    if orientation in (3, 4, 7, 8):
        blocks = blocks[::-1] * alternating[:, None]
    return blocks
