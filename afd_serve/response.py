"""The wire format of answers: one home for handlers, command line and client.

A picture's answer is either a prediction::

    {"predictions": [{"index": 892, "label": "wall clock", "probability": 0.61}, ...],
     "estimated_quality": 10, "drift": 0.42, "protected": true, "model": {"name": "afd", "version": "1.0"}}

or a failure::

    {"error": {"code": "truncated_jpeg", "reason": "..."}}

A request with one picture gets one such object and the HTTP status of its outcome. A request with several pictures
gets a list in the order of the pictures and the status 200, because one status cannot speak for all of them: each
element says for itself. What is wrong with a request as a whole is one failure object with its own status. gRPC carries
no status per request, so the body alone always tells success from failure.

| status | codes |
|---|---|
| 400 | `empty`, `truncated_jpeg`, `corrupt_jpeg`, `bad_jpeg`, `bad_request`, `bad_option`, `bad_base64`, `bad_input` |
| 406 | `not_acceptable`: an explanation in no format that the client takes |
| 413 | `too_large` (one picture), `crowded_out` (by the others), `too_many_pictures`, `answer_too_large` |
| 415 | `not_an_image`, `unsupported_jpeg`, `unsupported_encoding` (a compressed body) |
| 500 | `internal`: a fault of ours, with an id that the log repeats |
| 501 | `not_supported` |
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, TypeVar

from afd_serve.results import Failure, Prediction

__all__ = [
    "MAX_ANSWER_BYTES",
    "ModelInfo",
    "Reply",
    "encode",
    "failure_to_dict",
    "prediction_from_dict",
    "prediction_to_dict",
    "read_result",
    "refuse",
    "reply",
    "status_of",
]

Plain = TypeVar("Plain")

MAX_ANSWER_BYTES: Final = 4 * 2**20
"""A server closes the worker whose answer passes its own limit, so answers stay well below it."""

_STATUS: Final[Mapping[str, HTTPStatus]] = MappingProxyType(
    {
        "not_acceptable": HTTPStatus.NOT_ACCEPTABLE,
        "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "crowded_out": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too_many_pictures": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "answer_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "not_an_image": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported_jpeg": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported_encoding": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
        "not_supported": HTTPStatus.NOT_IMPLEMENTED,
    }
)


@dataclass(frozen=True)
class ModelInfo:
    """Which model answered: the name and version that the server knows it by."""

    name: str
    version: str

    def to_dict(self) -> dict[str, str]:
        """The ``model`` object of an answer."""
        return {"name": self.name, "version": self.version}


@dataclass(frozen=True)
class Reply:
    """One request's answer, ready for a server."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"


def status_of(code: str) -> HTTPStatus:
    """The HTTP status of a failure; a code that is not listed is the client's fault."""
    return _STATUS.get(code, HTTPStatus.BAD_REQUEST)


def prediction_to_dict(prediction: Prediction, model: ModelInfo, *, top_k: int | None = None) -> dict[str, Any]:
    """A prediction on the wire, with at most the ``top_k`` first classes."""
    ranked = zip(prediction.indices, prediction.labels, prediction.probabilities, strict=True)
    return {
        "predictions": [
            {"index": index, "label": label, "probability": probability} for index, label, probability in ranked
        ][:top_k],
        "estimated_quality": prediction.estimated_quality,
        "drift": prediction.drift,
        "protected": prediction.protected,
        "model": model.to_dict(),
    }


def failure_to_dict(failure: Failure) -> dict[str, Any]:
    """A failure on the wire."""
    return {"error": {"code": failure.code, "reason": failure.reason}}


def prediction_from_dict(answer: Mapping[str, Any]) -> Prediction:
    """Read what `prediction_to_dict` wrote.

    Raises:
        LookupError: Something is missing.
        TypeError: Something is of another kind.
        ValueError: Something has an impossible value.
    """
    ranked, quality = answer["predictions"], answer["estimated_quality"]
    return Prediction(
        indices=tuple(_typed(item["index"], int) for item in ranked),
        labels=tuple(_typed(item["label"], str) for item in ranked),
        probabilities=tuple(_number(item["probability"], 0, 1) for item in ranked),
        estimated_quality=None if quality is None else _typed(quality, int),
        drift=_number(answer["drift"], -sys.float_info.max, sys.float_info.max),
        protected=_typed(answer["protected"], bool),
    )


def _typed(value: object, kind: type[Plain]) -> Plain:
    """The value itself, where it is exactly of this kind: a bool is no number here, and no text stands for either."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value


def _number(value: object, low: float, high: float) -> float:
    """A number within these bounds, which NaN and infinity never are."""
    number = value if isinstance(value, float) else _typed(value, int)
    if not low <= number <= high:
        raise ValueError(f"{number!r:.50} is no number from {low} to {high}")
    return float(number)


def read_result(value: object) -> Prediction | Failure:
    """Read what `prediction_to_dict` or `failure_to_dict` wrote.

    Raises:
        ValueError: It is neither.
    """
    try:
        answer = _typed(value, dict)
        if "error" in answer:
            return Failure(_typed(answer["error"]["code"], str), _typed(answer["error"]["reason"], str))
        return prediction_from_dict(answer)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"this is neither a prediction nor a failure: {value!r:.200}") from error


def refuse(failure: Failure) -> Reply:
    """The answer to a request that fails as a whole."""
    return Reply(status_of(failure.code), encode(failure_to_dict(failure)))


def reply(
    results: Sequence[Prediction | Failure], model: ModelInfo, *, single: bool, top_k: int | None = None
) -> Reply | Failure:
    """The answer to one request; a failure where the request fails now, although its results are there.

    Args:
        results: One per picture, in the request's order; exactly one when ``single``.
        model: Which model answered.
        single: Whether the request was one bare picture, which is answered by one object instead of a list.
        top_k: How many classes to keep.
    """
    if single and isinstance(results[0], Failure):
        return refuse(results[0])
    items = [
        failure_to_dict(item) if isinstance(item, Failure) else prediction_to_dict(item, model, top_k=top_k)
        for item in results
    ]
    body = encode(items[0] if single else items)
    if len(body) > MAX_ANSWER_BYTES:
        return Failure("answer_too_large", "send fewer pictures at once, or ask for a smaller top_k")
    return Reply(HTTPStatus.OK, body)


def encode(value: object) -> bytes:
    """Strict JSON; without strictness NaN would pass silently here and fail in every other parser."""
    return json.dumps(value, allow_nan=False).encode()
