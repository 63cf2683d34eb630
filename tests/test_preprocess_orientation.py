"""Pictures that are stored turned or mirrored reach the model upright, pixels and blocks alike."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from afd_serve import _jpeg, jpeg
from afd_serve.dct import dequantize, orient_blocks
from afd_serve.models.backbones import Preprocessing
from afd_serve.preprocess import prepare
from afd_serve.transforms import block_grid, crop_box, resize_crop
from tests.conftest import encoded, scene
from tests.jpeg_files import after_soi, exif_segment, pillow_jpeg

PREPROCESSING = Preprocessing(64, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_upright_picture(orientation: int) -> None:
    upright = prepare(encoded(_oriented(orientation, "PNG"), "PNG"), PREPROCESSING)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = prepare(encoded(scene(96, 80), quality=100, subsampling=0, exif=exif), PREPROCESSING)
    assert np.abs(stored.rgb.astype(int) - upright.rgb).mean() < 1.0
    assert np.abs(stored.dequantized.astype(int) - upright.dequantized).mean() < 1.0


def turned_jpeg(width: int, height: int, orientation: int, mode: str = "RGB", **options: object) -> bytes:
    return after_soi(pillow_jpeg(width, height, mode, quality=95, **options), exif_segment(orientation))


def upright_crop(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    whole = jpeg.read(data, pixels=True, apply_orientation=True).pixels
    box = crop_box(whole.shape[1], whole.shape[0], preprocessing)
    scale = _jpeg.decoding_scale(box, preprocessing.size)
    pixels = jpeg.read(data, pixels=True, scale=scale, apply_orientation=True).pixels
    left, top, right, bottom = (side * scale / 8 for side in box)
    return resize_crop(pixels, (left, top, right, bottom), preprocessing.size, preprocessing.interpolation)


# Their margins are odd along one axis or both; the last one is decoded at a reduced scale.
@pytest.mark.parametrize(("width", "height"), [(97, 80), (80, 97), (98, 98), (504, 376)])
@pytest.mark.parametrize("size", [64, 60, 260])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_the_upright_pictures_crop(width: int, height: int, size: int, mode: str, orientation: int) -> None:
    data = turned_jpeg(width, height, orientation, mode)
    preprocessing = Preprocessing(size, 0.875, "bicubic", (0.0,) * 3, (1.0,) * 3)
    difference = np.abs(prepare(data, preprocessing).rgb.astype(int) - upright_crop(data, preprocessing))
    if orientation < 5:
        assert difference.max() == 0
    else:  # the passes of the resize, which rounds after each, take turns
        assert difference.mean() < 0.5


@pytest.mark.parametrize("size", [64, 60, 260])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_blocks_are_those_of_the_losslessly_turned_picture(size: int, subsampling: int, orientation: int) -> None:
    data = turned_jpeg(560, 528, orientation, subsampling=subsampling)
    preprocessing = Preprocessing(size, 0.9, "bicubic", (0.0,) * 3, (1.0,) * 3)
    picture = prepare(data, preprocessing)
    for index, part in enumerate(jpeg.read(data).components):
        upright = orient_blocks(dequantize(part.coefficients, part.quant_table), orientation)
        height, width = upright.shape[:2]
        block = 8 if index == 0 or subsampling == 0 else 16
        box = crop_box(block * width, block * height, preprocessing)
        rows, columns = block_grid(box, size, width, height, block, block)
        expected = upright[np.ix_(rows, columns)].reshape(len(rows), len(columns), 64)
        assert np.array_equal(picture.dequantized[:, :, 64 * index : 64 * (index + 1)], expected)


@pytest.mark.parametrize("size", [64, 60])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_blocks_of_other_components_are_those_of_the_upright_pixels(size: int, orientation: int) -> None:
    data = turned_jpeg(104, 88, orientation, "CMYK")
    preprocessing = Preprocessing(size, 0.875, "bicubic", (0.0,) * 3, (1.0,) * 3)
    upright = Image.fromarray(jpeg.read(data, pixels=True, apply_orientation=True).pixels)
    expected = prepare(encoded(upright, "PNG"), preprocessing).dequantized
    difference = np.abs(prepare(data, preprocessing).dequantized.astype(int) - expected)
    assert difference.max() <= 1  # halves go up, whatever the sign


def _oriented(orientation: int, kind: str) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(BytesIO(encoded(scene(96, 80), kind, exif=exif))) as stored:
        turned = ImageOps.exif_transpose(stored)
        turned.load()
    return turned
