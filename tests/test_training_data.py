"""The pairs that fitting sees."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch.utils.data import DataLoader

from afd_serve.errors import ConfigError
from afd_serve.models.backbones import Preprocessing
from afd_serve.quality import estimate_quality, harmless_from
from afd_serve.training import data as data_module
from afd_serve.training.data import CompressedPairs, Recipe, _draw
from afd_serve.training.pictures import find_pictures
from tests.conftest import encoded, recompressed, scene

PREPROCESSING = Preprocessing(64, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)
CLEAN = Recipe(p_native=0, p_clean=1, p_other_codec=0, p_colour=0, only_open=False)


def pairs(folder: Path, recipe: Recipe | None = None, seed: int = 0, **changes: object) -> CompressedPairs:
    settings = {"sizes": (64,), "batch_size": 4, "batches": 3, "seed": seed, "recipe": recipe} | changes
    return CompressedPairs(find_pictures([folder]), PREPROCESSING, **settings)


def test_a_batch_depends_on_seed_and_index_alone(picture_folder: Callable[[int], Path]) -> None:
    folder = picture_folder(3)
    first, again, other = pairs(folder)[1], pairs(folder)[1], pairs(folder, seed=1)[1]
    assert all(torch.equal(a, b) for a, b in zip(first.inputs, again.inputs, strict=True))
    assert torch.equal(first.clean, again.clean)
    assert not torch.equal(first.clean, other.clean)
    assert not torch.equal(first.clean, pairs(folder)[0].clean)
    assert not torch.equal(first.clean, pairs(folder, seed=1)[0].clean), "a seed's batches are not the next one's"


def test_sizes_follow_each_other_in_equal_shares(picture_folder: Callable[[int], Path]) -> None:
    data = pairs(picture_folder(2), sizes=(64, 96), batches=4)
    assert [data[index].clean.shape[-1] for index in range(4)] == [64, 64, 96, 96]


def test_every_gate_is_open_and_shapes_are_the_classifiers(picture_folder: Callable[[int], Path]) -> None:
    pair = pairs(picture_folder(2))[0]
    shapes = [tuple(tensor.shape) for tensor in pair.inputs]
    assert shapes == [(4, 3, 64, 64), (4, 8, 8, 192), (4, 3, 64), (4, 3), (4,)]
    assert pair.inputs.gate.all()
    assert pair.clean.shape == (4, 3, 64, 64)


def test_student_and_teacher_see_the_same_scene(picture_folder: Callable[[int], Path]) -> None:
    folder = picture_folder(3)
    clean = pairs(folder, CLEAN)[0]
    assert (clean.inputs.rgb.float() - clean.clean).abs().mean() < 1.5
    assert not clean.inputs.geometry.any(), "compressed at the model's size"
    native = pairs(folder, replace(CLEAN, p_native=1))[0]
    assert native.inputs.geometry[:, 0].all(), "compressed at the part's own size, then reduced or enlarged"
    assert (native.inputs.rgb.float() - native.clean).abs().mean() < 1.5
    heavy = pairs(folder, Recipe(p_clean=0, p_mild=0, heavy=(5, 8)))[0]
    assert 2.0 < (heavy.inputs.rgb.float() - heavy.clean).abs().mean() < 30


def test_what_the_gate_leaves_alone_is_drawn_anew_unless_asked_for(picture_folder: Callable[[int], Path]) -> None:
    folder, often_good = picture_folder(2), replace(CLEAN, p_clean=0.5)
    assert any(harmless_from(quality) <= 1 for quality in qualities(pairs(folder, often_good)))
    only_open = qualities(pairs(folder, replace(often_good, only_open=True)))
    assert all(harmless_from(quality) > 1 for quality in only_open)


def qualities(data: CompressedPairs) -> list[int]:
    tables = data[0].inputs.quant_tables[:, 0].reshape(-1, 8, 8).numpy().astype(np.uint16)
    return [estimate_quality(table) for table in tables]


def test_closed_gates_are_drawn_anew_by_default(picture_folder: Callable[[int], Path]) -> None:
    mostly_good = qualities(pairs(picture_folder(2), Recipe(p_clean=0.9, p_other_codec=0), batch_size=12))
    assert all(harmless_from(quality) > 1 for quality in mostly_good)


ONCE = Recipe(p_native=0, p_clean=0, p_mild=0, p_again=0, p_resave=0, p_other_codec=0, p_colour=0, only_open=False)
"""Compressed once, heavily."""


def test_a_resaved_picture_was_compressed_heavily_before(picture_folder: Callable[[int], Path]) -> None:
    recipe = replace(ONCE, heavy=(8, 8), p_resave=1, resave=(95, 95), p_full_chroma=0)
    resaved = pairs(picture_folder(2), recipe)._compress(np.random.default_rng(0), scene())
    assert resaved == recompressed(scene(), 8, 95)


def test_a_picture_is_compressed_again_up_to_four_times(
    picture_folder: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pairs(picture_folder(2), replace(ONCE, p_mild=1, mild=(60, 60), p_again=1, heavy=(8, 8)))
    encode, found = data_module._encode, set()

    def noted(picture: Image.Image, quality: int, subsampling: int) -> bytes:
        qualities.append(quality)
        return encode(picture, quality, subsampling)

    monkeypatch.setattr(data_module, "_encode", noted)
    for seed in range(24):
        qualities: list[int] = []
        data._compress(np.random.default_rng(seed), scene())
        found.add(tuple(qualities))
    assert found == {(60, *[8] * times) for times in range(1, 5)}


def test_other_codecs_compress_in_equal_shares_at_the_qualities_of_their_own(
    picture_folder: Callable[[int], Path],
) -> None:
    data = pairs(picture_folder(2), replace(ONCE, p_other_codec=1, other_codec=(30, 30)))
    found = {data._compress(np.random.default_rng(seed), scene()) for seed in range(12)}
    kinds = [kind for kind in ("WEBP", "AVIF") if features.check(kind.lower())]
    assert found == {encoded(scene(), kind, quality=30) for kind in kinds}


def test_a_pillow_that_writes_no_other_codec_compresses_all_as_jpeg(
    picture_folder: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "_OTHER_CODECS", ())
    data = pairs(picture_folder(2), replace(ONCE, p_other_codec=1))
    assert data._compress(np.random.default_rng(0), scene()).startswith(b"\xff\xd8")


def test_half_of_the_qualities_lie_below_the_geometric_mean_of_their_bounds() -> None:
    random = np.random.default_rng(0)
    drawn = [_draw(random, (5, 45)) for _ in range(2000)]
    assert (min(drawn), max(drawn)) == (5, 45)
    assert np.median(drawn) == pytest.approx(15, abs=1)


def test_mild_and_heavy_compressions_have_their_own_qualities(picture_folder: Callable[[int], Path]) -> None:
    folder, recipe = picture_folder(2), replace(ONCE, mild=(70, 72), heavy=(9, 11))
    assert set(qualities(pairs(folder, recipe, batch_size=12))) == {9, 10, 11}
    assert set(qualities(pairs(folder, replace(recipe, p_mild=1), batch_size=12))) == {70, 71, 72}
    assert set(qualities(pairs(folder, replace(recipe, p_clean=0.5, p_mild=0.5), batch_size=24))) == {70, 71, 72, 100}


@pytest.mark.parametrize(("p_full_chroma", "halvings"), [(0, 1), (1, 0)])
def test_chroma_is_halved_or_not(picture_folder: Callable[[int], Path], p_full_chroma: int, halvings: int) -> None:
    geometry = pairs(picture_folder(2), replace(ONCE, p_full_chroma=p_full_chroma))[0].inputs.geometry
    assert (geometry[:, 1:] == halvings).all()


def clean_crops(tmp_path: Path, pixels: list[np.ndarray], **changes: float) -> np.ndarray:
    """What the teacher sees of these pictures, uint8 [N, 3, S, S]."""
    for index, picture in enumerate(pixels):
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"{index}.png")
    recipe = replace(ONCE, **({"p_flip": 0, "p_turn": 0, "p_mix": 0} | changes))
    return pairs(tmp_path, recipe, batch_size=24)[0].clean.numpy()


@pytest.mark.parametrize("p_flip", [0, 1])
def test_a_mirrored_picture_is_upright(tmp_path: Path, p_flip: int) -> None:
    rising = np.broadcast_to(np.linspace(0, 200, 90)[:, None, None] + np.linspace(0, 50, 120)[:, None], (90, 120, 3))
    crops = clean_crops(tmp_path, [rising] * 2, p_flip=p_flip).astype(int)
    assert (crops[:, :, 60].mean((1, 2)) > crops[:, :, 3].mean((1, 2))).all()
    assert ((crops[..., 60].mean((1, 2)) < crops[..., 3].mean((1, 2))) == p_flip).all()


def test_a_turned_picture_is_turned_by_any_right_angle(tmp_path: Path) -> None:
    rising = np.broadcast_to(np.linspace(0, 200, 90)[:, None, None], (90, 120, 3))
    crops = clean_crops(tmp_path, [rising] * 2, p_turn=1).astype(int)
    sides = [crops[..., :8, :], crops[..., -8:, :], crops[..., :8], crops[..., -8:]]
    brightest = np.argmax([side.mean((1, 2, 3)) for side in sides], axis=0)
    assert set(brightest) == {0, 2, 3}, "the top, the left or the right; upright it is the bottom"


def test_a_part_is_as_large_and_as_wide_as_the_recipe_says_and_lies_anywhere(
    picture_folder: Callable[[int], Path],
) -> None:
    data, random = pairs(picture_folder(2), Recipe(least_area=0.5)), np.random.default_rng(0)
    boxes = np.array([data._random_box(random, 400, 300) for _ in range(500)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    share, aspect = width * height / (400 * 300), width / height
    assert (share.min(), share.max()) == (pytest.approx(0.5, abs=0.05), pytest.approx(1, abs=0.1))
    assert (aspect.min(), aspect.max()) == (pytest.approx(3 / 4, abs=0.02), pytest.approx(4 / 3, abs=0.02))
    assert (left.min(), top.min(), right.max(), bottom.max()) == (0, 0, 400, 300)


def test_a_part_of_a_small_picture_is_no_smaller_than_32_pixels(picture_folder: Callable[[int], Path]) -> None:
    data, random = pairs(picture_folder(2), Recipe(least_area=0.001)), np.random.default_rng(0)
    boxes = np.array([data._random_box(random, 60, 20) for _ in range(200)])
    assert (boxes[:, 2] - boxes[:, 0]).min() == 32
    assert set(boxes[:, 3] - boxes[:, 1]) == {20}


def test_a_large_photograph_is_decoded_at_a_reduced_scale(tmp_path: Path) -> None:
    for index in range(2):
        Image.new("RGB", (2200, 2100)).save(tmp_path / f"{index}.jpg")
    assert pairs(tmp_path)._picture(np.random.default_rng(0)).size == (1100, 1050)


def test_mixed_pictures_show_both(tmp_path: Path) -> None:
    black_and_white = [np.zeros((90, 120, 3)), np.full((90, 120, 3), 255)]
    crops = clean_crops(tmp_path, black_and_white, p_mix=1)
    edges = [crop for crop in crops if crop.min() == 0 and crop.max() == 255]
    assert any((edge == edge[:, :1]).all() for edge in edges), "side by side"
    assert any((edge == edge[:, :, :1]).all() for edge in edges), "one above the other"
    assert any(0 < crop.min() == crop.max() < 255 for crop in crops), "blended"
    alone = clean_crops(tmp_path, black_and_white)
    assert {(crop.min(), crop.max()) for crop in alone} == {(0, 0), (255, 255)}


@pytest.mark.parametrize(("value", "low", "high"), [(0, 0, 72), (128, 103, 153), (255, 183, 255)])
def test_contrast_changes_about_the_middle_and_ends_at_black_and_white(
    tmp_path: Path, value: int, low: int, high: int
) -> None:
    crops = clean_crops(tmp_path, [np.full((40, 40, 3), value)] * 2, p_colour=1)
    assert low <= crops.min() < crops.max() <= high


def test_channels_change_apart_and_are_sometimes_exchanged(tmp_path: Path) -> None:
    crops = clean_crops(tmp_path, [np.full((40, 40, 3), (200, 60, 60))] * 2, p_colour=1)[..., 0, 0]
    brightest = np.bincount(crops.argmax(axis=1), minlength=3)
    assert brightest[0] > brightest[1:].sum() > 0
    assert (crops[:, 1] != crops[:, 2]).any()


def test_a_recipe_that_opens_no_gate_is_refused(picture_folder: Callable[[int], Path]) -> None:
    with pytest.raises(ConfigError, match="only_open=False"):
        pairs(picture_folder(2), replace(CLEAN, only_open=True))[0]


def test_16_bits_per_sample_are_scaled_and_not_clipped(picture_folder: Callable[[int], Path]) -> None:
    folder = picture_folder(2)
    batches = []
    for depth, scale in ((np.uint8, 1), (np.uint16, 257)):
        for index in range(2):
            grey = np.asarray(scene(120, 90, seed=index).convert("L"))
            Image.fromarray(grey.astype(depth) * depth(scale)).save(folder / f"{index}.png")
        batches.append(pairs(folder)[0].clean)
    assert torch.equal(*batches)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file's beginning, with chunks behind its header."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    written = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (header, *chunks, (b"IDAT", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


UNREADABLE_FILES = {
    "no picture": b"not a picture",
    "bomb": png(20_000, 20_000),
    "long text": png(8, 8, (b"zTXt", b"key\0\0" + zlib.compress(bytes(2_000_000)))),
}


@pytest.mark.parametrize("kind", UNREADABLE_FILES)
def test_a_batch_depends_on_no_unreadable_picture_that_was_met_before(
    picture_folder: Callable[[int], Path], kind: str
) -> None:
    folder = picture_folder(3)
    (folder / "1b.png").write_bytes(UNREADABLE_FILES[kind])
    data = pairs(folder, batch_size=8)
    *_, late = [data[index] for index in range(3)]
    assert torch.equal(late.clean, pairs(folder, batch_size=8)[2].clean)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_tells_which_pictures_of_its_own_could_not_be_read(
    picture_folder: Callable[[int], Path], workers: int
) -> None:
    folder = picture_folder(3)
    (folder / "1b.png").write_bytes(b"not a picture")
    data = pairs(folder, replace(ONCE, p_mix=0), batch_size=1, batches=12)
    told = [pair.unreadable for pair in DataLoader(data, batch_size=None, num_workers=workers)]
    assert set(told) == {frozenset(), frozenset({2})}


def test_for_a_picture_whose_samples_are_floating_point_numbers_another_is_drawn(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)).save(tmp_path / "0.tif")
    scene().save(tmp_path / "1.png")
    assert pairs(tmp_path, batch_size=16)[0].unreadable == {0}


def test_pictures_of_which_none_can_be_read_are_refused(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"{index}.jpg").write_bytes(b"not a picture")
    with pytest.raises(ConfigError, match="none can be read"):
        pairs(tmp_path)[0]


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "PPM"])
def test_pictures_of_every_format_that_is_served_are_fitted_on(tmp_path: Path, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    suffix = next(suffix for suffix, format_ in Image.registered_extensions().items() if format_ == kind)
    for index in range(2):
        (tmp_path / f"{index}{suffix}").write_bytes(encoded(scene(seed=index), kind))
    pair = pairs(tmp_path)[0]
    assert not pair.unreadable
    assert pair.clean.float().std() > 10
