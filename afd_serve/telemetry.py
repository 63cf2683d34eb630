"""What a server counts: one catalogue of metrics, the same names for every server.

Samples are made here, added up here, and passed on by a server's adapter: TorchServe reads them from the worker's log
through ``handlers/metrics.yaml``, which must list the same names (a test compares the two).
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from afd_serve.later import Later
from afd_serve.mode import Mode
from afd_serve.pipeline import Failure, Prediction, StageTimes
from afd_serve.results import Shadow

__all__ = [
    "METRICS",
    "UNREAD",
    "Metric",
    "Sample",
    "Series",
    "Tally",
    "first_series",
    "quality_bucket",
    "samples_of",
]


@dataclass(frozen=True)
class Metric:
    """One time series family.

    A summary is what Prometheus calls so, without quantiles: the sum of what was observed, and how often. Servers need
    nothing but counters for it.

    Attributes:
        name: What the family is called.
        kind: What it is.
        unit: Of the values.
        labels: Those that come after the model's name, which every metric carries.
        first: Values of the only label whose series begin with the server, see `first_series`.
    """

    name: str
    kind: Literal["counter", "summary"]
    unit: str
    labels: tuple[str, ...] = ()
    first: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names of the counters that every server publishes."""
        return (self.name,) if self.kind == "counter" else (f"{self.name}_sum", f"{self.name}{_COUNT}")


_COUNT: Final = "_count"
"""What the name of a series ends with that counts a summary's observations."""


@dataclass(frozen=True)
class Sample:
    """One observation of a metric, with a value for each of its labels."""

    metric: Metric
    value: float
    labels: tuple[str, ...] = ()


class Series(NamedTuple):
    """One counter: its name, which is one of the metric's, and the values of the metric's labels."""

    name: str
    metric: Metric
    labels: tuple[str, ...]


class Tally:
    """Adds samples up, and passes the sums on from a thread of its own, a moment later.

    Telling a server of one change costs it and the worker together as much as the rest of an answer.

    Args:
        pass_on: Takes a counter and by how much it has grown; called from the thread.
        first: Counters that are passed on with zero, before anything is recorded.
    """

    def __init__(self, pass_on: Callable[[Series, float], None], first: Iterable[Series] = ()) -> None:
        self._pass_on = pass_on
        self._sums: dict[Series, float] = defaultdict(float, dict.fromkeys(first, 0.0))
        self._lock = threading.Lock()
        self._later = Later(self._pass_sums_on)
        self._later.ask()

    def record(self, samples: Iterable[Sample]) -> None:
        """Add samples."""
        with self._lock:
            for sample in samples:
                for name in sample.metric.series:
                    value = 1 if name.endswith(_COUNT) else sample.value
                    self._sums[Series(name, sample.metric, sample.labels)] += value
        self._later.ask()

    def close(self) -> None:
        """Pass on what is left; nothing may be recorded afterwards."""
        self._later.close()

    def _pass_sums_on(self) -> None:
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
        for series, value in sums.items():
            self._pass_on(series, value)


UNREAD: Final = "none"
"""The label ``mode`` of a request that is refused before it has one."""

REQUESTS: Final = Metric("afd_requests_total", "counter", "count", ("mode",), first=(*Mode, UNREAD))

PROBES: Final = Metric("afd_probes_total", "counter", "count")
"""Health probes that were answered, which count nowhere else."""

PICTURES: Final = Metric("afd_pictures_total", "counter", "count")
FAILURES: Final = Metric("afd_failures_total", "counter", "count", ("code",), first=("internal",))
PROTECTED: Final = Metric("afd_protected_total", "counter", "count")
QUALITY: Final = Metric("afd_estimated_quality_total", "counter", "count", ("quality",))
EXPLANATIONS: Final = Metric("afd_explanations_total", "counter", "count")
EXPLANATION_FAILURES: Final = Metric(
    "afd_explanation_failures_total", "counter", "count", ("code",), first=("internal",)
)
DRIFT: Final = Metric("afd_drift", "summary", "score")
PREPROCESS: Final = Metric("afd_preprocess_seconds", "summary", "seconds")
INFERENCE: Final = Metric("afd_inference_seconds", "summary", "seconds")

# Of pictures that were classified twice: in shadow mode, where the gate would have opened. A change of confidence has a
# sign, and a counter only grows: so what goes up and what goes down are added up apart.
SHADOW: Final = Metric("afd_shadow_total", "counter", "count")
SHADOW_DISAGREEMENTS: Final = Metric("afd_shadow_disagreements_total", "counter", "count")
SHADOW_CHANGE: Final = Metric(
    "afd_shadow_confidence_change_total", "counter", "probability", ("direction",), first=("up", "down")
)
SHADOW_FAILURES: Final = Metric("afd_shadow_failures_total", "counter", "count")
SHADOW_TIME: Final = Metric("afd_shadow_seconds", "summary", "seconds")

METRICS: Final = (
    REQUESTS,
    PROBES,
    PICTURES,
    FAILURES,
    PROTECTED,
    QUALITY,
    EXPLANATIONS,
    EXPLANATION_FAILURES,
    DRIFT,
    PREPROCESS,
    INFERENCE,
    SHADOW,
    SHADOW_DISAGREEMENTS,
    SHADOW_CHANGE,
    SHADOW_FAILURES,
    SHADOW_TIME,
)


def first_series(metrics: Iterable[Metric] = METRICS) -> Iterator[Series]:
    """Counters that a server publishes as zero from its start on.

    Of one that appears with its first event, Prometheus sees no growth: the event, or a thousand of them, would raise
    no alert. Labels have many values, of which most say little in a legend; those are left out that no alert waits for.
    """
    for metric in metrics:
        for labels in [(value,) for value in metric.first] if metric.labels else [()]:
            for name in metric.series:
                yield Series(name, metric, labels)


_QUALITY_STEPS: Final = (7, 10, 15, 18, 25, 40, 60, 75, 90, 100)


def quality_bucket(quality: int | None) -> str:
    """The label of the quality bucket: a range such as ``08-10``, or ``none`` for a picture without tables."""
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
    shadows = [prediction.shadow for prediction in predictions if prediction.shadow is not None]
    if shadows:
        yield Sample(SHADOW_TIME, round(times.shadow, 6))
        yield from _shadow_samples(shadows)


def _shadow_samples(shadows: Sequence[Shadow | Failure]) -> Iterator[Sample]:
    """Zeros as well: a series that is not there cannot be told from one that nobody counts."""
    compared = [shadow for shadow in shadows if isinstance(shadow, Shadow)]
    changes = [shadow.confidence_change for shadow in compared]
    yield Sample(SHADOW, len(compared))
    yield Sample(SHADOW_FAILURES, len(shadows) - len(compared))
    yield Sample(SHADOW_DISAGREEMENTS, sum(shadow.disagrees for shadow in compared))
    yield Sample(SHADOW_CHANGE, round(sum(max(change, 0) for change in changes), 6), ("up",))
    yield Sample(SHADOW_CHANGE, round(sum(max(-change, 0) for change in changes), 6), ("down",))
