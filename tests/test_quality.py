"""Estimating how a picture was compressed, from real files of known history."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageCms, features

from afd_serve import _jpeg, jpeg
from afd_serve.dct import ZIGZAG_TO_NATURAL, dequantize
from afd_serve.quality import (
    CompressionHistory,
    compression_history,
    earlier_quality,
    estimate_quality,
    harmless_from,
    is_starved,
    scaled_table,
)
from tests.conftest import encoded, recompressed, scene


def luma(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    component = jpeg.read(data).components[0]
    return dequantize(component.coefficients, component.quant_table), component.quant_table


@pytest.mark.parametrize("quality", [*range(1, 100, 7), 99, 100])
@pytest.mark.parametrize("chroma", [False, True])
def test_scaled_table_is_libjpegs(quality: int, chroma: bool) -> None:
    image = jpeg.read(encoded(scene(), quality=quality))
    assert np.array_equal(scaled_table(quality, chroma=chroma), image.components[int(chroma)].quant_table)


@given(st.integers(1, 100))
def test_estimate_finds_the_quality_of_a_standard_table(quality: int) -> None:
    assert np.array_equal(scaled_table(estimate_quality(scaled_table(quality))), scaled_table(quality))


def test_estimate_judges_a_custom_table_by_its_coarseness() -> None:
    fine, coarse = np.full((8, 8), 2, np.uint16), np.full((8, 8), 90, np.uint16)
    assert estimate_quality(coarse) < 40
    assert estimate_quality(fine) > 90


@pytest.mark.parametrize("final", [75, 90, 95, 100])
@pytest.mark.parametrize("first", [7, 10, 18, 25])
def test_a_lying_table_is_found_out(first: int, final: int) -> None:
    history = compression_history(*luma(recompressed(scene(224, 224), first, final)))
    assert history.resaved
    assert abs(history.quality - first) <= 3
    assert not history.good(reduction=1)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("quality", [50, 90, 95, 100])
def test_a_single_compression_shows_no_earlier_one(seed: int, quality: int) -> None:
    data = encoded(scene(224, 224, seed=seed), quality=quality)
    assert earlier_quality(*luma(data)) is None
    history = compression_history(*luma(data))
    assert (history.quality, history.resaved) == (quality, False)


def test_the_finest_quality_that_is_looked_for_is_found() -> None:
    assert compression_history(*luma(recompressed(scene(224, 224), 84, 100))).quality == pytest.approx(84, abs=2)


@pytest.mark.parametrize(("quality", "found"), [(3, 3), (85, 85), (86, None)])
def test_multiples_of_a_tables_steps_show_that_table_from_3_to_85(quality: int, found: int | None) -> None:
    multiples = np.random.default_rng(0).integers(-3, 4, (10, 10, 8, 8))
    assert earlier_quality((multiples * scaled_table(quality)).astype(np.int16), scaled_table(100)) == found


@pytest.mark.parametrize("frequency", range(1, 23))
def test_each_of_the_first_21_ac_coefficients_can_show_an_earlier_compression(frequency: int) -> None:
    multiples = np.zeros((100, 64), np.int16)
    multiples[:, ZIGZAG_TO_NATURAL[frequency]] = 1 + np.arange(100) % 3
    blocks = multiples.reshape(10, 10, 8, 8) * scaled_table(20).astype(np.int16)
    assert (earlier_quality(blocks, scaled_table(100)) is not None) == (frequency <= 21)


def test_a_flat_picture_is_good() -> None:
    blank = np.zeros((28, 28, 8, 8), np.int16)
    assert compression_history(blank, scaled_table(95)).good(reduction=1)


@given(st.integers(2, 100))
def test_the_finer_a_picture_was_quantized_the_less_reduction_makes_it_harmless(quality: int) -> None:
    assert harmless_from(quality) <= harmless_from(quality - 1)


@pytest.mark.parametrize(("quality", "reduction", "good"), [(85, 0.01, True), (84, 1, False), (75, 1, False)])
def test_a_picture_that_is_not_reduced_is_good_from_85_on(quality: int, reduction: float, good: bool) -> None:
    assert CompressionHistory(quality, resaved=False).good(reduction) is good


@pytest.mark.parametrize(
    ("quality", "reduction", "good"), [(75, 1.5, True), (50, 2, False), (50, 3, True), (10, 8, False)]
)
def test_the_more_a_picture_is_reduced_the_coarser_its_tables_may_be(
    quality: int, reduction: float, good: bool
) -> None:
    assert CompressionHistory(quality, resaved=False).good(reduction) is good


@pytest.mark.parametrize(
    ("bits", "reduction", "starved"),
    [(1.4, 0.5, True), (1.4, 1, True), (1.6, 1, False), (0.6, 2, False), (0.4, 2, True)],
)
def test_another_codec_starves_a_reduced_picture_at_fewer_bits(bits: float, reduction: float, starved: bool) -> None:
    pixels = 10_000
    coded = round(bits * pixels / 8)
    lossy = b"RIFF----WEBPVP8 " + coded.to_bytes(4, "little") + bytes(coded)
    assert is_starved(lossy, pixels, reduction) is starved


PROFILE = bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


@pytest.mark.parametrize("codec", [codec for codec in ("WEBP", "AVIF") if features.check(codec.lower())])
def test_only_the_bits_of_the_picture_count(codec: str) -> None:
    pixels = math.prod(scene(seed=3).size)
    assert is_starved(encoded(scene(seed=3), codec, quality=10), pixels, 1)
    bloated = encoded(scene(seed=3), codec, quality=10, icc_profile=PROFILE * 40)
    assert 8 * len(bloated) > 8 * pixels
    assert is_starved(bloated, pixels, 1)
    assert not is_starved(
        encoded(scene(seed=3), codec, quality=100, **({"lossless": True} if codec == "WEBP" else {})), pixels, 1
    )


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow writes no WebP")
def test_of_an_animation_the_first_frame_counts() -> None:
    pixels = math.prod(scene(seed=3).size)
    frames = {"save_all": True, "append_images": [scene(seed=4)], "duration": 100}
    assert is_starved(encoded(scene(seed=3), "WEBP", quality=5, **frames), pixels, 1)
    assert not is_starved(encoded(scene(seed=3), "WEBP", lossless=True, **frames), pixels, 1)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_an_avif_is_one_by_any_of_its_brands() -> None:
    avif = encoded(scene(seed=3), "AVIF", quality=10)
    assert avif[8:12] == b"avif"
    assert is_starved(avif[:8] + b"mif1" + avif[12:], math.prod(scene(seed=3).size), 1)


CODED = bytes(1_000)
REST = (8 + 5_000).to_bytes(4, "big") + b"free" + bytes(5_000)
MEDIA = {
    "four bytes": (8 + len(CODED)).to_bytes(4, "big") + b"mdat" + CODED + REST,
    "eight bytes": (1).to_bytes(4, "big") + b"mdat" + (16 + len(CODED)).to_bytes(8, "big") + CODED + REST,
    "none, up to the file's end": bytes(4) + b"mdat" + CODED,
}


@pytest.mark.parametrize("size", MEDIA)
def test_however_an_avif_writes_the_size_of_its_picture_it_counts(size: str) -> None:
    avif = (16).to_bytes(4, "big") + b"ftypavif" + bytes(4) + MEDIA[size]
    assert is_starved(avif, round(8 * len(CODED) / 1.4), 1)
    assert not is_starved(avif, round(8 * len(CODED) / 1.6), 1)


FREQUENCIES = np.array(ZIGZAG_TO_NATURAL[1:22])
CANDIDATES = range(3, 86)


def reference_earlier_quality(dequantized: np.ndarray, quant_table: np.ndarray) -> int | None:
    """What the extension computes, written for readers: single precision, and one candidate after the other."""
    magnitudes = np.abs(dequantized.reshape(-1, 64)[:, FREQUENCIES].astype(np.float32)).reshape(-1)
    chosen = np.flatnonzero(magnitudes >= 2)
    if chosen.size > 1536:
        chosen = chosen[np.linspace(0, chosen.size - 1, 1536).astype(np.int64)]
    values, frequencies = magnitudes[chosen], chosen % len(FREQUENCIES)
    own = quant_table.reshape(64)[FREQUENCIES].astype(np.float32)
    run: dict[int, float] = {}
    for quality in CANDIDATES:
        steps = scaled_table(quality).reshape(64)[FREQUENCIES].astype(np.float32)
        usable = np.maximum(np.float32(1.9) * own, np.float32(6)) <= steps
        ratio = values / steps[frequencies]
        counted = usable[frequencies] & (ratio > np.float32(0.3))
        distance = np.abs(ratio - np.rint(ratio))[counted]
        if distance.size >= 40 and (distance > 0.25).sum() < 0.12 * distance.size:
            run[quality] = float(distance.astype(np.float64).mean())
        elif run:
            break
    return min(run, key=lambda quality: run[quality]) if run else None


@given(
    st.integers(1, 40),
    st.integers(3, 90),
    st.integers(40, 100),
    st.sampled_from([3.0, 30.0, 300.0, 30000.0]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_histories_are_the_references(side: int, first: int, final: int, scale: float, seed: int, twice: bool) -> None:
    coefficients = np.random.default_rng(seed).laplace(0, scale, (side, side, 8, 8)).clip(-32768, 32767)
    for quality in (first, final) if twice else (final,):
        steps = scaled_table(quality).astype(np.float64)
        coefficients = (np.rint(coefficients / steps) * steps).clip(-32768, 32767)
    blocks = coefficients.astype(np.int16)
    expected = reference_earlier_quality(blocks, scaled_table(final))
    assert earlier_quality(blocks, scaled_table(final)) == expected
    assert _jpeg.earlier_quality(blocks, scaled_table(final), instructions="portable") == expected


@given(st.lists(st.integers(0, 65535), min_size=64, max_size=64))
def test_any_table_has_an_estimate(steps: list[int]) -> None:
    assert 1 <= estimate_quality(np.array(steps, np.uint16).reshape(8, 8)) <= 100


def test_shapes_that_are_no_tables_or_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="table"):
        estimate_quality(np.ones(64, np.uint16))
    with pytest.raises(ValueError, match="blocks"):
        earlier_quality(np.zeros((3, 5), np.int16), scaled_table(50))
    with pytest.raises(ValueError, match="quality"):
        scaled_table(0)
