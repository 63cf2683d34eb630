"""One picture's way to the model's inputs."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from afd_serve import jpeg
from afd_serve.dct import dequantize
from afd_serve.errors import (
    EmptyInputError,
    InputError,
    JpegTooLargeError,
    NotAnImageError,
    PictureTooLargeError,
    TruncatedJpegError,
)
from afd_serve.jpeg import JpegLimits
from afd_serve.models.backbones import Preprocessing
from afd_serve.preprocess import prepare, stack
from afd_serve.quality import scaled_table
from afd_serve.transforms import crop_box
from tests.conftest import encoded, recompressed, scene

PREPROCESSING = Preprocessing(64, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)


def pillows(picture: Image.Image) -> np.ndarray:
    box = crop_box(*picture.size, PREPROCESSING)
    return np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC, box=box))


def test_pixels_are_pillows_resized_crop() -> None:
    data = encoded(scene(150, 110), quality=40)
    assert np.array_equal(prepare(data, PREPROCESSING).rgb, pillows(_decoded(data)))


def test_a_crop_at_the_models_size_keeps_its_pixels_and_its_very_blocks() -> None:
    data = encoded(scene(64, 64), quality=30, subsampling=0)
    picture = prepare(data, PREPROCESSING, crop=False)
    image = jpeg.read(data, pixels=True)
    assert np.array_equal(picture.rgb, image.pixels)
    for index, component in enumerate(image.components):
        stored = dequantize(component.coefficients, component.quant_table).reshape(8, 8, 64)
        assert np.array_equal(picture.dequantized[:, :, 64 * index : 64 * (index + 1)], stored)
        assert np.array_equal(picture.quant_tables[index], component.quant_table.reshape(64))
    assert picture.geometry.tolist() == [0.0, 0.0, 0.0]


def test_subsampled_chroma_is_spread_over_the_grid() -> None:
    picture = prepare(encoded(scene(64, 64), quality=30, subsampling=2), PREPROCESSING, crop=False)
    chroma = picture.dequantized[:, :, 64:]
    assert np.array_equal(chroma[0::2], chroma[1::2])
    assert np.array_equal(chroma[:, 0::2], chroma[:, 1::2])
    assert picture.geometry.tolist() == [0.0, 1.0, 1.0]


def test_geometry_tells_the_pictures_resolution() -> None:
    picture = prepare(encoded(scene(256, 256), quality=50, subsampling=0), PREPROCESSING, crop=False)
    assert picture.geometry[0] == pytest.approx(2.0)


def test_a_large_picture_is_decoded_at_a_reduced_scale_with_nearly_the_same_pixels() -> None:
    smooth = scene(160, 160).resize((1600, 1600), Image.Resampling.BICUBIC)
    data = encoded(smooth, quality=90)
    difference = prepare(data, PREPROCESSING).rgb.astype(int) - pillows(_decoded(data))
    assert np.abs(difference).mean() < 1.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_spaces_are_accepted(mode: str) -> None:
    picture = prepare(encoded(scene(90, 70).convert(mode), quality=50), PREPROCESSING)
    assert picture.rgb.shape == (64, 64, 3)
    assert picture.estimated_quality == 50


def test_grayscale_has_empty_chroma_blocks() -> None:
    picture = prepare(encoded(scene().convert("L"), quality=50), PREPROCESSING)
    assert picture.dequantized[:, :, :64].any()
    assert not picture.dequantized[:, :, 64:].any()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_carry_no_tables_and_pass_as_good(kind: str) -> None:
    picture = prepare(encoded(scene(), kind), PREPROCESSING)
    assert not picture.has_tables
    assert picture.estimated_quality is None
    assert picture.history.good


def test_sixteen_bits_per_sample_are_scaled_not_clipped() -> None:
    grey = np.asarray(scene().convert("L"))
    deep = prepare(encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), PREPROCESSING)
    assert np.array_equal(deep.rgb, prepare(encoded(Image.fromarray(grey), "PNG"), PREPROCESSING).rgb)


def test_a_png_of_a_decoded_jpeg_shows_the_jpegs_compression() -> None:
    data = encoded(scene(224, 224), quality=12, subsampling=0)
    size = Preprocessing(224, 1.0, "bicubic", (0.0,) * 3, (1.0,) * 3)
    through_png = prepare(encoded(_decoded(data), "PNG"), size, crop=False)
    direct = prepare(data, size, crop=False)
    assert np.array_equal(through_png.rgb, direct.rgb)
    assert through_png.estimated_quality == pytest.approx(12, abs=2)
    assert np.abs(through_png.dequantized.astype(int) - direct.dequantized).mean() < 1.0


def test_a_resaved_picture_carries_the_heavier_tables() -> None:
    size = Preprocessing(224, 1.0, "bicubic", (0.0,) * 3, (1.0,) * 3)
    picture = prepare(recompressed(scene(224, 224), 10, 95), size, crop=False)
    assert picture.history.resaved
    assert (picture.quant_tables[0] >= scaled_table(15).reshape(64)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_upright_picture(orientation: int) -> None:
    upright = prepare(encoded(_oriented(orientation, "PNG"), "PNG"), PREPROCESSING)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = prepare(encoded(scene(96, 80), quality=100, subsampling=0, exif=exif), PREPROCESSING)
    assert np.abs(stored.rgb.astype(int) - upright.rgb).mean() < 1.0
    assert np.abs(stored.dequantized.astype(int) - upright.dequantized).mean() < 1.0


def _oriented(orientation: int, kind: str) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(BytesIO(encoded(scene(96, 80), kind, exif=exif))) as stored:
        turned = ImageOps.exif_transpose(stored)
        turned.load()
    return turned


def _decoded(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as picture:
        return picture.convert("RGB")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyInputError),
        (b"hello", NotAnImageError),
        (bytes(1000), NotAnImageError),
        (encoded(scene(), "PNG")[:300], NotAnImageError),
        (encoded(scene(), quality=50)[:-200], TruncatedJpegError),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NotAnImageError),
    ],
)
def test_bad_input_gets_its_own_error(data: bytes, error: type[InputError]) -> None:
    with pytest.raises(error):
        prepare(data, PREPROCESSING)


def test_limits_hold_for_every_format() -> None:
    few = JpegLimits(max_pixels=1000)
    with pytest.raises(JpegTooLargeError):
        prepare(encoded(scene(), quality=50), PREPROCESSING, limits=few)
    with pytest.raises(PictureTooLargeError, match="96x80"):
        prepare(encoded(scene(), "PNG"), PREPROCESSING, limits=few)
    with pytest.raises(PictureTooLargeError, match="bytes"):
        prepare(encoded(scene(), "PNG"), PREPROCESSING, limits=JpegLimits(max_bytes=100))


def test_stack_makes_the_classifiers_inputs() -> None:
    pictures = [prepare(encoded(scene(seed=seed), quality=20), PREPROCESSING) for seed in range(3)]
    inputs = stack(pictures, [True, False, True])
    assert [tuple(tensor.shape) for tensor in inputs] == [(3, 3, 64, 64), (3, 8, 8, 192), (3, 3, 64), (3, 3), (3,)]
    assert inputs.gate.tolist() == [1.0, 0.0, 1.0]
