"""Batches of requests: every one gets its own answer, whatever its neighbours are."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from afd_serve.pipeline import Failure, Prediction, StageTimes
from afd_serve.preprocess import Buffer
from afd_serve.response import ModelInfo
from afd_serve.service import Call, Service
from afd_serve.telemetry import METRICS, Sample, quality_bucket

Ask = Callable[..., tuple[list[tuple[int, Any]], list[Sample]]]


class ScriptedPipeline:
    """Answers by the first byte of an item: ``b`` is a bad picture, ``!`` a fault of ours, ``n`` no number."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def predict(
        self, items: Sequence[Buffer], *, top_k: int, afd: Sequence[bool], crop: bool, times: StageTimes
    ) -> list[Prediction | Failure]:
        self.calls.append((len(items), crop))
        times.preprocess += 0.25
        times.inference += 0.5
        return [self._one(bytes(item), top_k, on, crop) for item, on in zip(items, afd, strict=True)]

    def _one(self, item: bytes, top_k: int, afd: bool, crop: bool) -> Prediction | Failure:
        if item.startswith(b"!"):
            raise RuntimeError("broken\n[METRICS]forged.count:1|#|#type:COUNTER")
        if item.startswith(b"b"):
            return Failure("corrupt_jpeg", "bad")
        probability = float("nan") if item.startswith(b"n") else 1.0
        label = f"{item.decode()}{'' if crop else ' uncropped'}"
        return Prediction(tuple(range(top_k)), (label,) * top_k, (probability,) * top_k, 10, 0.5, afd)


@pytest.fixture
def pipeline() -> ScriptedPipeline:
    return ScriptedPipeline()


@pytest.fixture
def answer(pipeline: ScriptedPipeline) -> Ask:
    service = Service(pipeline, ModelInfo("afd", "1.0"), classes=20)

    def ask(*calls: Any) -> tuple[list[tuple[int, Any]], list[Sample]]:
        answers = service.answer(
            [Call(*call) if isinstance(call, tuple) else Call({"body": call}, {}) for call in calls]
        )
        return [(reply.status.value, json.loads(reply.body)) for reply in answers.replies], answers.samples

    return ask


def label(body: Any) -> str:
    return str(body["predictions"][0]["label"])


def test_every_request_gets_its_own_answer(answer: Ask, pipeline: ScriptedPipeline) -> None:
    replies, _ = answer(b"first", b"bad", ({"body": b"x"}, {"top_k": "none"}), ({}, {}), b"last")
    assert [status for status, _ in replies] == [200, 400, 400, 400, 200]
    assert label(replies[0][1]) == "first"
    assert label(replies[4][1]) == "last"
    assert [body["error"]["code"] for _, body in replies[1:4]] == ["corrupt_jpeg", "bad_option", "bad_request"]
    assert pipeline.calls == [(3, True)]


def test_options_are_each_requests_own(answer: Ask, pipeline: ScriptedPipeline) -> None:
    (first, second, third), _ = answer(
        ({"body": b"a"}, {"top_k": "2", "afd": "off"}),
        ({"body": b"b2".replace(b"b", b"c")}, {"top_k": "9"}),
        ({"body": b"d"}, {"crop": "off"}),
    )
    assert len(first[1]["predictions"]) == 2
    assert first[1]["protected"] is False
    assert len(second[1]["predictions"]) == 9
    assert second[1]["protected"] is True
    assert label(third[1]) == "d uncropped"
    assert pipeline.calls == [(2, True), (1, False)]


def test_top_k_is_bounded_by_the_number_of_classes(answer: Ask) -> None:
    ((_, body),), _ = answer(({"body": b"a"}, {"top_k": "100"}))
    assert len(body["predictions"]) == 20


def test_several_pictures_in_one_request(answer: Ask) -> None:
    ((status, body),), _ = answer(({"body": {"instances": ["YQ==", "?", "Yg=="]}}, {}))
    assert status == 200
    assert label(body[0]) == "a"
    assert [item["error"]["code"] for item in body[1:]] == ["bad_base64", "corrupt_jpeg"]


def test_a_fault_of_ours_costs_only_its_own_request(answer: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        replies, _ = answer(b"first", b"!", ({"a": b"second", "c": b"!"}, {}), b"third")
    assert [status for status, _ in replies] == [200, 500, 200, 200]
    assert label(replies[0][1]) == "first"
    assert label(replies[3][1]) == "third"
    assert label(replies[2][1][0]) == "second"
    assert replies[2][1][1]["error"]["code"] == "internal"
    identifier = replies[1][1]["error"]["reason"].split()[-1]
    (record,) = [record for record in caplog.records if identifier in record.getMessage()]
    assert "RuntimeError" in record.getMessage()
    assert "\n" not in record.getMessage(), "a client could forge a log line"


def test_an_answer_that_cannot_be_written_is_an_internal_error(answer: Ask) -> None:
    replies, _ = answer(b"n", b"good")
    assert [status for status, _ in replies] == [500, 200]


def test_an_empty_batch(answer: Ask) -> None:
    assert answer() == ([], [])


def test_samples(answer: Ask) -> None:
    _, samples = answer(b"a", b"b", ({"body": b"c"}, {"afd": "off"}), ({}, {}))
    assert sorted((sample.metric.name, sample.labels, sample.value) for sample in samples) == [
        ("afd_drift", (), 0.5),
        ("afd_drift", (), 0.5),
        ("afd_estimated_quality_total", ("08-10",), 2),
        ("afd_failures_total", ("bad_request",), 1),
        ("afd_failures_total", ("corrupt_jpeg",), 1),
        ("afd_inference_seconds", (), 0.5),
        ("afd_pictures_total", (), 3),
        ("afd_preprocess_seconds", (), 0.25),
        ("afd_protected_total", (), 1),
    ]
    assert {sample.metric for sample in samples} <= set(METRICS)


@pytest.mark.parametrize(
    ("quality", "bucket"), [(None, "none"), (1, "01-07"), (7, "01-07"), (8, "08-10"), (91, "91-100"), (100, "91-100")]
)
def test_quality_buckets(quality: int | None, bucket: str) -> None:
    assert quality_bucket(quality) == bucket
