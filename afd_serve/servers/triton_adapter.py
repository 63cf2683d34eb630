"""What the Python models of the Triton repository share: options, isolation of requests, metrics.

Only Triton's own Python processes can import this module; ``triton_python_backend_utils`` exists nowhere else.
"""

import json
import traceback
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch.utils.dlpack
import triton_python_backend_utils as pb_utils
from torch import Tensor

from afd_serve.errors import InputError
from afd_serve.export import Signature
from afd_serve.pipeline import Failure, StageTimes
from afd_serve.request import Options, read_options
from afd_serve.response import ModelInfo
from afd_serve.steps import Finding, make_answers
from afd_serve.telemetry import INFERENCE, METRICS, PREPROCESS, Metric, Sample, samples_of
from afd_serve.triton_protocol import ENSEMBLE, PROBE_ID, error_message

__all__ = [
    "Answers",
    "FailedRequestError",
    "Metrics",
    "bytes_of",
    "options_of",
    "output",
    "respond",
    "respond_together",
    "tensor_of",
    "text_output",
    "version_folder",
]


class FailedRequestError(InputError):
    """The one picture of a request has no answer, so that the request has none."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def version_folder(args: dict[str, str]) -> Path:
    """The folder of the model version being loaded, from the arguments of ``initialize``."""
    return Path(args["model_repository"]) / args["model_version"]


def options_of(request: Any) -> Options:
    """The options among a request's parameters; one that came as a header may be written in any case.

    Raises:
        BadOptionError: One has an impossible value.
    """
    parameters: dict[str, Any] = json.loads(request.parameters() or "{}")
    return read_options({name.lower(): value for name, value in parameters.items()})


def tensor_of(request: Any, name: str) -> Tensor:
    """An input without copying it."""
    return torch.utils.dlpack.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())


def bytes_of(request: Any, name: str) -> list[bytes]:
    """An input of type STRING and shape [N, 1]."""
    return list(pb_utils.get_input_tensor_by_name(request, name).as_numpy()[:, 0])


def output(name: str, tensor: Tensor) -> Any:
    """An output without copying it into NumPy first."""
    return pb_utils.Tensor.from_dlpack(name, tensor)


def text_output(name: str, texts: Sequence[str | bytes]) -> Any:
    """An output of type STRING and shape [N, 1]."""
    return pb_utils.Tensor(name, np.array([[text] for text in texts], dtype=np.object_))


def respond(requests: Sequence[Any], answer: Callable[[Any], list[Any]]) -> list[Any]:
    """One response per request; what is wrong with one never reaches its neighbours.

    Triton fails a whole dynamic batch for one exception, so none may leave ``execute``.
    """
    return [_respond_to_one(request, answer) for request in requests]


def respond_together(requests: Sequence[Any], answer: Callable[[Sequence[Any]], Iterable[list[Any]]]) -> list[Any]:
    """As `respond`, but all requests at once; where that fails, one by one."""
    if len(requests) > 1:
        try:
            return [pb_utils.InferenceResponse(output_tensors=tensors) for tensors in answer(requests)]
        except Exception as error:
            pb_utils.Logger.log_warn(f"a batch of {len(requests)} requests failed ({error!r}); trying them one by one")
    return respond(requests, lambda request: next(iter(answer([request]))))


def _respond_to_one(request: Any, answer: Callable[[Any], list[Any]]) -> Any:
    try:
        return pb_utils.InferenceResponse(output_tensors=answer(request))
    except FailedRequestError as error:
        return _refuse(error.failure, pb_utils.TritonError.INVALID_ARG)
    except InputError as error:
        return _refuse(Failure(error.code, str(error)), pb_utils.TritonError.INVALID_ARG)
    except Exception:  # a fault of ours
        identifier = uuid.uuid4().hex[:12]
        pb_utils.Logger.log_error(f"internal error {identifier}: {traceback.format_exc()!a}")
        reason = f"internal error; the log has the details under id {identifier}"
        return _refuse(Failure("internal", reason), pb_utils.TritonError.INTERNAL)


def _refuse(failure: Failure, status: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error_message(failure.code, failure.reason), status))


class Answers:
    """The ensemble's outputs, made of what the classifier says."""

    def __init__(self, signature: Signature, version: str) -> None:
        self._labels = signature.labels
        self._model = ModelInfo(ENSEMBLE, version)
        self._metrics = Metrics()

    def outputs(self, request: Any, logits: Tensor, drift: Tensor, inference_seconds: float | None = None) -> list[Any]:
        """Make the outputs for one request and count them.

        Args:
            request: With the input ``finding`` and the options.
            logits: float32 [N, K].
            drift: float32 [N].
            inference_seconds: How long the classifier took, where the caller knows.
        """
        findings = [Finding.from_json(text) for text in bytes_of(request, "finding")]
        top_k = options_of(request).top_k
        answered = make_answers(logits, drift, findings, labels=self._labels, model=self._model, top_k=top_k)
        unknown = (PREPROCESS,) if inference_seconds is not None else (PREPROCESS, INFERENCE)
        samples = samples_of(answered.results, StageTimes(inference=inference_seconds or 0.0))
        self._metrics.record(request, (sample for sample in samples if sample.metric not in unknown))
        return [
            output("probabilities", answered.probabilities),
            output("drift", answered.drift),
            output("estimated_quality", answered.estimated_quality),
            text_output("status", answered.status),
            text_output("answer", answered.bodies),
        ]


class Metrics:
    """The catalogue of `afd_serve.telemetry` as Triton's custom metrics.

    This server's custom metrics know no histogram: one becomes the two counters ``<name>_sum`` and ``<name>_count``,
    which a Prometheus histogram also has, so that the same query gives the mean on every server.
    """

    def __init__(self) -> None:
        self._families = {name: _family(name, metric) for metric in METRICS for name in _series(metric)}
        self._metrics: dict[tuple[str, tuple[str, ...]], Any] = {}

    def record(self, request: Any, samples: Iterable[Sample]) -> None:
        """Add up what a request gives, in as few calls to the server as there are series; a probe gives nothing."""
        if request.request_id() == PROBE_ID:
            return
        sums: dict[tuple[str, Metric, tuple[str, ...]], float] = defaultdict(float)
        for sample in samples:
            for name in _series(sample.metric):
                sums[name, sample.metric, sample.labels] += 1 if name.endswith(_COUNT) else sample.value
        for (name, metric, labels), value in sums.items():
            if (name, labels) not in self._metrics:
                named = {"ModelName": ENSEMBLE} | dict(zip(metric.labels, labels, strict=True))
                self._metrics[name, labels] = self._families[name].Metric(labels=named)
            self._metrics[name, labels].increment(value)


_COUNT: Final = "_count"


def _series(metric: Metric) -> tuple[str, ...]:
    return (metric.name,) if metric.kind == "counter" else (f"{metric.name}_sum", f"{metric.name}{_COUNT}")


def _family(name: str, metric: Metric) -> Any:
    description = f"{metric.name} in {metric.unit}"
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
