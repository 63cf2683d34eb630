"""From the bytes of one picture to the classifier's inputs: the only way in, for fitting and for every server."""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from afd_serve import jpeg
from afd_serve.dct import BLOCK, LEVEL_SHIFT, dct_matrix, dequantize, orient_blocks
from afd_serve.errors import EmptyInputError, NotAnImageError, PictureTooLargeError
from afd_serve.jpeg import JpegImage, JpegLimits
from afd_serve.models.backbones import Preprocessing
from afd_serve.quality import CompressionHistory, compression_history, scaled_table
from afd_serve.transforms import Box, block_grid, crop_box, resize_crop

__all__ = ["ClassifierInputs", "PreparedPicture", "prepare", "stack"]

Buffer = bytes | bytearray | memoryview

_OVERSAMPLING: Final = 2
"""A JPEG is decoded at a reduced scale only while its crop keeps this many times the model's resolution."""


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
    """

    rgb: NDArray[np.uint8]
    dequantized: NDArray[np.int16]
    quant_tables: NDArray[np.int32]
    geometry: NDArray[np.float32]
    history: CompressionHistory
    has_tables: bool

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
    """Make one batch; ``gate[i]`` says whether picture i is to be protected."""
    return ClassifierInputs(
        rgb=torch.from_numpy(np.stack([picture.rgb for picture in pictures])).permute(0, 3, 1, 2),
        dequantized=torch.from_numpy(np.stack([picture.dequantized for picture in pictures])),
        quant_tables=torch.from_numpy(np.stack([picture.quant_tables for picture in pictures])),
        geometry=torch.from_numpy(np.stack([picture.geometry for picture in pictures])),
        gate=torch.tensor([float(is_open) for is_open in gate]),
    )


def prepare(
    data: Buffer,
    preprocessing: Preprocessing,
    *,
    crop: bool = True,
    limits: JpegLimits | None = None,
) -> PreparedPicture:
    """Decode, orient, crop and resize one picture and sample its blocks on the model's grid.

    Args:
        data: A JPEG, or anything that Pillow reads.
        preprocessing: How the backbone was trained.
        crop: False takes the whole picture as the model's crop.
        limits: On bytes, pixels, scans and memory; the defaults of `JpegLimits` where left out.

    Raises:
        InputError: A subclass says what is wrong with the picture.
    """
    limits = limits or JpegLimits()
    if not len(data):
        raise EmptyInputError("the picture has no bytes; send the file's content")
    read = _read_jpeg if jpeg.is_jpeg(data) else _read_other
    return _finish(read(data, preprocessing, crop, limits), preprocessing)


@dataclass(frozen=True)
class _Decoded:
    """A decoded picture, as stored: not yet resized, not yet upright.

    ``box`` is the model's crop in the picture's own pixels and ``shrink`` the scale at which ``pixels`` were decoded.
    """

    pixels: NDArray[np.uint8]
    box: Box
    shrink: float
    blocks: NDArray[np.int16]  # [G, G, 3, 8, 8], dequantized
    quant_tables: NDArray[np.uint16]  # [3, 8, 8]
    subsampling: tuple[float, float]
    orientation: int
    has_tables: bool


def _finish(decoded: _Decoded, preprocessing: Preprocessing) -> PreparedPicture:
    size = preprocessing.size
    rgb = resize_crop(decoded.pixels, _scaled(decoded.box, decoded.shrink), size, preprocessing.interpolation)
    history = compression_history(decoded.blocks[:, :, 0], decoded.quant_tables[0])
    tables = decoded.quant_tables
    if history.resaved:
        earlier = (scaled_table(history.quality), *(scaled_table(history.quality, chroma=True),) * 2)
        tables = np.maximum(tables, np.stack(earlier))
    across, down, horizontal, vertical = *_resolution(decoded.box, size), *decoded.subsampling
    if decoded.orientation >= 5:
        tables, horizontal, vertical = tables.transpose(0, 2, 1), vertical, horizontal
    planes = [orient_blocks(decoded.blocks[:, :, index], decoded.orientation) for index in range(3)]
    grid = planes[0].shape[0]
    return PreparedPicture(
        rgb=_orient_pixels(rgb, decoded.orientation),
        dequantized=np.stack(planes, axis=2).reshape(grid, grid, 3 * BLOCK * BLOCK),
        quant_tables=tables.reshape(3, BLOCK * BLOCK).astype(np.int32),
        geometry=np.log2(np.array([math.sqrt(across * down), horizontal, vertical], np.float32)),
        history=history,
        has_tables=decoded.has_tables,
    )


def _scaled(box: Box, scale: float) -> Box:
    return box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale


def _resolution(box: Box, size: int) -> tuple[float, float]:
    """Picture pixels per model pixel, across and down."""
    return (box[2] - box[0]) / size, (box[3] - box[1]) / size


_ORIENTING: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orient_pixels(rgb: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation not in _ORIENTING:
        return rgb
    return np.asarray(Image.fromarray(rgb).transpose(_ORIENTING[orientation]))


def _read_jpeg(data: Buffer, preprocessing: Preprocessing, crop: bool, limits: JpegLimits) -> _Decoded:
    header = jpeg.read_header(data, limits=limits)
    box: Box = crop_box(header.width, header.height, preprocessing) if crop else (0, 0, header.width, header.height)
    scale = _decoding_scale(box, preprocessing.size)
    image = jpeg.read(data, pixels=True, scale=scale, limits=limits)
    if image.pixels is None:
        raise AssertionError("pixels were asked for")
    shrink = scale / 8
    components = image.components
    if image.color_space in ("ycbcr", "grayscale"):
        blocks = _coefficient_blocks(image, box, preprocessing.size)
    else:  # the components are not Y, Cb, Cr: take those of the pixels, and the tables as they are
        blocks = _pixel_blocks(image.pixels, _scaled(box, shrink), preprocessing.size)
    return _Decoded(
        pixels=image.pixels,
        box=box,
        shrink=shrink,
        blocks=blocks,
        quant_tables=np.stack([components[min(index, len(components) - 1)].quant_table for index in range(3)]),
        subsampling=_subsampling(image),
        orientation=image.orientation,
        has_tables=True,
    )


def _decoding_scale(box: Box, size: int) -> int:
    """The smallest of 1, 2, 4 and 8 eighths that keeps the crop well above the model's resolution."""
    side = min(box[2] - box[0], box[3] - box[1])
    return next(scale for scale in (1, 2, 4, 8) if scale == 8 or side * scale / 8 >= _OVERSAMPLING * size)


def _coefficient_blocks(image: JpegImage, box: Box, size: int) -> NDArray[np.int16]:
    grid = math.ceil(size / BLOCK)
    blocks = np.zeros((grid, grid, 3, BLOCK, BLOCK), np.int16)
    h_max = max(component.h for component in image.components)
    v_max = max(component.v for component in image.components)
    for index, component in enumerate(image.components):
        rows, columns = block_grid(
            box,
            size,
            component.width_in_blocks,
            component.height_in_blocks,
            BLOCK * h_max / component.h,
            BLOCK * v_max / component.v,
        )
        gathered = component.coefficients[rows[:, None], columns[None, :]]
        blocks[:, :, index] = dequantize(gathered, component.quant_table)
    return blocks


def _subsampling(image: JpegImage) -> tuple[float, float]:
    if image.color_space != "ycbcr":
        return 1.0, 1.0
    luma, chroma = image.components[0], image.components[1]
    return luma.h / chroma.h, luma.v / chroma.v


_FORMATS: Final = ("PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
"""What Pillow may open: no format that starts another program (EPS) or that nobody uploads."""


def _read_other(data: Buffer, preprocessing: Preprocessing, crop: bool, limits: JpegLimits) -> _Decoded:
    pixels = _decode_with_pillow(data, limits)
    height, width = pixels.shape[:2]
    box: Box = crop_box(width, height, preprocessing) if crop else (0, 0, width, height)
    return _Decoded(
        pixels=pixels,
        box=box,
        shrink=1.0,
        blocks=_pixel_blocks(pixels, box, preprocessing.size),
        quant_tables=np.ones((3, BLOCK, BLOCK), np.uint16),
        subsampling=(1.0, 1.0),
        orientation=1,
        has_tables=False,
    )


def _decode_with_pillow(data: Buffer, limits: JpegLimits) -> NDArray[np.uint8]:
    if len(data) > limits.max_bytes:
        raise PictureTooLargeError(f"the picture has {len(data)} bytes; the limit is {limits.max_bytes}")
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            warnings.simplefilter("ignore")  # remarks on metadata concern nobody who classifies
            if picture.width * picture.height > limits.max_pixels:
                raise PictureTooLargeError(
                    f"the picture has {picture.width}x{picture.height} pixels; the limit is {limits.max_pixels}"
                )
            return np.asarray(_as_rgb(ImageOps.exif_transpose(picture)))
    except PictureTooLargeError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureTooLargeError(str(error)) from error
    except UnidentifiedImageError as error:
        raise NotAnImageError(f"the bytes are no JPEG, {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}") from error
    except Exception as error:  # Pillow's readers raise whatever their parsing stumbles on
        raise NotAnImageError(f"the picture cannot be decoded: {error}") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits per sample, which Pillow would clip to 255 instead of scaling
        picture = Image.fromarray((np.asarray(picture) // 257).clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")


def _pixel_blocks(pixels: NDArray[np.uint8], box: Box, size: int) -> NDArray[np.int16]:
    """The blocks [G, G, 3, 8, 8] that a JPEG of these pixels (4:4:4, quantized by 1) would have under the cells."""
    rows_in_blocks, columns_in_blocks = (math.ceil(side / BLOCK) for side in pixels.shape[:2])
    rows, columns = block_grid(box, size, columns_in_blocks, rows_in_blocks, BLOCK, BLOCK)
    ycbcr = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    y = _sample_indices(rows, pixels.shape[0])
    x = _sample_indices(columns, pixels.shape[1])
    samples = ycbcr[y[:, None, :, None], x[None, :, None, :]].astype(np.float32) - LEVEL_SHIFT
    matrix = dct_matrix(torch.float32).numpy()
    coefficients: NDArray[np.float32] = np.einsum("va,ghabc,ub->ghcvu", matrix, samples, matrix, optimize=True)
    blocks: NDArray[np.int16] = coefficients.round().astype(np.int16)
    return blocks


def _sample_indices(blocks: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Sample positions [G, 8] of blocks [G] along an axis; the edge is repeated past the end, as encoders do."""
    positions: NDArray[np.int64] = blocks[:, None] * BLOCK + np.arange(BLOCK)
    return positions.clip(max=length - 1)
