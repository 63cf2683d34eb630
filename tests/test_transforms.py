"""Properties of the crop, the resize and the map from the JPEG's blocks to the model's grid."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import PIL
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from afd_serve import _jpeg, jpeg
from afd_serve.errors import BackboneError
from afd_serve.models.backbones import Preprocessing
from afd_serve.transforms import block_grid, crop_box, resize_crop

SIDES = st.integers(1, 3000)
FRACTIONS = st.floats(0.05, 1.0)
ORIENTATIONS = st.integers(1, 8)


def preprocessing(size: int = 224, crop_fraction: float = 0.875) -> Preprocessing:
    return Preprocessing(size, crop_fraction, "bicubic", (127.0,) * 3, (128.0,) * 3)


def upright(plane: np.ndarray, orientation: int) -> np.ndarray:
    """What an int32 plane [H, W] that is stored under an EXIF orientation is to be shown as."""
    picture = Image.fromarray(plane)
    picture.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


@given(SIDES, SIDES, FRACTIONS)
def test_crop_box_is_a_centred_square_inside_the_picture(width: int, height: int, fraction: float) -> None:
    left, top, right, bottom = crop_box(width, height, preprocessing(crop_fraction=fraction))
    assert right - left == bottom - top == max(1, int(fraction * min(width, height)))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(500, 375, (86, 24, 414, 352)), (224, 224, (14, 14, 210, 210)), (333, 500, (21, 105, 312, 396))],
)
def test_crop_box_rounds_as_efficientnet_does(width: int, height: int, expected: tuple[int, int, int, int]) -> None:
    assert crop_box(width, height, preprocessing()) == expected


@given(st.integers(1, 90), st.integers(1, 90), FRACTIONS, ORIENTATIONS)
def test_crop_box_of_a_turned_picture_is_that_of_the_upright_one(
    width: int, height: int, fraction: float, orientation: int
) -> None:
    stored = np.arange(width * height, dtype=np.int32).reshape(height, width)
    left, top, right, bottom = crop_box(width, height, preprocessing(crop_fraction=fraction), orientation)
    shown = upright(stored, orientation)
    x, y, end_x, end_y = crop_box(shown.shape[1], shown.shape[0], preprocessing(crop_fraction=fraction))
    assert np.array_equal(upright(stored[top:bottom, left:right].copy(), orientation), shown[y:end_y, x:end_x])


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40), st.integers(0, 255))
def test_resize_keeps_a_flat_picture_flat(width: int, height: int, size: int, value: int) -> None:
    pixels = np.full((height, width, 3), value, np.uint8)
    box = crop_box(width, height, preprocessing(size))
    assert np.array_equal(resize_crop(pixels, box, size, "bicubic"), np.full((size, size, 3), value, np.uint8))


@given(st.integers(9, 60), st.integers(9, 60), st.integers(0, 2**32 - 1))
def test_resize_reads_only_the_box_and_the_reach_of_the_filter(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    left, top, right, bottom = box = crop_box(width, height, preprocessing(16, 0.6))
    reach = 1 + int(max(1.0, (right - left) / 16))  # a bilinear filter spans one output pixel to each side
    elsewhere = np.ones((height, width), bool)
    elsewhere[max(0, top - reach) : bottom + reach, max(0, left - reach) : right + reach] = False
    changed = np.where(elsewhere[..., None], 255 - pixels, pixels)
    assert np.array_equal(resize_crop(pixels, box, 16, "bilinear"), resize_crop(changed, box, 16, "bilinear"))


PILLOWS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, tuple[float, float, float, float]]:
    """A picture's width and height, and a box in it, with whole or fractional sides."""
    width, height = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    if draw(st.booleans()):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        return width, height, (left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height)))
    left, top = draw(st.floats(0, width - 0.75, width=32)), draw(st.floats(0, height - 0.75, width=32))
    right, bottom = draw(st.floats(left + 0.5, width)), draw(st.floats(top + 0.5, height))
    return width, height, (left, top, right, bottom)


AS_PILLOW_13 = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="earlier versions of Pillow round small pictures otherwise"
)


@AS_PILLOW_13
@example((40, 64, (0, 0, 40, 64)), 16, "bicubic", 0, False)  # exactly twice as many rows as columns are lost
@example((32, 32, (1, 0, 32, 32)), 32, "bicubic", 0, False)  # a picture of the model's size that is not shown whole
@example((32, 32, (0, 0, 32, 31)), 32, "bicubic", 0, False)
@given(boxes(), st.integers(1, 100), st.sampled_from(sorted(PILLOWS)), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=500)
def test_resize_is_pillows_bit_for_bit(
    drawn: tuple[int, int, tuple[float, float, float, float]], size: int, filter_name: str, seed: int, sharp: bool
) -> None:
    width, height, box = drawn
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    if sharp:  # weights below zero then pass the ends of a byte
        pixels = np.where(pixels < 128, 0, 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((size, size), PILLOWS[filter_name], box=box))
    for instructions in ("fastest", "avx2", "portable"):
        got = _jpeg.resample(pixels, box, size, filter_name, instructions=instructions)
        assert np.array_equal(got, expected), instructions


@AS_PILLOW_13
@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 10, 11, 16, 17])
@pytest.mark.parametrize("height", [1, 2, 7])
def test_narrow_pictures_are_read_within_their_bounds(width: int, height: int) -> None:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    for size in (1, 4, 8, 33):
        expected = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        got = _jpeg.resample(pixels, (0, 0, width, height), size, "bicubic")
        assert np.array_equal(got, np.asarray(expected))


@pytest.mark.parametrize(
    "box", [(-1, 0, 5, 5), (0, 0, 9, 5), (0, 0, 5, 9), (3, 0, 3, 5), (0, 4, 5, 2), (float("nan"), 0, 5, 5)]
)
def test_a_box_outside_the_picture_or_without_content_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="the box must"):
        resize_crop(np.zeros((8, 8, 3), np.uint8), box, 4, "bicubic")


PIXELS = np.zeros((8, 8, 3), np.uint8)
BLOCKS = np.zeros((2, 2, 3, 8, 8), np.int16)
TABLES = np.ones((3, 8, 8), np.uint16)
LIMITS = jpeg.native_limits(jpeg.DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        *((lambda size=size: _jpeg.resample(PIXELS, (0, 0, 8, 8), size, "bicubic"), "size") for size in (0, 16385)),
        *((lambda size=size: _jpeg.block_grid((0, 0, 8, 8), size, 1, 1, 8, 8, 1), "size") for size in (0, 16385)),
        *((lambda part=part: _jpeg.crop_box(8, 8, part, 1), "crop_fraction") for part in (0.0, 1.01, float("nan"))),
        *((lambda exif=exif: _jpeg.crop_box(8, 8, 0.5, exif), "orientation") for exif in (0, 9)),
        (lambda: _jpeg.prepare(b"", LIMITS, size=0, crop_fraction=1.0, interpolation="bicubic"), "size"),
        (lambda: _jpeg.prepare(b"", LIMITS, size=8, crop_fraction=1.5, interpolation="bicubic"), "crop_fraction"),
        (lambda: _jpeg.resample(PIXELS[..., :2], (0, 0, 8, 8), 4, "bicubic"), "pixels"),
        (lambda: _jpeg.resample(PIXELS, (0, 0, 8, 8.5), 4, "bicubic"), "box"),
        (lambda: _jpeg.resample(PIXELS, (0, 0, 8.5, 8), 4, "bicubic"), "box"),
        (lambda: _jpeg.resample(PIXELS, (0, -1, 8, 8), 4, "bicubic"), "box"),
        (lambda: _jpeg.resample(PIXELS, (4, 4, 8, 4), 4, "bicubic"), "box"),
        (lambda: _jpeg.block_features(BLOCKS[:1], TABLES, 1), "square"),
        (lambda: _jpeg.block_features(BLOCKS, TABLES[:2], 1), "tables"),
        (lambda: _jpeg.block_features(BLOCKS[0], TABLES, 1), "blocks"),
        (lambda: _jpeg.mean_magnitudes(BLOCKS), "192"),
        (lambda: _jpeg.mean_magnitudes(np.zeros((1, 0, 4, 192), np.int16)), "no cells"),
        (lambda: _jpeg.scaled_table(101, False), "quality"),
    ],
)
def test_arguments_are_checked(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()


def test_magnitudes_are_averaged_over_the_cells_of_each_grid() -> None:
    grids = np.random.default_rng(0).integers(-32768, 32768, (3, 5, 7, 192)).astype(np.int16)
    means = _jpeg.mean_magnitudes(grids)
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, np.abs(grids.astype(float)).mean(axis=(1, 2)), rtol=1e-6)
    assert _jpeg.mean_magnitudes(grids[:0]).shape == (0, 192)


def test_arguments_may_be_as_large_as_is_said() -> None:
    assert len(_jpeg.block_grid((0, 0, 8, 8), 16384, 1, 1, 8, 8, 8)[0]) == 2048
    assert _jpeg.crop_box(8, 8, 1.0, 1) == (0, 0, 8, 8)
    assert (_jpeg.scaled_table(100, False) == 1).all()


def test_pixels_that_are_not_contiguous_are_resized_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    mirrored = pixels[:, ::-1]
    expected = resize_crop(np.ascontiguousarray(mirrored), (0, 0, 40, 40), 16, "bicubic")
    assert np.array_equal(resize_crop(mirrored, (0, 0, 40, 40), 16, "bicubic"), expected)


def test_a_picture_of_the_right_size_passes_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert resize_crop(pixels, (0, 0, 32, 32), 32, "bicubic") is pixels


def test_interpolation_is_honoured() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    bicubic = resize_crop(pixels, (0, 0, 40, 40), 16, "bicubic")
    assert not np.array_equal(bicubic, resize_crop(pixels, (0, 0, 40, 40), 16, "bilinear"))


@given(st.integers(8, 600))
def test_block_grid_is_the_identity_on_the_models_crop(size: int) -> None:
    blocks = -(-size // 8)
    rows, cols = block_grid((0, 0, size, size), size, blocks, blocks, 8, 8)
    assert rows.tolist() == cols.tolist() == list(range(blocks))


@given(st.integers(8, 600))
def test_halved_chroma_repeats_each_block(size: int) -> None:
    blocks = -(-size // 16)
    rows, cols = block_grid((0, 0, size, size), size, blocks, blocks, 16, 16)
    assert rows.tolist() == cols.tolist() == [index // 2 for index in range(-(-size // 8))]


@given(st.tuples(SIDES, SIDES), FRACTIONS, st.integers(8, 400), st.tuples(*[st.sampled_from([8, 16, 32])] * 2))
def test_every_cell_gets_the_block_under_its_centre(
    picture: tuple[int, int], fraction: float, size: int, block: tuple[int, int]
) -> None:
    (width, height), (block_width, block_height) = picture, block
    box = crop_box(width, height, preprocessing(size, fraction))
    columns, lines = -(-width // block_width), -(-height // block_height)
    rows, cols = block_grid(box, size, columns, lines, block_width, block_height)
    cells = -(-size // 8)
    assert rows.shape == cols.shape == (cells,)
    for indices, blocks in ((rows, lines), (cols, columns)):
        assert set(indices.tolist()) <= set(range(blocks))
        assert (np.diff(indices) >= 0).all()
    for cell in (0, cells // 2, cells - 1):
        centre = (8 * cell + min(8 * cell + 8, size)) / 2
        x = box[0] + centre * (box[2] - box[0]) / size
        assert -1e-6 <= x - cols[cell] * block_width <= block_width + 1e-6


def blocks_under_centres(start: int, stop: int, size: int, blocks: int, block_px: int) -> np.ndarray:
    """In whole numbers, where a centre on the edge of two blocks is in the second."""
    firsts = np.arange(0, size, 8)
    centres = 2 * size * start + (firsts + np.minimum(firsts + 8, size)) * (stop - start)
    return (centres // (2 * size * block_px)).clip(max=blocks - 1)


@pytest.mark.parametrize("size", [8, 60, 64, 96, 224, 240, 260, 299])
@pytest.mark.parametrize("block_px", [8, 16, 32])
def test_a_centre_on_the_edge_of_two_blocks_is_in_the_second(size: int, block_px: int) -> None:
    for side in range(1, 1200):
        blocks = -(-side // block_px)
        for start, stop in ((0, side), (side // 16, side - side // 16)):
            expected = blocks_under_centres(start, stop, size, blocks, block_px)
            rows, columns = block_grid((start, start, stop, stop), size, blocks, blocks, block_px, block_px)
            assert rows.tolist() == columns.tolist() == expected.tolist(), (start, stop)
            whole = blocks * block_px
            of_upright = blocks_under_centres(whole - stop, whole - start, size, blocks, block_px)
            rows, columns = block_grid((start, start, stop, stop), size, blocks, blocks, block_px, block_px, 3)
            assert rows.tolist() == columns.tolist() == (blocks - 1 - of_upright)[::-1].tolist(), (start, stop)


@st.composite
def boxes_on_blocks(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    """Blocks of a picture (across, down), their pixels (across, down), and a box in it."""
    blocks = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    block = draw(st.sampled_from([8, 16])), draw(st.sampled_from([8, 16]))
    left, top = (draw(st.integers(0, count * px - 1)) for count, px in zip(blocks, block, strict=True))
    right, bottom = draw(st.integers(left + 1, blocks[0] * block[0])), draw(st.integers(top + 1, blocks[1] * block[1]))
    return blocks, block, (left, top, right, bottom)


@given(boxes_on_blocks(), st.integers(8, 400), ORIENTATIONS)
@settings(max_examples=300)
def test_block_grid_of_a_turned_picture_is_that_of_the_upright_one(
    drawn: tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]], size: int, orientation: int
) -> None:
    (columns, lines), block, (left, top, right, bottom) = drawn
    stored = np.arange(columns * lines, dtype=np.int32).reshape(lines, columns)
    rows, cols = block_grid((left, top, right, bottom), size, columns, lines, *block, orientation)

    seen = np.zeros((lines * block[1], columns * block[0]), np.int32)
    seen[top:bottom, left:right] = 1
    y, x = np.nonzero(upright(seen, orientation))
    shown = upright(stored, orientation)
    box = (x[0], y[0], x[-1] + 1, y[-1] + 1)
    shown_block = block[::-1] if orientation >= 5 else block
    shown_rows, shown_cols = block_grid(box, size, shown.shape[1], shown.shape[0], *shown_block)
    assert np.array_equal(upright(stored[np.ix_(rows, cols)], orientation), shown[np.ix_(shown_rows, shown_cols)])


def test_indices_are_clamped_to_the_component() -> None:
    rows, cols = block_grid((-40.0, 0.0, 200.0, 400.0), 32, 3, 2, 8, 8)
    assert cols.tolist() == [0, 2, 2, 2]
    assert rows.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"size": 7}, "at least 8"),
        ({"crop_fraction": 0.0}, "crop_fraction"),
        ({"crop_fraction": 1.5}, "crop_fraction"),
        ({"interpolation": "nearest"}, "bicubic or bilinear"),
        ({"std": (1.0, 0.0, 1.0)}, "must be positive"),
        ({"mean": (1.0, 2.0)}, "three values"),
        ({"mean": (1.0, 2.0, math.nan)}, "finite"),
        ({"std": (1.0, 2.0, math.inf)}, "finite"),
        ({"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}, "multiply both by 255"),
        ({"size": (64, 64)}, r"^size must be one whole number of pixels for both sides, not \(64, 64\)$"),
        ({"size": 64.0}, r"^size must be one whole number .*, not 64\.0$"),
        ({"size": torch.tensor([64, 64])}, "^size must be one whole number"),
        ({"crop_fraction": "0.875"}, "^crop_fraction must be a number, not '0.875'$"),
        ({"mean": 127.0}, r"^mean must be three numbers \(R, G, B\), not 127\.0$"),
        ({"mean": "127"}, "^mean must be three numbers"),
        ({"mean": (10**400,) * 3}, "^mean must be three numbers"),
        ({"std": torch.ones(3, 2)}, "^std must be three numbers"),
        ({"std": None}, r"^std must be three numbers \(R, G, B\), not None$"),
    ],
)
def test_impossible_preprocessing_is_rejected(values: dict[str, object], reason: str) -> None:
    with pytest.raises(BackboneError, match=reason):
        replace(preprocessing(), **values)


NUMBERS = {
    "NumPy's": (np.int64(64), np.float32(0.875), np.float32([127, 128, 129]), tuple(np.float32([60, 61, 62]))),
    "torch's": (torch.tensor(64), torch.tensor(0.875), torch.tensor([127.0, 128, 129]), torch.tensor([60, 61, 62])),
    "Python's in lists": (64, 0.875, [127, 128, 129], [60, 61, 62]),
    "of channels first": (64, 0.875, torch.tensor([127.0, 128, 129]).view(3, 1, 1), torch.tensor([[60.0], [61], [62]])),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_all_kinds_of_numbers_become_those_that_a_signature_and_the_extension_take(kind: str) -> None:
    size, crop_fraction, mean, std = NUMBERS[kind]
    made = Preprocessing(size, crop_fraction, "bicubic", mean, std)
    expected = Preprocessing(64, 0.875, "bicubic", (127.0, 128.0, 129.0), (60.0, 61.0, 62.0))
    assert (made, hash(made)) == (expected, hash(expected))
    assert json.dumps(asdict(made)) == json.dumps(asdict(expected))
    assert crop_box(80, 96, made) == crop_box(80, 96, expected)
