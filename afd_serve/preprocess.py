"""From the bytes of one picture to the classifier's inputs: the only way in, for fitting and for every server."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from afd_serve import _jpeg, jpeg
from afd_serve.dct import BLOCK, LEVEL_SHIFT, dct_matrix
from afd_serve.errors import EmptyInputError
from afd_serve.jpeg import JpegLimits
from afd_serve.other_formats import PICTURE_SUFFIXES, UNREADABLE, Buffer, as_rgb, decode
from afd_serve.quality import CompressionHistory, is_starved
from afd_serve.transforms import Box, Preprocessing, block_grid, crop_box

__all__ = [
    "PICTURE_SUFFIXES",
    "UNREADABLE",
    "Buffer",
    "ClassifierInputs",
    "PreparedPicture",
    "as_rgb",
    "prepare",
    "stack",
]


@dataclass(frozen=True)
class PreparedPicture:
    """One picture as the classifier takes it.

    Attributes:
        rgb: uint8 [S, S, 3].
        dequantized: int16 [G, G, 192], G = ceil(S / 8): the Y, Cb and Cr block under each cell of the block grid.
        quant_tables: int32 [3, 64], natural order; the heaviest tables that the picture's history shows.
        geometry: float32 [3]: log2 of picture pixels per model pixel; log2 of the chroma subsampling (h, v).
        history: What is known of its compressions.
        has_tables: Whether the picture carries quantization tables (a JPEG does).
        starved: Whether it has none because a codec compressed it heavily that has none, see `quality.is_starved`.
    """

    rgb: NDArray[np.uint8]
    dequantized: NDArray[np.int16]
    quant_tables: NDArray[np.int32]
    geometry: NDArray[np.float32]
    history: CompressionHistory
    has_tables: bool
    starved: bool = False

    @property
    def good(self) -> bool:
        """Whether the gate may stay closed."""
        return self.history.good(self.reduction) and not self.starved

    @property
    def reduction(self) -> float:
        """Picture pixels per model pixel, along a side; below 1 where the picture is enlarged."""
        return float(2 ** self.geometry[0])

    @property
    def estimated_quality(self) -> int | None:
        """QF of the heaviest compression found; None where nothing tells."""
        return self.history.quality if self.has_tables or self.history.resaved else None


class ClassifierInputs(NamedTuple):
    """A batch in the order of `AfdClassifier.forward`."""

    rgb: Tensor
    dequantized: Tensor
    quant_tables: Tensor
    geometry: Tensor
    gate: Tensor


def stack(pictures: Sequence[PreparedPicture], gate: Sequence[bool]) -> ClassifierInputs:
    """Make one batch; ``gate[i]`` says whether picture i is to be protected. A single picture's memory is shared."""
    return ClassifierInputs(
        rgb=_rows([picture.rgb for picture in pictures]).permute(0, 3, 1, 2),
        dequantized=_rows([picture.dequantized for picture in pictures]),
        quant_tables=_rows([picture.quant_tables for picture in pictures]),
        geometry=_rows([picture.geometry for picture in pictures]),
        gate=torch.tensor([float(is_open) for is_open in gate]),
    )


def _rows(arrays: Sequence[NDArray[Any]]) -> Tensor:
    """One array per row; a single one is not copied."""
    return torch.from_numpy(arrays[0][None] if len(arrays) == 1 else np.stack(arrays))


def prepare(
    data: Buffer,
    preprocessing: Preprocessing,
    *,
    crop: bool = True,
    limits: JpegLimits | None = None,
) -> PreparedPicture:
    """Decode, orient, crop and resize one picture and sample its blocks on the model's grid.

    Args:
        data: A JPEG, or a picture in one of `other_formats.FORMATS`, in any contiguous buffer, which nobody changes
            meanwhile.
        preprocessing: How the backbone was trained.
        crop: False takes the whole picture as the model's crop.
        limits: On bytes, pixels, scans and memory; the defaults of `JpegLimits` where left out. Pillow has a limit of
            its own on the pixels of other formats than JPEG, about 179 million, which counts where these are higher.

    Raises:
        InputError: A subclass says what is wrong with the picture.
        MemoryError: The system refused memory that the limits allow.
        TypeError: The data are no contiguous buffer.
    """
    limits = limits or JpegLimits()
    data = memoryview(data)
    if not data.nbytes:
        raise EmptyInputError("the picture has no bytes; send the file's content")
    data = data.cast("B")  # whose items are bytes, whatever those of the data are
    if not jpeg.is_jpeg(data):
        pixels = decode(data, limits)
        picture = _prepare_pixels(pixels, preprocessing, crop)
        return replace(picture, starved=is_starved(data, pixels.shape[0] * pixels.shape[1], picture.reduction))
    prepared = _jpeg.prepare(
        data,
        jpeg.native_limits(limits),
        size=preprocessing.size,
        crop_fraction=preprocessing.crop_fraction if crop else None,
        interpolation=preprocessing.interpolation,
    )
    if prepared is None:
        return _prepare_other_components(data, preprocessing, crop, limits)
    return _picture(
        prepared.rgb,
        prepared.features,
        _geometry(prepared.box, preprocessing.size, prepared.subsampling),
        has_tables=True,
    )


def _picture(
    rgb: NDArray[np.uint8], features: _jpeg.BlockFeatures, geometry: NDArray[np.float32], *, has_tables: bool
) -> PreparedPicture:
    return PreparedPicture(
        rgb=rgb,
        dequantized=features.dequantized,
        quant_tables=features.quant_tables,
        geometry=geometry,
        history=CompressionHistory(quality=features.quality, resaved=features.resaved),
        has_tables=has_tables,
    )


def _geometry(box: Box, size: int, subsampling: tuple[float, float]) -> NDArray[np.float32]:
    across, down = (box[2] - box[0]) / size, (box[3] - box[1]) / size
    geometry: NDArray[np.float32] = np.log2(np.array([math.sqrt(across * down), *subsampling], np.float32))
    return geometry


def _prepare_other_components(
    data: Buffer, preprocessing: Preprocessing, crop: bool, limits: JpegLimits
) -> PreparedPicture:
    """A JPEG whose components are not Y, Cb, Cr: the blocks are those of its pixels, and the tables as they are."""
    header = jpeg.read_header(data, limits=limits)
    box = _crop(header.width, header.height, preprocessing, crop, header.orientation)
    scale = _jpeg.decoding_scale(box, preprocessing.size)
    image = jpeg.read(data, pixels=True, scale=scale, limits=limits)
    if image.pixels is None:
        raise AssertionError("pixels were asked for")
    left, top, right, bottom = (side * (scale / 8) for side in box)
    tables = [image.components[min(index, len(image.components) - 1)].quant_table for index in range(3)]
    rgb, features = _model_inputs(
        image.pixels, (left, top, right, bottom), preprocessing, np.stack(tables), image.orientation
    )
    return _picture(rgb, features, _geometry(box, preprocessing.size, (1.0, 1.0)), has_tables=True)


def _prepare_pixels(pixels: NDArray[np.uint8], preprocessing: Preprocessing, crop: bool) -> PreparedPicture:
    """An upright picture of a format that has no tables."""
    height, width = pixels.shape[:2]
    box = _crop(width, height, preprocessing, crop)
    tables = np.ones((3, BLOCK, BLOCK), np.uint16)
    rgb, features = _model_inputs(pixels, box, preprocessing, tables, orientation=1)
    return _picture(rgb, features, _geometry(box, preprocessing.size, (1.0, 1.0)), has_tables=False)


def _crop(width: int, height: int, preprocessing: Preprocessing, crop: bool, orientation: int = 1) -> Box:
    return crop_box(width, height, preprocessing, orientation) if crop else (0, 0, width, height)


def _model_inputs(
    pixels: NDArray[np.uint8],
    box: Box,
    preprocessing: Preprocessing,
    quant_tables: NDArray[np.uint16],
    orientation: int,
) -> tuple[NDArray[np.uint8], _jpeg.BlockFeatures]:
    """The upright crop of stored pixels, and features from the blocks that those pixels would have."""
    rgb = _jpeg.resample(pixels, box, preprocessing.size, preprocessing.interpolation, orientation=orientation)
    blocks = _pixel_blocks(pixels, box, preprocessing.size, orientation)
    return rgb, _jpeg.block_features(blocks, quant_tables, orientation)


def _pixel_blocks(pixels: NDArray[np.uint8], box: Box, size: int, orientation: int) -> NDArray[np.int16]:
    """The blocks [G, G, 3, 8, 8] that a JPEG of these pixels (4:4:4, quantized by 1) would have under the cells.

    Pixels, box and blocks are as stored; the cells are those of the upright picture.
    """
    rows_in_blocks, columns_in_blocks = (math.ceil(side / BLOCK) for side in pixels.shape[:2])
    rows, columns = block_grid(box, size, columns_in_blocks, rows_in_blocks, BLOCK, BLOCK, orientation)
    y = _sample_indices(rows, pixels.shape[0])
    x = _sample_indices(columns, pixels.shape[1])
    # Only what is sampled is converted: there are few cells, however many pixels the picture has.
    rgb = pixels[y[:, None, :, None], x[None, :, None, :]]
    ycbcr = np.asarray(Image.fromarray(rgb.reshape(-1, rgb.shape[1] * BLOCK * BLOCK, 3)).convert("YCbCr"))
    samples = ycbcr.reshape(rgb.shape).astype(np.float64) - LEVEL_SHIFT
    matrix = dct_matrix().numpy()
    coefficients: NDArray[np.float64] = np.einsum("va,ghabc,ub->ghcvu", matrix, samples, matrix, optimize=True)
    # Whole samples often make halves: they go up on every machine, whatever its sums left in the last bits.
    blocks: NDArray[np.int16] = np.floor(coefficients + (0.5 + 1e-6)).astype(np.int16)
    return blocks


def _sample_indices(blocks: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Sample positions [G, 8] of blocks [G] along an axis; the edge is repeated past the end, as encoders do."""
    positions: NDArray[np.int64] = blocks[:, None] * BLOCK + np.arange(BLOCK)
    return positions.clip(max=length - 1)
