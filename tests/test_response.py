"""The wire format of answers."""

import json
from http import HTTPStatus

import pytest

from afd_serve.pipeline import Failure, Prediction
from afd_serve.response import (
    MAX_ANSWER_BYTES,
    ModelInfo,
    failure_to_dict,
    prediction_to_dict,
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
        ("too_many_pictures", 413),
        ("not_an_image", 415),
        ("unsupported_jpeg", 415),
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
    assert answer.status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert len(answer.body) < 1000
    assert json.loads(answer.body)["error"]["code"] == "answer_too_large"


def test_a_probability_that_is_no_number_is_an_error_and_not_bad_json() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        reply([Prediction((0,), ("a",), (float("nan"),), None, 0.0, False)], MODEL, single=True)
