"""Estimating how a picture was compressed, from real files of known history."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afd_serve import jpeg
from afd_serve.dct import dequantize
from afd_serve.quality import compression_history, earlier_quality, estimate_quality, scaled_table
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
    assert not history.good


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("quality", [50, 90, 95, 100])
def test_a_single_compression_shows_no_earlier_one(seed: int, quality: int) -> None:
    data = encoded(scene(224, 224, seed=seed), quality=quality)
    assert earlier_quality(*luma(data)) is None
    history = compression_history(*luma(data))
    assert (history.quality, history.resaved, history.good) == (quality, False, quality >= 90)


def test_the_finest_quality_that_is_looked_for_is_found() -> None:
    assert compression_history(*luma(recompressed(scene(224, 224), 84, 100))).quality == pytest.approx(84, abs=2)


def test_a_flat_picture_is_good() -> None:
    blank = np.zeros((28, 28, 8, 8), np.int16)
    assert compression_history(blank, scaled_table(95)).good
