"""From a request for an explanation to its reply: what every server's adapter shares.

A request carries one picture and the options of `afd_serve.request`. The reply is, by the option ``format`` or else by
the header ``Accept``,

- JSON (the default): the picture's prediction as `afd_serve.response` has it, with two more keys: ``resaved``, whether
  the coefficients show an earlier, heavier compression, and ``map``, the drift map as a list of rows from the top, each
  a list of shares >= 0;
- PNG: what `afd_serve.overlay` draws.

What is wrong is answered as a prediction's failure is, in JSON and with a status of its own.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final

from afd_serve.engines import Engine
from afd_serve.errors import InputError, NotExplainableError
from afd_serve.explain import Explainer, Explanation
from afd_serve.mode import Mode
from afd_serve.overlay import render
from afd_serve.pipeline import Pipeline
from afd_serve.request import BadOptionError, Request, RequestError, TooManyPicturesError, read_request
from afd_serve.response import ModelInfo, Reply, encode, prediction_to_dict, refuse
from afd_serve.results import Failure
from afd_serve.service import Call, internal_failure
from afd_serve.telemetry import EXPLANATION_FAILURES, EXPLANATIONS, Sample

__all__ = ["ExplanationService", "explanation_to_dict", "preferred_format"]

_TYPES: Final = {"json": "application/json", "png": "image/png"}
"""What an explanation's format is called in headers; the first is the default."""

_DIGITS: Final = 5


class NotAcceptableError(RequestError):
    """The client takes none of the formats."""

    code = "not_acceptable"


class ExplanationService:
    """Answers requests for explanations, each by itself.

    Args:
        pipeline: Prepares and classifies.
        load: Loads the features of the pipeline's model. It is called at the first explanation: a worker that only
            predicts has no memory to spare for them.
        model: The name and version that the answers carry.
    """

    def __init__(self, pipeline: Pipeline, load: Callable[[], Engine], model: ModelInfo) -> None:
        self._pipeline, self._load, self._model = pipeline, load, model

    def answer(self, call: Call) -> tuple[Reply, list[Sample]]:
        """The reply, and what it adds to the metrics; never raises for anything that a client can send."""
        try:
            reply = self._explain(call)
        except (InputError, NotExplainableError) as error:
            reply = Failure(error.code, str(error))
        except Exception:  # a fault of ours must not reach the neighbours in the batch
            reply = internal_failure()
        if isinstance(reply, Failure):
            return refuse(reply), [Sample(EXPLANATION_FAILURES, 1, (reply.code,))]
        return reply, [Sample(EXPLANATIONS, 1)]

    def _explain(self, call: Call) -> Reply | Failure:
        request = read_request(call.parts, call.headers)
        form = _format(request, call.headers)
        picture = _only_picture(request)
        if isinstance(picture, Failure):
            return picture
        found = self._explainer.explain(picture, top_k=request.options.top_k, crop=request.options.crop)
        body = render(found) if form == "png" else encode(explanation_to_dict(found, self._model))
        return Reply(HTTPStatus.OK, body, _TYPES[form])

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self._pipeline, self._load())


def explanation_to_dict(explanation: Explanation, model: ModelInfo) -> dict[str, Any]:
    """An explanation on the wire."""
    rows = [[round(float(value), _DIGITS) for value in row] for row in explanation.map]
    return prediction_to_dict(explanation.prediction, model) | {"resaved": explanation.resaved, "map": rows}


def _only_picture(request: Request) -> bytes | bytearray | Failure:
    if len(request.pictures) > 1:
        raise TooManyPicturesError("an explanation is of one picture: send them one by one")
    if request.options.mode is Mode.OFF:
        raise BadOptionError("there is nothing to explain with afd off")
    return request.pictures[0]


def _format(request: Request, headers: Mapping[str, object]) -> str:
    if request.format is None:
        accepted = [str(value) for name, value in headers.items() if name.lower() == "accept"]
        return preferred_format(accepted[0] if accepted else "*/*")
    if request.format not in _TYPES:
        raise BadOptionError(f"format is {' or '.join(_TYPES)}")
    return request.format


def preferred_format(accept: str) -> str:
    """Which of ``json`` and ``png`` suits an ``Accept`` header (RFC 9110, 12.5.1) best.

    Raises:
        NotAcceptableError: It takes neither.
    """
    ranges = [_range(item) for item in accept.split(",") if item.strip()] or [("*/*", 1.0)]
    qualities = {form: _quality(kind, ranges) for form, kind in _TYPES.items()}
    best = max(qualities, key=lambda form: qualities[form])
    if qualities[best] <= 0:
        raise NotAcceptableError(f"an explanation is {' or '.join(_TYPES.values())}; the Accept header takes neither")
    return best


def _range(item: str) -> tuple[str, float]:
    """A media range and its quality; one whose quality is no number counts in full."""
    kind, *parameters = (part.strip().lower() for part in item.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q" and value.replace(".", "", 1).isdecimal():
            return kind, float(value)
    return kind, 1.0


def _quality(kind: str, ranges: list[tuple[str, float]]) -> float:
    """The quality of the most specific range that has the type."""
    for pattern in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        found = [quality for name, quality in ranges if name == pattern]
        if found:
            return max(found)
    return 0.0
