"""The catalogue of metrics, and what results add to it."""

import threading
from dataclasses import replace

import pytest

from afd_serve.pipeline import Failure, Prediction, StageTimes
from afd_serve.results import Shadow
from afd_serve.telemetry import DRIFT, FAILURES, PICTURES, Sample, Series, Tally, quality_bucket, samples_of

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


def test_a_tally_passes_on_by_itself() -> None:
    came = threading.Event()
    Tally(lambda *_: came.set()).record([Sample(PICTURES, 1)])
    assert came.wait(20)
