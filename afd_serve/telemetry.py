"""What a server counts: one catalogue of metrics, the same names for every server.

Samples are made here and written by a server's adapter: TorchServe reads them from the worker's log through
``handlers/metrics.yaml``, which must list the same names (a test compares the two).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from afd_serve.pipeline import Failure, Prediction, StageTimes

__all__ = ["METRICS", "Metric", "Sample", "quality_bucket", "samples_of"]


@dataclass(frozen=True)
class Metric:
    """One time series family; ``labels`` come after the model's name, which every metric carries."""

    name: str
    kind: Literal["counter", "histogram"]
    unit: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One observation of a metric, with a value for each of its labels."""

    metric: Metric
    value: float
    labels: tuple[str, ...] = ()


PICTURES: Final = Metric("afd_pictures_total", "counter", "count")
FAILURES: Final = Metric("afd_failures_total", "counter", "count", ("code",))
PROTECTED: Final = Metric("afd_protected_total", "counter", "count")
QUALITY: Final = Metric("afd_estimated_quality_total", "counter", "count", ("quality",))
EXPLANATIONS: Final = Metric("afd_explanations_total", "counter", "count")
DRIFT: Final = Metric("afd_drift", "histogram", "score")
PREPROCESS: Final = Metric("afd_preprocess_seconds", "histogram", "seconds")
INFERENCE: Final = Metric("afd_inference_seconds", "histogram", "seconds")

METRICS: Final = (PICTURES, FAILURES, PROTECTED, QUALITY, EXPLANATIONS, DRIFT, PREPROCESS, INFERENCE)

_QUALITY_STEPS: Final = (7, 10, 15, 18, 25, 40, 60, 75, 90, 100)


def quality_bucket(quality: int | None) -> str:
    """The label of the quality bucket: a range such as ``08-10``, or ``none`` for a picture without tables.

    A histogram would do the same, but TorchServe's has fixed bounds that are meant for seconds.
    """
    if quality is None:
        return "none"
    low = 1
    for high in _QUALITY_STEPS:
        if quality <= high:
            return f"{low:02}-{high:02}"
        low = high + 1
    return "none"


def samples_of(results: Sequence[Prediction | Failure], times: StageTimes) -> Iterator[Sample]:
    """What one batch of results, and the time it took, adds to the metrics; equal samples are added up first."""
    predictions = [result for result in results if isinstance(result, Prediction)]
    if results:
        yield Sample(PICTURES, len(results))
        yield Sample(PREPROCESS, round(times.preprocess, 6))
    if predictions:
        yield Sample(INFERENCE, round(times.inference, 6))
    for code, count in Counter(result.code for result in results if isinstance(result, Failure)).items():
        yield Sample(FAILURES, count, (code,))
    protected = sum(prediction.protected for prediction in predictions)
    if protected:
        yield Sample(PROTECTED, protected)
    for bucket, count in Counter(quality_bucket(item.estimated_quality) for item in predictions).items():
        yield Sample(QUALITY, count, (bucket,))
    for prediction in predictions:
        yield Sample(DRIFT, round(prediction.drift, 6))
