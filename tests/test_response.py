"""The wire format of answers."""

import json
import math
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest

from afd_serve.pipeline import Failure, Prediction
from afd_serve.response import (
    MAX_ANSWER_BYTES,
    ModelInfo,
    failure_to_dict,
    prediction_to_dict,
    read_result,
    refuse,
    reply,
    status_of,
)

MODEL = ModelInfo("afd", "1.0")
PREDICTION = Prediction(
    indices=(892, 409),
    labels=("wall clock", "analog clock"),
    probabilities=(0.625, 0.25),
    estimated_quality=10,
    drift=0.5,
    protected=True,
)


def test_a_prediction_on_the_wire() -> None:
    assert prediction_to_dict(PREDICTION, MODEL) == {
        "predictions": [
            {"index": 892, "label": "wall clock", "probability": 0.625},
            {"index": 409, "label": "analog clock", "probability": 0.25},
        ],
        "estimated_quality": 10,
        "drift": 0.5,
        "protected": True,
        "model": {"name": "afd", "version": "1.0"},
    }


def test_what_is_written_is_read() -> None:
    for result in (PREDICTION, replace(PREDICTION, estimated_quality=None), Failure("empty", "no bytes")):
        answer = failure_to_dict(result) if isinstance(result, Failure) else prediction_to_dict(result, MODEL)
        assert read_result(json.loads(json.dumps(answer))) == result
    whole = {"predictions": [{"index": 1, "label": "a", "probability": 1}], "drift": 0}
    assert isinstance(read_result(whole | {"estimated_quality": None, "protected": False}), Prediction)


@pytest.mark.parametrize(
    "changed",
    [
        *({"drift": value} for value in (None, "0.5", math.nan, math.inf, 10**400, True)),
        *({"protected": value} for value in (None, "false", 0)),
        *({"estimated_quality": value} for value in ("x", "10", 10.5, True)),
        *({"predictions": value} for value in (None, 3, "ab", [3], [{}])),
    ],
)
def test_an_answer_with_a_value_of_another_kind_is_none(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="neither a prediction nor a failure"):
        read_result(prediction_to_dict(PREDICTION, MODEL) | changed)


@pytest.mark.parametrize(
    "changed",
    [
        *({"probability": value} for value in (None, "0.5", math.nan, math.inf, 5, -0.1, 10**400, True)),
        *({"index": value} for value in (None, "1", 1.0, True)),
        *({"label": value} for value in (None, 1)),
    ],
)
def test_an_answer_with_a_class_of_another_kind_is_none(changed: dict[str, Any]) -> None:
    answer = prediction_to_dict(PREDICTION, MODEL)
    answer["predictions"][1] |= changed
    with pytest.raises(ValueError, match="neither a prediction nor a failure"):
        read_result(answer)


@pytest.mark.parametrize(
    "value", [None, 3, [], [["error", {"code": "empty", "reason": ""}]], {}, {"error": None}, {"error": "empty"}]
)
def test_what_has_another_form_is_no_answer(value: object) -> None:
    with pytest.raises(ValueError, match="neither a prediction nor a failure"):
        read_result(value)


@pytest.mark.parametrize("error", [{"code": None, "reason": "no bytes"}, {"code": "empty", "reason": 1}, {"code": "x"}])
def test_a_failure_without_a_code_or_a_reason_is_none(error: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="neither a prediction nor a failure"):
        read_result({"error": error})


def test_top_k_keeps_the_first_classes() -> None:
    assert [item["index"] for item in prediction_to_dict(PREDICTION, MODEL, top_k=1)["predictions"]] == [892]


def test_a_failure_on_the_wire() -> None:
    assert failure_to_dict(Failure("empty", "no bytes")) == {"error": {"code": "empty", "reason": "no bytes"}}


def test_one_picture_is_answered_by_one_object() -> None:
    answer = reply([PREDICTION], MODEL, single=True)
    assert answer.status is HTTPStatus.OK
    assert json.loads(answer.body) == prediction_to_dict(PREDICTION, MODEL)


def test_one_bad_picture_has_its_own_status() -> None:
    answer = reply([Failure("not_an_image", "no format")], MODEL, single=True)
    assert answer.status is HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert json.loads(answer.body)["error"]["code"] == "not_an_image"


def test_several_pictures_are_answered_by_a_list_in_order() -> None:
    answer = reply([PREDICTION, Failure("empty", "no bytes"), PREDICTION], MODEL, single=False)
    assert answer.status is HTTPStatus.OK
    assert [("error" in item) for item in json.loads(answer.body)] == [False, True, False]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("empty", 400),
        ("truncated_jpeg", 400),
        ("corrupt_jpeg", 400),
        ("too_large", 413),
        ("crowded_out", 413),
        ("too_many_pictures", 413),
        ("not_an_image", 415),
        ("unsupported_jpeg", 415),
        ("unsupported_encoding", 415),
        ("internal", 500),
        ("not_supported", 501),
        ("a_code_that_is_not_listed", 400),
    ],
)
def test_statuses(code: str, status: int) -> None:
    assert status_of(code) == status
    assert refuse(Failure(code, "")).status == status


def test_an_answer_is_never_larger_than_the_limit() -> None:
    label = "x" * 2**20
    wide = Prediction((0,), (label,), (1.0,), None, 0.0, False)
    answer = reply([wide] * (MAX_ANSWER_BYTES // len(label)), MODEL, single=False)
    assert isinstance(answer, Failure)
    assert answer.code == "answer_too_large"
    assert len(refuse(answer).body) < 1000


def test_a_probability_that_is_no_number_is_an_error_and_not_bad_json() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        reply([Prediction((0,), ("a",), (float("nan"),), None, 0.0, False)], MODEL, single=True)
