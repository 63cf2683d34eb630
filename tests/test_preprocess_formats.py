"""The way of pictures in other formats than JPEG, which Pillow reads."""

import io
import tracemalloc
import warnings
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, features

from afd_serve import other_formats
from afd_serve.errors import JpegTooLargeError, NotAnImageError, PictureTooLargeError
from afd_serve.jpeg import JpegLimits
from afd_serve.models.backbones import Preprocessing
from afd_serve.other_formats import FORMATS, decode
from afd_serve.preprocess import PICTURE_SUFFIXES, as_rgb, prepare
from tests.conftest import decoded, encoded, in_a_process_of_its_own, scene
from tests.other_files import bmp_rle, gif_of_comments, png_of, png_of_chunks, ppm, tiff_of_pieces, tiff_with_a_tile

PREPROCESSING = Preprocessing(64, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)


def test_threads_leave_the_filters_of_warnings_as_they_were() -> None:
    png, before = encoded(scene(), "PNG"), list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: prepare(png, PREPROCESSING), range(400)))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_other_formats_carry_no_tables_and_pass_as_good(kind: str) -> None:
    picture = prepare(encoded(scene(), kind, quality=100), PREPROCESSING)
    assert not picture.has_tables
    assert picture.estimated_quality is None
    assert picture.good


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "JPEG2000"])
def test_formats_that_start_another_program_or_that_nobody_uploads_are_not_even_opened(kind: str) -> None:
    with pytest.raises(NotAnImageError, match="the bytes are no JPEG, PNG, WEBP, AVIF, GIF, BMP, TIFF or PPM"):
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
    assert {suffix for suffix, kind in by_suffix.items() if kind in ("JPEG", *FORMATS)} == PICTURE_SUFFIXES | {".pfm"}
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


def test_pictures_that_are_no_jpegs_have_a_lower_limit_on_pixels() -> None:
    most = JpegLimits().max_other_pixels
    assert decode(png_of(5000, most // 5000), JpegLimits()).shape == (5000, 5000, 3)
    with pytest.raises(PictureTooLargeError, match=f"no JPEGs is {most}: send it as a JPEG, or smaller"):
        prepare(png_of(5000, most // 5000 + 1), PREPROCESSING)
    jpeg_of_more = encoded(Image.new("L", (5000, most // 5000 + 1)))
    assert prepare(jpeg_of_more, PREPROCESSING).has_tables


def without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail where a decoder is made."""
    monkeypatch.setattr(Image, "_getdecoder", lambda *_: pytest.fail("decoded"))


@pytest.mark.parametrize(
    "data", [bmp_rle(100, 100), ppm("P3", 9, 9, 255), ppm("P6", 9, 9, 254)], ids=["RLE", "plain", "odd depth"]
)
def test_what_pillow_decodes_in_python_is_refused_before_it_is(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    without_decoding(monkeypatch)
    with pytest.raises(NotAnImageError, match=r"this kind of (BMP|PPM) is not read .*: save it as a JPEG or PNG"):
        prepare(data, PREPROCESSING)


def test_ppm_of_whole_bytes_is_read() -> None:
    assert (prepare(ppm("P6", 9, 9, 255), PREPROCESSING).rgb == 1).all()


@pytest.mark.parametrize(
    "data",
    [
        png_of_chunks(20_000, where="before"),
        png_of_chunks(20_000, where="after"),
        gif_of_comments(20_000),
    ],
    ids=["before", "after", "comments"],
)
def test_files_of_countless_parts_are_not_read_to_their_end(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    steps = other_formats._Steps.read

    def count(self: io.BytesIO, size: int | None = -1) -> bytes:
        read.append(1)
        return steps(self, size)

    monkeypatch.setattr(other_formats._Steps, "read", count)
    with pytest.raises(PictureTooLargeError, match="too many parts for its size"):
        prepare(data, PREPROCESSING)
    assert len(read) <= 20_000 + len(data) // 256 + 100


def test_parts_that_honest_files_have_are_read() -> None:
    assert not prepare(png_of_chunks(1_000, where="before"), PREPROCESSING).rgb.any()
    flat = Image.new("RGB", (8, 3000))
    assert not prepare(encoded(flat, "TIFF", strip_size=1), PREPROCESSING, crop=False).rgb.any()


@pytest.mark.parametrize("tag", [273, 324])
def test_a_tiff_of_countless_pieces_is_not_even_opened(tag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(PictureTooLargeError, match="has 100001 strips or tiles; the limit is 100000"):
        prepare(tiff_of_pieces(100_001, tag), PREPROCESSING)


def test_a_tile_of_a_tiff_is_no_larger_than_a_picture_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    without_decoding(monkeypatch)
    with pytest.raises(PictureTooLargeError, match="a tile of the TIFF has more than 25000000 pixels"):
        prepare(tiff_with_a_tile(40_000, 40_000), PREPROCESSING)
    with pytest.raises(NotAnImageError, match="sides of the TIFF's tiles"):  # libtiff would look for them elsewhere
        prepare(tiff_with_a_tile(16, 16, kind=16), PREPROCESSING)
    with pytest.raises(NotAnImageError, match="BigTIFF"):
        prepare(b"II+\0" + bytes(60), PREPROCESSING)


@pytest.mark.parametrize("data", [b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"II", b"MM"])
def test_a_tiff_that_ends_early_is_no_picture(data: bytes) -> None:
    with pytest.raises(NotAnImageError):
        prepare(data, PREPROCESSING)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "YCbCr"])
def test_converting_a_few_rows_at_a_time_is_converting_all(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_formats, "_STRIP", 1000)
    picture = scene() if mode == "RGB" else Image.frombytes(mode, (96, 80), scene().convert("CMYK").tobytes())
    if mode == "P":
        picture.putpalette(bytes(range(256)) * 3)
    assert np.array_equal(other_formats._rgb_pixels(picture), np.asarray(as_rgb(picture)))


def test_no_copy_of_a_picture_is_made_beside_its_pixels() -> None:
    """Pillow's have four bytes each, ours three; all else is for a few rows, or for the model's size."""
    tracemalloc.start()
    try:
        prepare(png_of(4000, 4000), PREPROCESSING)
        assert tracemalloc.get_traced_memory()[1] < 3 * 4000**2 + 2**24
    finally:
        tracemalloc.stop()


_READERS = """
import contextlib
from PIL import Image
from afd_serve.errors import NotAnImageError
from afd_serve.jpeg import JpegLimits
from afd_serve.other_formats import FORMATS, decode

with contextlib.suppress(NotAnImageError):
    decode(b"no picture", JpegLimits())
print(sorted(set(Image.OPEN) - {*FORMATS, "DIB", "JPEG"}))
"""


def test_readers_of_formats_that_are_not_opened_are_not_even_loaded() -> None:
    """Forty of them, which would take longer than refusing a picture does."""
    assert in_a_process_of_its_own(_READERS) == (0, "[]\n", "")
