"""Accuracy, recovered share, paired intervals and tests, calibration: NumPy in, numbers out."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "Interval",
    "ReliabilityBin",
    "bootstrap_means",
    "calibration_error",
    "interval",
    "mcnemar",
    "recovered_share",
    "reliability",
    "top_k_hits",
]

Floats = npt.NDArray[np.float64]

_CHUNK = 4_000_000  # entries of the resampling matrix held at a time
_ROUNDING = 1e-9  # differences of accuracies below it are none: one picture of a billion


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95% interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def top_k_hits(indices: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.bool_]:
    """Tell for each picture whether its label is among the first ``k`` classes.

    Args:
        indices: classes, most probable first, ``[N, >=k]``.
        labels: ``[N]``.
        k: how many classes count.

    Returns:
        bool ``[N]``.
    """
    hits: npt.NDArray[np.bool_] = (indices[:, :k] == labels[:, None]).any(axis=1)
    return hits


def bootstrap_means(values: Floats, *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Resample the pictures with replacement and return the means of each resample.

    One resample serves all columns, so that differences between columns are paired over pictures.

    Args:
        values: one row a picture, ``[N, M]``, N >= 1.
        resamples: how many, R.
        seed: of the resampling.

    Returns:
        ``[R, M]``.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).
    """
    count = len(values)
    generator = np.random.default_rng(seed)
    shares = np.full(count, 1.0 / count)
    step = max(1, _CHUNK // count)
    parts = [
        generator.multinomial(count, shares, size=min(step, resamples - start)) @ values / count
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def interval(value: float, resampled: Floats) -> Interval:
    """Join an estimate with the 2.5% and 97.5% quantiles of its resamples ``[R]``, NaN left out.

    What is not defined has no ends either, though some of its resamples may be.
    """
    finite = resampled[np.isfinite(resampled)]
    if math.isnan(value) or not len(finite):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def recovered_share(clean: Floats, without: Floats, protected: Floats) -> Floats:
    """Compute ``(protected - without) / (clean - without)``; NaN where compression lost nothing.

    Args:
        clean: top-1 of the bare classifier on clean pictures, any shape.
        without: mean top-1 of the bare classifier on compressed pictures, same shape.
        protected: the same with AFD.
    """
    lost = np.asarray(clean - without, np.float64)
    share = np.full_like(lost, np.nan)
    np.divide(protected - without, lost, out=share, where=lost > _ROUNDING)
    return share


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Return the two-sided p-value that two classifiers err equally often on the same pictures (exact test).

    Args:
        first: hits of the one, bool ``[N]``.
        second: hits of the other, bool ``[N]``.

    Source: McNemar, Psychometrika 12, 1947; exact binomial form.
    """
    gained, lost = int(np.sum(second & ~first)), int(np.sum(first & ~second))
    total, fewer = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    log_choose = [math.lgamma(total + 1) - math.lgamma(i + 1) - math.lgamma(total - i + 1) for i in range(fewer + 1)]
    tail = math.fsum(math.exp(value - total * math.log(2)) for value in log_choose)
    return min(1.0, 2 * tail)


def calibration_error(confidences: Floats, hits: npt.NDArray[np.bool_], bins: int = 15) -> float:
    """Return the expected calibration error: mean distance of confidence and accuracy, weighted over equal bins.

    Args:
        confidences: probability of the first class, ``[N]`` in 0..1.
        hits: whether it was right, bool ``[N]``.
        bins: number of bins of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    gaps = np.bincount(_bins(confidences, bins), weights=confidences - hits, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


@dataclass(frozen=True)
class ReliabilityBin:
    """The pictures whose confidence lies in one bin: how many, their mean confidence and accuracy, both 0..1."""

    pictures: int
    confidence: float
    accuracy: float


def reliability(confidences: Floats, hits: npt.NDArray[np.bool_], bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Compare confidence with accuracy, bin by bin; bins that no picture falls into are left out.

    Args:
        confidences: probability of the first class, ``[N]`` in 0..1.
        hits: whether it was right, bool ``[N]``.
        bins: number of bins of equal width.
    """
    index = _bins(confidences, bins)
    counts, confidence, right = (np.bincount(index, weights, bins) for weights in (None, confidences, hits))
    return tuple(
        ReliabilityBin(int(counts[k]), float(confidence[k] / counts[k]), float(right[k] / counts[k]))
        for k in range(bins)
        if counts[k]
    )


def _bins(confidences: Floats, bins: int) -> npt.NDArray[np.int64]:
    """The bin of each confidence, 0..bins - 1; 1.0 falls into the last."""
    index: npt.NDArray[np.int64] = np.minimum((confidences * bins).astype(np.int64), bins - 1)
    return index
