"""One picture's way to the model's inputs."""

import itertools
import threading
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from afd_serve import _jpeg, jpeg
from afd_serve.dct import dequantize, orient_blocks
from afd_serve.errors import (
    CorruptJpegError,
    EmptyInputError,
    InputError,
    JpegTooLargeError,
    NotAnImageError,
    PictureTooLargeError,
    TruncatedJpegError,
)
from afd_serve.jpeg import JpegLimits
from afd_serve.models.backbones import Preprocessing
from afd_serve.preprocess import Buffer, PreparedPicture, prepare, stack
from afd_serve.quality import compression_history, scaled_table
from afd_serve.transforms import Box, block_grid, crop_box, resize_crop
from tests.conftest import decoded, encoded, recompressed, scene
from tests.jpeg_files import (
    ARITHMETIC,
    DQT,
    SAMPLINGS,
    adobe_segment,
    after_soi,
    exif_segment,
    find_segment,
    make_jpeg,
    pillow_jpeg,
)

PREPROCESSING = Preprocessing(64, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)


def pillows(picture: Image.Image) -> np.ndarray:
    box = crop_box(*picture.size, PREPROCESSING)
    return np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC, box=box))


def test_pixels_are_pillows_resized_crop() -> None:
    data = encoded(scene(150, 110), quality=40)
    assert np.array_equal(prepare(data, PREPROCESSING).rgb, pillows(decoded(data)))


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


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_geometry_tells_how_far_what_the_model_sees_is_reduced(kind: str, mode: str) -> None:
    data = encoded(scene(400, 256).convert(mode), kind)
    assert prepare(data, PREPROCESSING).reduction == pytest.approx(0.875 * 256 / 64)
    assert prepare(data, PREPROCESSING, crop=False).reduction == pytest.approx((400 * 256) ** 0.5 / 64)


@pytest.mark.parametrize(
    ("sampling", "across", "down"),
    [
        ("grayscale", 1, 1),
        ("422", 2, 1),
        ("440", 1, 2),
        ("420", 2, 2),
        ("411", 4, 1),
        ("mixed", 2, 0.5),
        ("large-chroma", 0.5, 0.5),
    ],
)
def test_geometry_tells_how_the_upright_pictures_chroma_is_subsampled(
    sampling: str, across: float, down: float
) -> None:
    data = make_jpeg(64, 64, SAMPLINGS[sampling]).data
    for orientation in range(1, 9):
        picture = prepare(after_soi(data, exif_segment(orientation)), PREPROCESSING)
        expected = (down, across) if orientation >= 5 else (across, down)
        assert picture.geometry[1:].tolist() == np.log2(expected).tolist()


def test_a_large_picture_is_decoded_at_a_reduced_scale_with_nearly_the_same_pixels() -> None:
    smooth = scene(160, 160).resize((1600, 1600), Image.Resampling.BICUBIC)
    data = encoded(smooth, quality=90)
    difference = prepare(data, PREPROCESSING).rgb.astype(int) - pillows(decoded(data))
    assert np.abs(difference).mean() < 1.5


def composed(data: bytes, preprocessing: Preprocessing, crop: bool) -> PreparedPicture:
    """What `prepare` makes in one call, step by step, from the whole picture's pixels and all its coefficients."""
    header = jpeg.read_header(data)
    whole = (0, 0, header.width, header.height)
    box: Box = crop_box(header.width, header.height, preprocessing, header.orientation) if crop else whole
    scale = _jpeg.decoding_scale(box, preprocessing.size)
    image = jpeg.read(data, pixels=True, scale=scale)
    left, top, right, bottom = (side * scale / 8 for side in box)
    rgb = resize_crop(image.pixels, (left, top, right, bottom), preprocessing.size, preprocessing.interpolation)
    grid = -(-preprocessing.size // 8)
    blocks = np.zeros((grid, grid, 3, 8, 8), np.int16)
    h_max, v_max = max(c.h for c in image.components), max(c.v for c in image.components)
    for index, part in enumerate(image.components):
        blocks_wide, blocks_high = part.width_in_blocks, part.height_in_blocks
        steps = 8 * h_max / part.h, 8 * v_max / part.v
        rows, columns = block_grid(box, preprocessing.size, blocks_wide, blocks_high, *steps, image.orientation)
        blocks[:, :, index] = dequantize(part.coefficients[rows[:, None], columns[None]], part.quant_table)
    tables = [image.components[min(index, len(image.components) - 1)].quant_table for index in range(3)]
    features = _jpeg.block_features(blocks, np.stack(tables), 1)
    history = compression_history(blocks[:, :, 0], tables[0])
    assert (features.quality, features.resaved) == (history.quality, history.resaved)
    upright = [orient_blocks(blocks[:, :, index], image.orientation).reshape(grid, grid, 64) for index in range(3)]
    own = features.quant_tables.reshape(3, 8, 8)
    return PreparedPicture(
        rgb=_turned(rgb, image.orientation),
        dequantized=np.concatenate(upright, axis=2),
        quant_tables=(own.transpose(0, 2, 1) if image.orientation >= 5 else own).reshape(3, 64),
        geometry=np.zeros(3, np.float32),
        history=history,
        has_tables=True,
    )


def _turned(rgb: np.ndarray, orientation: int) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(BytesIO(encoded(Image.fromarray(rgb), "PNG", exif=exif))) as stored:
        return np.asarray(ImageOps.exif_transpose(stored))


def assert_composed(data: bytes, preprocessing: Preprocessing, *, crop: bool) -> None:
    picture, expected = prepare(data, preprocessing, crop=crop), composed(data, preprocessing, crop)
    for name in ("rgb", "dequantized", "quant_tables"):
        np.testing.assert_array_equal(getattr(picture, name), getattr(expected, name), err_msg=name)
    assert picture.history == expected.history


@pytest.mark.parametrize("process", ["baseline", "extended", "progressive"])
@pytest.mark.parametrize("sampling", [name for name in SAMPLINGS if not name.startswith("four")])
def test_one_call_does_what_its_steps_do(sampling: str, process: str) -> None:
    cases = itertools.product([(96, 60), (150, 131), (333, 61)], [8, 20, 64], [0.4, 0.875], [0, 3])
    for number, ((width, height), size, fraction, restarts) in enumerate(cases):
        options = {"process": process, "interleaved": number % 5 != 0, "restart_interval": restarts, "seed": number}
        made = make_jpeg(width, height, SAMPLINGS[sampling], **options)
        data = after_soi(made.data, exif_segment(1 + number % 8))
        preprocessing = Preprocessing(size, fraction, "bilinear" if number % 2 else "bicubic", (0.0,) * 3, (1.0,) * 3)
        assert_composed(data, preprocessing, crop=number % 7 != 0)


@given(
    st.integers(9, 400),
    st.integers(9, 400),
    st.integers(8, 64),
    st.floats(0.05, 1.0),
    st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    st.booleans(),
    st.integers(1, 8),
    st.integers(20, 95),
)
@settings(max_examples=60)
def test_any_crop_of_any_size_is_that_of_the_whole_picture(
    width: int,
    height: int,
    size: int,
    fraction: float,
    subsampling: str,
    progressive: bool,
    orientation: int,
    quality: int,
) -> None:
    data = pillow_jpeg(width, height, quality=quality, subsampling=subsampling, progressive=progressive)
    preprocessing = Preprocessing(size, fraction, "bicubic", (0.0,) * 3, (1.0,) * 3)
    assert_composed(after_soi(data, exif_segment(orientation)), preprocessing, crop=True)


def test_arithmetic_coding_is_prepared_too() -> None:
    for made in ARITHMETIC.values():
        assert_composed(made().data, Preprocessing(16, 0.875, "bicubic", (0.0,) * 3, (1.0,) * 3), crop=True)


def outcome(call: object) -> tuple[type, str]:
    try:
        call()
    except InputError as error:
        return type(error), str(error)
    return type(None), ""


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}])
def test_damage_anywhere_is_the_readers_error(options: dict[str, object]) -> None:
    data = pillow_jpeg(90, 70, quality=70, **options)
    damaged = [data[:length] for length in range(3, len(data), 11)]
    random = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        changed[int(random.integers(3, len(data)))] ^= 1 << int(random.integers(0, 8))
        damaged.append(bytes(changed))
    failures = 0
    for file in damaged:
        expected = outcome(lambda file=file: jpeg.read(file, pixels=True))
        if expected[0] is type(None):
            assert_composed_or_refused(file)
            continue
        failures += 1
        assert outcome(lambda file=file: prepare(file, PREPROCESSING)) == expected
    assert failures > 50


def assert_composed_or_refused(data: bytes) -> None:
    if jpeg.read_header(data).color_space in ("ycbcr", "grayscale"):
        assert_composed(data, PREPROCESSING, crop=True)


def test_a_second_scan_of_the_same_component_is_the_readers_error() -> None:
    made, other = (make_jpeg(64, 48, [(1, 1)], seed=seed).data for seed in (3, 4))
    data = made[:-2] + other[other.index(b"\xff\xda") :]
    expected = outcome(lambda: jpeg.read(data, pixels=True))
    assert expected[0] is CorruptJpegError
    assert outcome(lambda: prepare(data, PREPROCESSING)) == expected


@pytest.mark.parametrize("data", [pillow_jpeg(150, 110), pillow_jpeg(150, 110, progressive=True)])
def test_portable_code_prepares_the_same(data: bytes) -> None:
    limits = jpeg.native_limits(JpegLimits())
    fast, portable = (
        _jpeg.prepare(data, limits, size=64, crop_fraction=0.875, interpolation="bicubic", instructions=instructions)
        for instructions in ("fastest", "portable")
    )
    assert np.array_equal(fast.rgb, portable.rgb)
    assert np.array_equal(fast.features.dequantized, portable.features.dequantized)


def test_threads_prepare_at_the_same_time() -> None:
    files = [pillow_jpeg(200 + 10 * seed, 180, seed=seed, progressive=seed % 2 == 1) for seed in range(6)]
    expected = [prepare(file, PREPROCESSING) for file in files]
    wrong: list[int] = []

    def work(start: int) -> None:
        for step in range(30):
            index = (start + step) % len(files)
            picture = prepare(files[index], PREPROCESSING)
            if not np.array_equal(picture.rgb, expected[index].rgb):
                wrong.append(index)
            if not np.array_equal(picture.dequantized, expected[index].dequantized):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_results_are_writable_and_own_their_memory() -> None:
    before = _jpeg.live_buffers()
    picture = prepare(pillow_jpeg(150, 110), PREPROCESSING)
    assert _jpeg.live_buffers() == before
    assert picture.rgb.flags.writeable
    assert picture.dequantized.flags.c_contiguous


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_spaces_are_accepted(mode: str) -> None:
    picture = prepare(encoded(scene(90, 70).convert(mode), quality=50), PREPROCESSING)
    assert picture.rgb.shape == (64, 64, 3)
    assert picture.estimated_quality == 50


@pytest.mark.parametrize("transform", [0, 2], ids=["cmyk", "ycck"])
def test_four_components_are_judged_by_their_pixels(transform: int) -> None:
    made = make_jpeg(64, 64, SAMPLINGS["four"], prefix=adobe_segment(transform))
    picture = prepare(made.data, PREPROCESSING, crop=False)
    assert np.array_equal(picture.rgb, jpeg.read(made.data, pixels=True).pixels)
    assert not np.array_equal(
        picture.dequantized[0, 0, :64], (made.coefficients[0] * made.quant_tables[0])[0, 0].ravel()
    )
    assert np.array_equal(picture.quant_tables, [table.ravel() for table in made.quant_tables[:3]])
    assert not picture.geometry.any(), "neither reduced nor, as pixels, subsampled"


def test_grayscale_has_empty_chroma_blocks() -> None:
    picture = prepare(encoded(scene().convert("L"), quality=50), PREPROCESSING)
    assert picture.dequantized[:, :, :64].any()
    assert not picture.dequantized[:, :, 64:].any()


@pytest.mark.parametrize(("side", "good"), [(64, False), (128, True)])
def test_whether_a_picture_is_good_depends_on_how_far_it_is_reduced(side: int, good: bool) -> None:
    picture = prepare(encoded(scene(side, side), quality=75), PREPROCESSING, crop=False)
    assert picture.reduction == side / PREPROCESSING.size
    assert picture.good is good


def test_a_resaved_picture_carries_the_heavier_tables() -> None:
    size = Preprocessing(224, 1.0, "bicubic", (0.0,) * 3, (1.0,) * 3)
    data = recompressed(scene(224, 224), 10, 95)
    picture = prepare(data, size, crop=False)
    assert picture.history.resaved
    assert picture.history.quality < 15
    for i, component in enumerate(jpeg.read(data).components):
        earlier = scaled_table(picture.history.quality, chroma=i > 0)
        assert np.array_equal(picture.quant_tables[i], np.maximum(component.quant_table, earlier).reshape(64))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_step_of_zero_which_the_standard_does_not_know_counts_as_one(mode: str) -> None:
    data = bytearray(pillow_jpeg(90, 70, mode, quality=50))
    first = find_segment(bytes(data), lambda marker: marker == DQT) + 5
    data[first : first + 64] = bytes(64)
    picture = prepare(bytes(data), PREPROCESSING)
    assert (picture.quant_tables[0] == 1).all()
    assert (picture.quant_tables[1] > 1).any() or mode == "CMYK"  # whose components share one table


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyInputError),
        (np.zeros((0, 3), np.uint8), EmptyInputError),
        (b"hello", NotAnImageError),
        (bytes(1000), NotAnImageError),
        (encoded(scene(), "PNG")[:300], NotAnImageError),
        (encoded(scene(), quality=50)[:-200], TruncatedJpegError),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NotAnImageError),
    ],
)
def test_bad_input_gets_its_own_error(data: Buffer, error: type[InputError]) -> None:
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
    four = encoded(scene().convert("CMYK"), quality=50, progressive=True)
    with pytest.raises(JpegTooLargeError, match="2 scans"):
        prepare(four, PREPROCESSING, limits=JpegLimits(max_scans=2))


def test_what_is_as_large_as_the_limits_is_accepted() -> None:
    for data in (encoded(scene(), "PNG"), encoded(scene()), encoded(scene().convert("CMYK"))):
        assert prepare(data, PREPROCESSING, limits=JpegLimits(max_bytes=len(data), max_pixels=96 * 80)).rgb.any()


def test_stack_makes_the_classifiers_inputs() -> None:
    pictures = [prepare(encoded(scene(seed=seed), quality=20), PREPROCESSING) for seed in range(3)]
    inputs = stack(pictures, [True, False, True])
    assert [tuple(tensor.shape) for tensor in inputs] == [(3, 3, 64, 64), (3, 8, 8, 192), (3, 3, 64), (3, 3), (3,)]
    kinds = [torch.uint8, torch.int16, torch.int32, torch.float32, torch.float32]
    assert [tensor.dtype for tensor in inputs] == kinds
    assert inputs.gate.tolist() == [1.0, 0.0, 1.0]


def test_a_single_picture_is_stacked_without_a_copy() -> None:
    picture = prepare(encoded(scene(), quality=20), PREPROCESSING)
    rgb, dequantized, quant_tables, geometry, _ = stack([picture], [True])
    arrays = (picture.rgb, picture.dequantized, picture.quant_tables, picture.geometry)
    for tensor, array in zip((rgb.permute(0, 2, 3, 1), dequantized, quant_tables, geometry), arrays, strict=True):
        assert np.shares_memory(tensor.numpy(), array)
        assert np.array_equal(tensor[0].numpy(), array)
