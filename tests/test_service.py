"""Batches of requests: every one gets its own answer, whatever its neighbours are."""

import base64
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from afd_serve import budget
from afd_serve.mode import Mode
from afd_serve.pipeline import Failure, Prediction, StageTimes
from afd_serve.preprocess import Buffer
from afd_serve.response import ModelInfo
from afd_serve.results import Shadow
from afd_serve.service import Call, Service
from afd_serve.telemetry import FAILURES, METRICS, PROBES, REQUESTS, Sample

Ask = Callable[..., tuple[list[tuple[int, Any]], list[Sample]]]


class ScriptedPipeline:
    """Answers by the first byte of an item: ``b`` is a bad picture, ``!`` a fault of ours, ``n`` no number.

    With AFD, the first class would be another one, with more confidence for ``a`` and less for all else; for ``?`` that
    cannot be told.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def predict(
        self, items: Sequence[Buffer], *, top_k: int, afd: Sequence[Mode], crop: bool, times: StageTimes
    ) -> list[Prediction | Failure]:
        self.calls.append((len(items), crop))
        times.preprocess += 0.25
        times.inference += 0.5
        times.shadow += 0.75 * sum(mode is Mode.SHADOW for mode in afd)
        return [self._one(bytes(item), top_k, mode, crop) for item, mode in zip(items, afd, strict=True)]

    def _one(self, item: bytes, top_k: int, mode: Mode, crop: bool) -> Prediction | Failure:
        if item.startswith(b"!"):
            raise RuntimeError("broken\n[METRICS]forged.count:1|#|#type:COUNTER")
        if item.startswith(b"b"):
            return Failure("corrupt_jpeg", "bad")
        probability = float("nan") if item.startswith(b"n") else 1.0
        label = f"{item.decode()}{'' if crop else ' uncropped'}"
        shadow = Failure("internal", "?") if item == b"?" else Shadow(True, 0.25 if item == b"a" else -0.125)
        return Prediction(
            indices=tuple(range(top_k)),
            labels=(label,) * top_k,
            probabilities=(probability,) * top_k,
            estimated_quality=10,
            drift=0.5,
            protected=mode is Mode.PROTECT,
            shadow=shadow if mode is Mode.SHADOW else None,
        )


@pytest.fixture
def pipeline() -> ScriptedPipeline:
    return ScriptedPipeline()


@pytest.fixture
def answer(pipeline: ScriptedPipeline) -> Ask:
    service = Service(pipeline, ModelInfo("afd", "1.0"))

    def ask(*calls: Any) -> tuple[list[tuple[int, Any]], list[Sample]]:
        answers = service.answer(
            [Call(*call) if isinstance(call, tuple) else Call({"body": call}, {}) for call in calls]
        )
        return [(reply.status.value, json.loads(reply.body)) for reply in answers.replies], answers.samples

    return ask


def label(body: Any) -> str:
    return str(body["predictions"][0]["label"])


def test_every_request_gets_its_own_answer(
    answer: Ask, pipeline: ScriptedPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    replies, _ = answer(b"first", b"bad", ({"body": b"x"}, {"top_k": "none"}), ({}, {}), b"last")
    assert [status for status, _ in replies] == [200, 400, 400, 400, 200]
    assert label(replies[0][1]) == "first"
    assert label(replies[4][1]) == "last"
    assert [body["error"]["code"] for _, body in replies[1:4]] == ["corrupt_jpeg", "bad_option", "bad_request"]
    assert pipeline.calls == [(3, True)]
    assert not caplog.records, "nothing of that is worth a line in the log"


def test_options_are_each_requests_own(answer: Ask, pipeline: ScriptedPipeline) -> None:
    (first, second, third), _ = answer(
        ({"body": b"a"}, {"top_k": "2", "afd": "off"}),
        ({"body": b"c"}, {"top_k": "9"}),
        ({"body": b"d"}, {"crop": "off"}),
    )
    assert len(first[1]["predictions"]) == 2
    assert first[1]["protected"] is False
    assert len(second[1]["predictions"]) == 9
    assert second[1]["protected"] is True
    assert label(third[1]) == "d uncropped"
    assert pipeline.calls == [(2, True), (1, False)]


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
    replies, samples = answer(b"n", b"good")
    assert [status for status, _ in replies] == [500, 200]
    assert [(item.labels, item.value) for item in samples if item.metric is FAILURES] == [(("internal",), 1)]


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
        ("afd_requests_total", ("none",), 1),
        ("afd_requests_total", ("off",), 1),
        ("afd_requests_total", ("protect",), 2),
    ]
    assert {sample.metric for sample in samples} <= set(METRICS)


def test_an_answer_that_is_too_large_counts_as_a_failure(answer: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afd_serve.response.MAX_ANSWER_BYTES", 10)
    ((status, body),), samples = answer(b"a")
    assert (status, body["error"]["code"]) == (413, "answer_too_large")
    assert [(item.labels, item.value) for item in samples if item.metric is FAILURES] == [(("answer_too_large",), 1)]


PROBE = {"X-Request-Id": "afd-health"}


def test_a_probe_counts_as_one_and_as_nothing_else(answer: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afd_serve.sample.sample_picture", lambda: b"clock")
    instances = {"instances": [{"b64": "Y2xvY2s="}], "x_request_id": "afd-health"}
    replies, samples = answer(({"body": b"clock"}, PROBE), ({"body": instances}, {}))
    assert [label(body[0] if isinstance(body, list) else body) for _, body in replies] == ["clock", "clock"]
    assert samples == [Sample(PROBES, 2)]
    mixed = answer(({"body": b"clock"}, PROBE), b"a")
    alone = answer(b"a")
    assert [label(body) for _, body in mixed[0]] == ["clock", "a"]
    assert [item for item in mixed[1] if item.metric is not PROBES] == alone[1], "its time is nobody's either"


@pytest.mark.parametrize(
    "call",
    [
        ({"body": b"a"}, PROBE),
        ({"body": b"clock"}, {"X-Request-Id": "afd"}),
        ({"body": b"clock"}, {}),
        ({"one": b"clock", "two": b"clock"}, PROBE),
        ({"one": b"clock", "two": b"bad"}, PROBE),
        ({"body": b"clock"}, PROBE | {"top_k": "none"}),
    ],
)
def test_what_only_says_that_it_is_a_probe_is_counted(
    answer: Ask, monkeypatch: pytest.MonkeyPatch, call: tuple[dict[str, Any], dict[str, str]]
) -> None:
    monkeypatch.setattr("afd_serve.sample.sample_picture", lambda: b"clock")
    _, samples = answer(call)
    assert sum(item.value for item in samples if item.metric is REQUESTS) == 1
    assert not [item for item in samples if item.metric is PROBES]


@pytest.mark.parametrize("sample", [b"bad", b"!", b"n"])
@pytest.mark.parametrize("single", [True, False])
def test_a_probe_that_fails_counts_as_every_other_request(
    answer: Ask, monkeypatch: pytest.MonkeyPatch, sample: bytes, single: bool
) -> None:
    monkeypatch.setattr("afd_serve.sample.sample_picture", lambda: sample)
    body = sample if single else {"instances": [{"b64": base64.b64encode(sample).decode()}]}
    _, samples = answer(({"body": body}, PROBE))
    assert sum(item.value for item in samples if item.metric is REQUESTS) == 1
    assert sum(item.value for item in samples if item.metric is FAILURES) == 1


def test_in_shadow_mode_the_client_gets_the_bare_answer_and_the_metrics_the_difference(answer: Ask) -> None:
    (shadowed, bare), samples = answer(({"body": b"a"}, {"afd": "shadow"}), ({"body": b"a"}, {"afd": "off"}))
    assert shadowed == bare
    assert shadowed[1]["protected"] is False
    counted = {(sample.metric.name, sample.labels): sample.value for sample in samples}
    assert counted["afd_requests_total", ("shadow",)] == 1
    assert counted["afd_shadow_total", ()] == 1
    assert counted["afd_shadow_confidence_change_total", ("up",)] == 0.25
    assert counted["afd_shadow_seconds", ()] == 0.75
    assert ("afd_protected_total", ()) not in counted


@pytest.mark.parametrize("mode", Mode)
def test_the_models_mode_is_for_requests_that_name_none(pipeline: ScriptedPipeline, mode: Mode) -> None:
    service = Service(pipeline, ModelInfo("afd", "1.0"), mode)
    answers = service.answer([Call({"body": b"a"}, {}), Call({"body": b"a"}, {"afd": "on"})])
    requests = {sample.labels: sample.value for sample in answers.samples if sample.metric is REQUESTS}
    assert requests == ({("protect",): 2} if mode is Mode.PROTECT else {(mode.value,): 1, ("protect",): 1})
    assert [json.loads(reply.body)["protected"] for reply in answers.replies] == [mode is Mode.PROTECT, True]


def test_each_request_has_a_budget_of_its_own_for_pictures_that_are_no_jpegs(
    answer: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MAX_OTHER_PIXELS_PER_REQUEST", 2 * 96 * 80)
    monkeypatch.setattr(budget, "pixels_to_decode", lambda *_: 96 * 80)
    three = ({"x": b"a", "y": b"c", "z": b"d"}, {})
    ((_, first), (_, second)), samples = answer(three, three)
    for body in (first, second):
        assert [label(item) for item in body[:2]] == ["a", "c"]
        assert body[2]["error"]["code"] == "crowded_out"
        assert "those of the request's other pictures" in body[2]["error"]["reason"]
    assert [(item.labels, item.value) for item in samples if item.metric is FAILURES] == [(("crowded_out",), 2)]
