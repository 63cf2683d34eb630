"""The metrics against hand-made cases and properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afd_serve.evaluation.metrics import (
    bootstrap_means,
    calibration_error,
    interval,
    mcnemar,
    recovered_share,
    reliability,
    top_k_hits,
)


def test_top_k_hits() -> None:
    indices = np.array([[3, 1, 2], [0, 2, 1], [1, 0, 3]])
    labels = np.array([3, 1, 2])
    assert top_k_hits(indices, labels, 1).tolist() == [True, False, False]
    assert top_k_hits(indices, labels, 3).tolist() == [True, True, False]


def test_recovered_share_is_the_papers_on_its_own_figures() -> None:
    share = recovered_share(np.array(76.0), np.array(52.34), np.array(66.26))
    assert share == pytest.approx(0.588, abs=1e-3)


def test_recovered_share_is_not_defined_where_nothing_was_lost() -> None:
    share = recovered_share(np.array([0.8, 0.8]), np.array([0.8, 0.4]), np.array([0.9, 0.6]))
    assert math.isnan(share[0])
    assert share[1] == pytest.approx(0.5)


def test_recovered_share_is_not_defined_where_only_rounding_was_lost() -> None:
    without = np.array(0.3)
    clean = np.array(0.1 + 0.2)
    assert clean > without
    assert math.isnan(recovered_share(clean, without, np.array(0.4)))


def test_bootstrap_covers_what_the_normal_approximation_says() -> None:
    hits = (np.arange(400) < 280).astype(np.float64)
    means = bootstrap_means(hits[:, None], resamples=4000)
    found = interval(float(hits.mean()), means[:, 0])
    error = 1.96 * math.sqrt(0.7 * 0.3 / 400)
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - error, abs=0.006)
    assert found.high == pytest.approx(0.7 + error, abs=0.006)


def test_bootstrap_is_paired_and_repeatable() -> None:
    hits = np.random.default_rng(1).random((50, 1)) < 0.5
    values = np.concatenate([hits, hits], axis=1).astype(np.float64)
    means = bootstrap_means(values, resamples=100, seed=3)
    assert means.shape == (100, 2)
    assert np.array_equal(means[:, 0], means[:, 1])
    assert np.array_equal(means, bootstrap_means(values, resamples=100, seed=3))
    assert not np.array_equal(means, bootstrap_means(values, resamples=100, seed=4))


def test_bootstrap_in_chunks_gives_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afd_serve.evaluation.metrics._CHUNK", 70)
    assert bootstrap_means(np.ones((10, 2)), resamples=100).tolist() == [[1.0, 1.0]] * 100


def test_interval_leaves_out_what_is_not_defined() -> None:
    found = interval(0.5, np.array([np.nan, 0.4, 0.6, np.nan]))
    assert 0.4 <= found.low < found.high <= 0.6
    assert math.isnan(interval(math.nan, np.array([np.nan])).low)


def test_what_is_not_defined_has_no_ends_even_if_some_resamples_have_values() -> None:
    found = interval(math.nan, np.array([np.nan, 0.4, 0.6]))
    assert [math.isnan(end) for end in (found.value, found.low, found.high)] == [True] * 3


@pytest.mark.parametrize(
    ("gained", "lost", "expected"), [(0, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (9, 1, 22 / 1024), (1, 9, 22 / 1024)]
)
def test_mcnemar_is_the_exact_binomial(gained: int, lost: int, expected: float) -> None:
    first = np.array([False] * gained + [True] * lost + [True] * 20)
    second = np.array([True] * gained + [False] * lost + [True] * 20)
    assert mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_takes_large_samples() -> None:
    first, second = np.zeros(60_000, bool), np.zeros(60_000, bool)
    first[:20_000], second[20_000:40_500] = True, True
    z = (500 - 1) / math.sqrt(40_500)  # normal approximation with continuity correction
    assert mcnemar(first, second) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


def test_calibration_error() -> None:
    confidences = np.array([0.95] * 10 + [0.55] * 10)
    hits = np.array([True] * 10 + [True] * 4 + [False] * 6)
    assert calibration_error(confidences, hits) == pytest.approx((0.05 + 0.15) / 2)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_calibration_error_is_a_share(pairs: list[tuple[float, bool]]) -> None:
    confidences, hits = (np.array(column) for column in zip(*pairs, strict=True))
    error = calibration_error(confidences, hits)
    assert 0.0 <= error <= 1.0 + 1e-9
    assert error >= abs(confidences.mean() - hits.mean()) - 1e-9


def test_reliability_compares_confidence_and_accuracy_bin_by_bin() -> None:
    confidences = np.array([0.95, 0.91, 1.0, 0.05, 0.55, 0.52])
    hits = np.array([True, True, False, False, True, False])
    low, middle, high = reliability(confidences, hits)
    assert (low.pictures, low.confidence, low.accuracy) == (1, pytest.approx(0.05), 0.0)
    assert (middle.pictures, middle.accuracy) == (2, 0.5)
    assert (high.pictures, high.confidence, high.accuracy) == (3, pytest.approx(2.86 / 3), pytest.approx(2 / 3))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_reliability_and_calibration_error_tell_the_same(pairs: list[tuple[float, bool]]) -> None:
    confidences, hits = (np.array(column) for column in zip(*pairs, strict=True))
    bins = reliability(confidences, hits, bins=15)
    assert sum(b.pictures for b in bins) == len(pairs)
    gap = sum(b.pictures * abs(b.confidence - b.accuracy) for b in bins) / len(pairs)
    assert gap == pytest.approx(calibration_error(confidences, hits, bins=15))
