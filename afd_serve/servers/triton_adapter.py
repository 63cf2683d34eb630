"""What the Python models of the Triton repository share: options, isolation of requests, metrics.

Only Triton's own Python processes can import this module; ``triton_python_backend_utils`` exists nowhere else.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import torch.utils.dlpack
import triton_python_backend_utils as pb_utils
from torch import Tensor

from afd_serve.errors import InputError
from afd_serve.mode import Mode
from afd_serve.pipeline import Failure, StageTimes
from afd_serve.request import BadOptionError, Options, RequestError, option_name, read_mode, read_options
from afd_serve.response import ModelInfo
from afd_serve.results import Shadow
from afd_serve.sample import PROBE_ID, is_probe
from afd_serve.service import internal_failure
from afd_serve.signature import Signature
from afd_serve.steps import ClassifierStep, Finding, PreparedBatch, PreparingStep, make_answers
from afd_serve.telemetry import (
    EXPLANATION_FAILURES,
    EXPLANATIONS,
    FAILURES,
    INFERENCE,
    METRICS,
    PREPROCESS,
    PROBES,
    REQUESTS,
    SHADOW_TIME,
    UNREAD,
    Metric,
    Sample,
    Series,
    Tally,
    first_series,
    samples_of,
)
from afd_serve.triton_protocol import (
    ANSWER,
    ENSEMBLE,
    MODEL_CPU_METRIC,
    PICTURE,
    STATUS,
    error_message,
)

__all__ = [
    "Answers",
    "Classified",
    "Classifying",
    "FailedRequestError",
    "Metrics",
    "Preparing",
    "Samples",
    "bytes_of",
    "findings_of",
    "options_of",
    "output",
    "respond",
    "respond_together",
    "tensor_of",
    "text_output",
    "version_folder",
]


Said = TypeVar("Said")

Samples: TypeAlias = list[Sample]

MODEL_CPU: Final = Metric(MODEL_CPU_METRIC, "counter", "seconds")


class FailedRequestError(InputError):
    """The one picture of a request has no answer, so that the request has none."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def version_folder(args: dict[str, str]) -> Path:
    """The folder of the model version being loaded, from the arguments of ``initialize``."""
    return Path(args["model_repository"]) / args["model_version"]


def options_of(request: Any) -> Options:
    """The options among a request's parameters, of which some may have come as headers.

    Triton lists those of the body before those of headers, even where they have one name; as in `read_request`, the
    body's count.

    Raises:
        BadOptionError: One has an impossible value.
    """
    parameters: list[tuple[str, Any]] = json.loads(request.parameters() or "{}", object_pairs_hook=list)
    return read_options({option_name(name): value for name, value in reversed(parameters)})


def tensor_of(request: Any, name: str) -> Tensor:
    """An input without copying it."""
    return torch.utils.dlpack.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())


def bytes_of(request: Any, name: str) -> list[bytes]:
    """An input of type STRING and shape [N, 1].

    Raises:
        RequestError: It has another shape: Triton lets clients ask for no row, or for so many that their number
            overflows.
    """
    values = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    if values.ndim != 2 or not len(values):
        raise RequestError(f"{name} must have the shape [N, 1], with N from 1 on")
    return list(values[:, 0])


def output(name: str, tensor: Tensor) -> Any:
    """An output without copying it into NumPy first."""
    return pb_utils.Tensor.from_dlpack(name, tensor.contiguous())


def findings_of(request: Any) -> list[Finding]:
    """What the first step found of each picture."""
    return [Finding.from_json(text) for text in bytes_of(request, "finding")]


def text_output(name: str, texts: Sequence[str | bytes]) -> Any:
    """An output of type STRING and shape [N, 1]."""
    return pb_utils.Tensor(name, np.array([[text] for text in texts], dtype=np.object_))


def respond(requests: Sequence[Any], answer: Callable[[Any, Samples], list[Any]], metrics: "Metrics") -> list[Any]:
    """One response per request; what is wrong with one never reaches its neighbours.

    Triton fails a whole dynamic batch for one exception, so none may leave ``execute``.

    Args:
        requests: A dynamic batch.
        answer: Makes a request's outputs, and adds what it found to the samples as it goes: they count even where the
            request fails in the end.
        metrics: Where each request's samples go.
    """
    return [_respond_to_one(request, answer, metrics) for request in requests]


def respond_together(
    requests: Sequence[Any],
    answer: Callable[[Sequence[Any], Sequence[Samples]], Sequence[list[Any]]],
    metrics: "Metrics",
) -> list[Any]:
    """As `respond`, but all requests at once; where that fails, one by one."""
    if len(requests) > 1:
        samples: list[Samples] = [[] for _ in requests]
        try:
            responses = [pb_utils.InferenceResponse(output_tensors=tensors) for tensors in answer(requests, samples)]
        except Exception as error:
            pb_utils.Logger.log_warn(f"a batch of {len(requests)} requests failed ({error!r}); trying them one by one")
        else:
            for request, own in zip(requests, samples, strict=True):
                metrics.record(request, own)
            return responses
    return respond(requests, lambda request, own: answer([request], [own])[0], metrics)


def _respond_to_one(request: Any, answer: Callable[[Any, Samples], list[Any]], metrics: "Metrics") -> Any:
    samples: Samples = []
    try:
        response = pb_utils.InferenceResponse(output_tensors=answer(request, samples))
    except FailedRequestError as error:
        response = _refuse(error.failure, pb_utils.TritonError.INVALID_ARG)
    except InputError as error:
        response = _refuse(Failure(error.code, str(error)), pb_utils.TritonError.INVALID_ARG)
    except Exception:  # a fault of ours
        failure = internal_failure(pb_utils.Logger.log_error)
        samples.append(Sample(FAILURES, 1, (failure.code,)))
        response = _refuse(failure, pb_utils.TritonError.INTERNAL)
    metrics.record(request, samples)
    return response


def _refuse(failure: Failure, status: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error_message(failure.code, failure.reason), status))


class Preparing:
    """The pictures of a request prepared; what fails the request as a whole is counted here and nowhere else.

    Args:
        step: Prepares them.
        args: The arguments of ``initialize``; the model's parameters say which mode requests have that name none, and
            which modes there are.
    """

    def __init__(self, step: PreparingStep, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._mode = read_mode(parameters["afd"]["string_value"])
        self._modes = [Mode(name) for name in parameters["afd_modes"]["string_value"].split()]
        self._step = step

    def prepare(self, request: Any, samples: Samples) -> PreparedBatch:
        """The prepared pictures; what is to be counted is added to ``samples``.

        Raises:
            BadOptionError: An option has an impossible value.
            RequestError: There is no picture.
            FailedRequestError: The picture came alone and cannot be read.
        """
        try:
            options = options_of(request)
            mode = self._known(options.mode or self._mode)
            pictures = bytes_of(request, PICTURE)
        except InputError as error:
            samples += [Sample(REQUESTS, 1, (UNREAD,)), Sample(FAILURES, 1, (error.code,))]
            raise
        samples.append(Sample(REQUESTS, 1, (mode.value,)))
        start = time.perf_counter()
        batch = self._step.prepare(pictures, mode=mode, crop=options.crop)
        seconds = time.perf_counter() - start
        if len(batch.findings) == 1 and (failure := batch.findings[0].failure):
            samples += samples_of([failure], StageTimes(preprocess=seconds))
            raise FailedRequestError(failure)
        samples.append(Sample(PREPROCESS, seconds))
        return batch

    def _known(self, mode: Mode) -> Mode:
        if mode not in self._modes:
            raise BadOptionError(f"on this platform afd is one of {', '.join(self._modes)}")
        return mode


@dataclass(frozen=True)
class Classified:
    """What the classifier says of one request's pictures.

    Attributes:
        logits: float32 [N, K].
        drift: float32 [N].
        shadows: N of what `ClassifierStep.shadow` gives; None where nobody looked.
        samples: What that took.
    """

    logits: Tensor
    drift: Tensor
    shadows: Sequence[Shadow | Failure | None] | None = None
    samples: Sequence[Sample] = ()


class Classifying:
    """The classifier's passes over prepared requests: one that answers and, in shadow mode, one that does not."""

    def __init__(self, step: ClassifierStep) -> None:
        self._step = step

    def classify(self, batches: Sequence[PreparedBatch]) -> list[Classified]:
        """Classify several requests' pictures; times are shared out among the requests."""
        said, times = _timed(INFERENCE, lambda: self._step.classify([batch.inputs for batch in batches]))
        samples = _shared(times, len(batches))
        classified = [Classified(logits, drift, samples=samples) for logits, drift in said]
        shadowed = [index for index, batch in enumerate(batches) if any(item.shadowed for item in batch.findings)]
        if shadowed:
            chosen, given = [batches[index] for index in shadowed], [said[index][0] for index in shadowed]
            shadows, times = _timed(SHADOW_TIME, lambda: self._step.shadow(chosen, given))
            more = [*samples, *_shared(times, len(shadowed))]
            for index, found in zip(shadowed, shadows, strict=True):
                classified[index] = replace(classified[index], shadows=found, samples=more)
        return classified


def _timed(metric: Metric, classify: Callable[[], Said]) -> tuple[Said, list[Sample]]:
    wall, cpu = time.perf_counter(), time.thread_time()
    said = classify()
    return said, [Sample(metric, time.perf_counter() - wall), Sample(MODEL_CPU, time.thread_time() - cpu)]


def _shared(samples: Iterable[Sample], parts: int) -> list[Sample]:
    return [replace(sample, value=sample.value / parts) for sample in samples]


class Answers:
    """What clients get, made of what the classifier says."""

    def __init__(self, signature: Signature, args: dict[str, str]) -> None:
        self._labels = signature.labels
        self._model = ModelInfo(ENSEMBLE, args["model_version"])

    def outputs(self, request: Any, findings: Sequence[Finding], classified: Classified, samples: Samples) -> list[Any]:
        """Make the outputs for one request.

        Args:
            request: With the options.
            findings: N of them.
            classified: Of the same pictures.
            samples: Gets what is to be counted.
        """
        answered = make_answers(
            classified.logits,
            classified.drift,
            findings,
            labels=self._labels,
            model=self._model,
            top_k=options_of(request).top_k,
            shadows=classified.shadows,
        )
        samples += classified.samples
        samples += [item for item in samples_of(answered.results, StageTimes()) if item.metric not in _TIMES]
        return [
            output("probabilities", answered.probabilities),
            output("drift", answered.drift),
            output("estimated_quality", answered.estimated_quality),
            text_output(STATUS, answered.status),
            text_output(ANSWER, answered.bodies),
        ]


class Metrics:
    """The catalogue of `afd_serve.telemetry` as Triton's custom metrics, all of them counters.

    Args:
        args: The arguments of ``initialize``; the warm-up that they tell of is not counted.
    """

    def __init__(self, args: dict[str, str]) -> None:
        self._families = {name: _family(name, metric) for metric in _METRICS for name in metric.series}
        self._metrics: dict[Series, Any] = {}
        self._uncounted = _warm_up_requests(args)
        self._tally = Tally(self._increment, first_series(_METRICS))

    def record(self, request: Any, samples: Samples) -> None:
        """Count what a request gives, once for each; the warm-up gives nothing, and a probe only that it was one.

        A probe that fails counts as every other request.
        """
        # A request that failed may be one that cannot be read, and has no samples where an earlier step counted it.
        failed = not samples or any(sample.metric is FAILURES for sample in samples)
        if self._uncounted:
            self._uncounted -= 1
        elif failed or not _is_probe(request):
            self._tally.record(samples)
        elif _pictures_of(request) is not None:  # of an ensemble's steps the first counts it
            self._tally.record([Sample(PROBES, 1)])

    def close(self) -> None:
        """Pass on what is left; nothing may be recorded afterwards."""
        self._tally.close()

    def _increment(self, series: Series, value: float) -> None:
        if series not in self._metrics:
            named = {"ModelName": ENSEMBLE} | dict(zip(series.metric.labels, series.labels, strict=True))
            self._metrics[series] = self._families[series.name].Metric(labels=named)
        self._metrics[series].increment(value)


_NOT_TRITONS: Final = (EXPLANATIONS, EXPLANATION_FAILURES)
_METRICS: Final = (*(metric for metric in METRICS if metric not in _NOT_TRITONS), MODEL_CPU)
_TIMES: Final = (PREPROCESS, INFERENCE, SHADOW_TIME)


def _is_probe(request: Any) -> bool:
    """Whether a request is one for health; those of an ensemble's later steps carry findings instead of pictures."""
    if request.request_id() != PROBE_ID:
        return False
    pictures = _pictures_of(request)
    if pictures is None:
        return [finding.sample for finding in findings_of(request)] == [True]
    return is_probe(PROBE_ID, pictures)


def _pictures_of(request: Any) -> list[bytes] | None:
    """The pictures of a request; None where it has none, but what an earlier step made of them."""
    has_pictures = pb_utils.get_input_tensor_by_name(request, PICTURE) is not None
    return bytes_of(request, PICTURE) if has_pictures else None


def _warm_up_requests(args: dict[str, str]) -> int:
    """How many requests each instance gets before any client's: the model is not ready before they are answered."""
    return sum(warm_up.get("count") or 1 for warm_up in json.loads(args["model_config"]).get("model_warmup", ()))


def _family(name: str, metric: Metric) -> Any:
    description = f"{metric.name} in {metric.unit}"
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
