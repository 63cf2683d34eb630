"""The way of pictures in other formats than JPEG, which Pillow reads."""

import warnings
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, features

from afd_serve.errors import JpegTooLargeError, NotAnImageError, PictureTooLargeError
from afd_serve.jpeg import JpegLimits
from afd_serve.models.backbones import Preprocessing
from afd_serve.preprocess import _FORMATS, PICTURE_SUFFIXES, prepare
from tests.conftest import decoded, encoded, scene

PREPROCESSING = Preprocessing(64, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)


def test_threads_leave_the_filters_of_warnings_as_they_were() -> None:
    png, before = encoded(scene(), "PNG"), list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: prepare(png, PREPROCESSING), range(400)))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM"])
def test_other_formats_carry_no_tables_and_pass_as_good(kind: str) -> None:
    picture = prepare(encoded(scene(), kind, quality=100), PREPROCESSING)
    assert not picture.has_tables
    assert picture.estimated_quality is None
    assert picture.good


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA"])
def test_formats_that_start_another_program_or_that_nobody_uploads_are_not_even_opened(kind: str) -> None:
    with pytest.raises(
        NotAnImageError, match="the bytes are no JPEG, PNG, WEBP, AVIF, GIF, BMP, TIFF, JPEG2000 or PPM"
    ):
        prepare(encoded(scene(), kind), PREPROCESSING)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
@pytest.mark.parametrize(("quality", "good"), [(5, False), (100, True)])
def test_other_lossy_codecs_are_judged_by_the_bits_that_they_spent(kind: str, quality: int, good: bool) -> None:
    if not features.check(kind.lower()):
        pytest.skip(f"this Pillow writes no {kind}")
    assert prepare(encoded(scene(64, 64), kind, quality=quality), PREPROCESSING, crop=False).good is good


@pytest.mark.parametrize("damaged", [b"garbage", b"II*\0", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_damaged_metadata_do_no_harm(kind: str, damaged: bytes) -> None:
    data = encoded(scene(), kind, exif=b"Exif\0\0" + damaged)
    assert np.array_equal(prepare(data, PREPROCESSING).rgb, prepare(encoded(scene(), kind), PREPROCESSING).rgb)


@pytest.mark.parametrize("shape", [(65501, 1), (1, 65501)])
def test_sides_that_no_jpeg_can_have_are_refused(shape: tuple[int, int]) -> None:
    """To reduce them would take more memory than their pixels do, and more time."""
    with pytest.raises(PictureTooLargeError, match=f"{shape[0]}x{shape[1]} pixels; no side may have more than 65500"):
        prepare(encoded(Image.new("L", shape), "PNG"), PREPROCESSING, crop=False)
    longest = encoded(Image.new("L", (min(shape[0], 65500), min(shape[1], 65500))), "PNG")
    assert not prepare(longest, PREPROCESSING, crop=False).rgb.any()


def test_want_of_memory_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(MemoryError):
        prepare(encoded(scene(), "PNG"), PREPROCESSING)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_items_of_a_buffer_may_be_larger_than_bytes(kind: str) -> None:
    data = encoded(scene(), kind)
    padded = data + bytes(-len(data) % 8)
    expected = prepare(padded, PREPROCESSING).rgb
    for items in (array("d", padded), memoryview(padded).cast("i"), np.frombuffer(padded, np.uint8).reshape(4, -1)):
        assert np.array_equal(prepare(items, PREPROCESSING).rgb, expected)
        with pytest.raises(PictureTooLargeError if kind == "PNG" else JpegTooLargeError):
            prepare(items, PREPROCESSING, limits=JpegLimits(max_bytes=len(data) // 2))
    with pytest.raises(TypeError):
        prepare(np.frombuffer(padded, np.uint8)[::2], PREPROCESSING)


@pytest.mark.parametrize("shape", [(200, 50), (50, 200)])
def test_bits_are_spent_on_all_pixels_whatever_the_pictures_shape(shape: tuple[int, int]) -> None:
    assert not prepare(encoded(scene(*shape), "WEBP", quality=5), PREPROCESSING, crop=False).good


@pytest.mark.parametrize(("size", "good"), [(256, False), (64, True)])
def test_few_bits_do_no_harm_where_the_picture_is_reduced(size: int, good: bool) -> None:
    few = encoded(scene(256, 256), "WEBP", quality=20)
    assert prepare(few, replace(PREPROCESSING, size=size), crop=False).good is good


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pictures_are_good_however_few_their_bits(kind: str) -> None:
    flat = Image.new("RGB", (320, 240), (200, 30, 40))
    assert prepare(encoded(flat, kind, lossless=True), PREPROCESSING).good


def test_blocks_over_the_edge_repeat_the_last_pixels_as_encoders_do() -> None:
    def blocks(pixels: np.ndarray) -> np.ndarray:
        own_size = replace(PREPROCESSING, size=len(pixels))
        return prepare(encoded(Image.fromarray(pixels), "PNG"), own_size, crop=False).dequantized

    pixels = np.asarray(scene(60, 60))
    assert np.array_equal(blocks(pixels), blocks(np.pad(pixels, ((0, 4), (0, 4), (0, 0)), "edge")))


def test_sixteen_bits_per_sample_are_scaled_not_clipped() -> None:
    grey = np.asarray(scene().convert("L"))
    deep = prepare(encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), PREPROCESSING)
    assert np.array_equal(deep.rgb, prepare(encoded(Image.fromarray(grey), "PNG"), PREPROCESSING).rgb)


def test_files_are_known_by_the_suffixes_of_the_formats_that_are_read() -> None:
    if not (features.check("webp") and features.check("avif")):
        pytest.skip("this Pillow lacks formats")
    by_suffix = Image.registered_extensions()
    assert {suffix for suffix, kind in by_suffix.items() if kind in ("JPEG", *_FORMATS)} == PICTURE_SUFFIXES | {".pfm"}
    for suffix in PICTURE_SUFFIXES:
        kind = by_suffix[suffix]
        picture = scene().convert("1" if suffix == ".pbm" else "RGB")
        assert prepare(encoded(picture, kind), PREPROCESSING).has_tables is (kind == "JPEG")


def test_floating_point_samples_are_refused_not_guessed_at() -> None:
    shades = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    with pytest.raises(NotAnImageError, match=r"floating-point numbers, .*: send 8 or 16 bits"):
        prepare(encoded(Image.fromarray(shades), "TIFF"), PREPROCESSING)


def test_a_png_of_a_decoded_jpeg_shows_the_jpegs_compression() -> None:
    data = encoded(scene(224, 224), quality=12, subsampling=0)
    size = Preprocessing(224, 1.0, "bicubic", (0.0,) * 3, (1.0,) * 3)
    through_png = prepare(encoded(decoded(data), "PNG"), size, crop=False)
    direct = prepare(data, size, crop=False)
    assert np.array_equal(through_png.rgb, direct.rgb)
    assert through_png.estimated_quality == pytest.approx(12, abs=2)
    assert np.abs(through_png.dequantized.astype(int) - direct.dequantized).mean() < 1.0


def test_what_pillow_remarks_on_a_picture_that_it_opens_reaches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7_000)  # the picture has 7680: a warning, and here each is an error
    assert prepare(encoded(scene(), "PNG"), PREPROCESSING).good


def test_pillows_own_limit_on_pixels_refuses_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000)
    with pytest.raises(PictureTooLargeError, match="Pillow refuses the picture"):
        prepare(encoded(scene(), "PNG"), PREPROCESSING)
