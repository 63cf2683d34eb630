"""The catalogue of metrics, and what results add to it."""

import threading
import time
from dataclasses import replace

import pytest

from afd_serve import later
from afd_serve.mode import Mode
from afd_serve.pipeline import Failure, Prediction, StageTimes
from afd_serve.results import Shadow
from afd_serve.telemetry import (
    DRIFT,
    FAILURES,
    METRICS,
    PICTURES,
    UNREAD,
    Sample,
    Series,
    Tally,
    first_series,
    quality_bucket,
    samples_of,
)

BARE = Prediction((0,), ("a",), (0.5,), 10, 0.5, protected=False)


def shadow_samples(*shadows: Shadow | Failure | None) -> dict[tuple[str, tuple[str, ...]], float]:
    results = [replace(BARE, shadow=shadow) for shadow in shadows]
    samples = samples_of(results, StageTimes(shadow=0.5))
    return {(item.metric.name, item.labels): item.value for item in samples if "shadow" in item.metric.name}


@pytest.mark.parametrize(
    ("quality", "bucket"), [(None, "none"), (1, "01-07"), (7, "01-07"), (8, "08-10"), (91, "91-100"), (100, "91-100")]
)
def test_quality_buckets(quality: int | None, bucket: str) -> None:
    assert quality_bucket(quality) == bucket


def test_what_a_batch_adds() -> None:
    truncated, empty = Failure("truncated_jpeg", "cut off"), Failure("empty", "no bytes")
    results = [replace(BARE, protected=True), truncated, BARE, replace(BARE, protected=True), truncated, empty]
    samples = list(samples_of(results, StageTimes(preprocess=0.25, inference=0.125)))
    assert {(item.metric.name, *item.labels): item.value for item in samples} == {
        ("afd_pictures_total",): 6,
        ("afd_failures_total", "truncated_jpeg"): 2,
        ("afd_failures_total", "empty"): 1,
        ("afd_protected_total",): 2,
        ("afd_estimated_quality_total", "08-10"): 3,
        ("afd_drift",): 0.5,
        ("afd_preprocess_seconds",): 0.25,
        ("afd_inference_seconds",): 0.125,
    }
    assert [item.value for item in samples if item.metric is DRIFT] == [0.5] * 3


def test_a_batch_of_failures_alone_took_no_inference() -> None:
    names = [item.metric.name for item in samples_of([Failure("empty", "no bytes")], StageTimes())]
    assert names == ["afd_pictures_total", "afd_preprocess_seconds", "afd_failures_total"]


def test_nothing_is_said_of_shadows_where_there_are_none() -> None:
    assert shadow_samples(None, None) == {}


def test_shadows_are_counted_and_changes_of_confidence_added_up_by_direction() -> None:
    failed = Failure("internal", "the shadow pass failed")
    shadows = (Shadow(True, 0.25), Shadow(False, 0.125), Shadow(False, -0.5), failed, None)
    assert shadow_samples(*shadows) == {
        ("afd_shadow_total", ()): 3,
        ("afd_shadow_failures_total", ()): 1,
        ("afd_shadow_disagreements_total", ()): 1,
        ("afd_shadow_confidence_change_total", ("up",)): 0.375,
        ("afd_shadow_confidence_change_total", ("down",)): 0.5,
        ("afd_shadow_seconds", ()): 0.5,
    }


def test_an_agreement_makes_every_series_appear() -> None:
    series = shadow_samples(Shadow(False, 0.0))
    assert series["afd_shadow_disagreements_total", ()] == series["afd_shadow_failures_total", ()] == 0
    assert series["afd_shadow_confidence_change_total", ("up",)] == 0
    assert series["afd_shadow_confidence_change_total", ("down",)] == 0


def test_a_tally_passes_sums_on_and_loses_nothing() -> None:
    grown: dict[Series, float] = {}
    messages: list[Series] = []

    def pass_on(series: Series, value: float) -> None:
        messages.append(series)
        grown[series] = grown.get(series, 0) + value

    def count() -> None:
        for _ in range(500):
            tally.record([Sample(PICTURES, 2), Sample(DRIFT, 0.25), Sample(FAILURES, 1, ("truncated_jpeg",))])

    tally = Tally(pass_on)
    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.close()
    assert grown == {
        Series("afd_pictures_total", PICTURES, ()): 4000,
        Series("afd_drift_sum", DRIFT, ()): 500,
        Series("afd_drift_count", DRIFT, ()): 2000,
        Series("afd_failures_total", FAILURES, ("truncated_jpeg",)): 2000,
    }
    assert len(messages) < 400, "samples are added up before they are passed on"


def test_what_comes_shortly_after_is_passed_on_together_and_closing_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(later, "_EVERY", 3600.0)
    values: list[float] = []
    tally = Tally(lambda _, value: values.append(value))
    for _ in range(3):
        tally.record([Sample(PICTURES, 2)])
        time.sleep(0.02)  # enough for its thread to run
    tally.close()
    assert values == [6]


def test_a_tally_begins_with_zeros() -> None:
    grown: dict[Series, float] = {}
    came = threading.Event()

    def pass_on(series: Series, value: float) -> None:
        grown[series] = grown.get(series, 0) + value
        came.set()

    tally = Tally(pass_on, [Series("afd_pictures_total", PICTURES, ())])
    assert came.wait(20), "without anything that is recorded"
    assert grown == {Series("afd_pictures_total", PICTURES, ()): 0}
    tally.record([Sample(PICTURES, 2)])
    tally.close()
    assert grown == {Series("afd_pictures_total", PICTURES, ()): 2}


def test_what_alerts_wait_for_is_there_before_it_happens() -> None:
    series = {(name, labels) for name, _, labels in first_series()}
    without_labels = {(name, ()) for metric in METRICS if not metric.labels for name in metric.series}
    assert {("afd_drift_count", ()), ("afd_shadow_failures_total", ())} < without_labels <= series
    assert ("afd_failures_total", ("internal",)) in series
    assert ("afd_explanation_failures_total", ("internal",)) in series
    assert ("afd_requests_total", (UNREAD,)) in series
    assert {("afd_requests_total", (mode.value,)) for mode in Mode} < series
    assert all(len(labels) == len(metric.labels) for _, metric, labels in first_series())


def test_a_tally_passes_on_by_itself() -> None:
    came = threading.Event()
    Tally(lambda *_: came.set()).record([Sample(PICTURES, 1)])
    assert came.wait(20)
