"""From a server's dynamic batch to one reply per request: what every server's adapter shares.

No request can spoil another one's answer. What is wrong with a request or a picture becomes its own failure; and where
the pipeline itself fails on a batch, which is a fault of ours, the pictures are tried again one by one, so that only
the one behind the fault gets the status 500.
"""

import logging
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from afd_serve.budget import within_budget
from afd_serve.mode import Mode
from afd_serve.pipeline import Failure, Prediction, StageTimes
from afd_serve.request import Options, Request, RequestError, read_request
from afd_serve.response import ModelInfo, Reply, refuse, reply
from afd_serve.sample import is_probe
from afd_serve.telemetry import FAILURES, PROBES, REQUESTS, UNREAD, Sample, samples_of

__all__ = ["Answers", "Call", "Predictor", "Service", "internal_failure"]

_log = logging.getLogger(__name__)

Result = Prediction | Failure


class Predictor(Protocol):
    """What the service needs of a `Pipeline`."""

    def predict(
        self,
        items: Sequence[bytes | bytearray],
        *,
        top_k: int,
        afd: Sequence[Mode],
        crop: bool,
        times: StageTimes,
    ) -> list[Result]:
        """One result per item, in order."""


@dataclass(frozen=True)
class Call:
    """One request as a server hands it over."""

    parts: Mapping[str, object]
    headers: Mapping[str, object]


@dataclass(frozen=True)
class Answers:
    """One reply per call, in order, and what the batch adds to the metrics."""

    replies: list[Reply]
    samples: list[Sample]


class Service:
    """Answers batches of requests with one pipeline."""

    def __init__(self, pipeline: Predictor, model: ModelInfo, mode: Mode = Mode.PROTECT) -> None:
        """Make a service.

        Args:
            pipeline: Bytes in, predictions or failures out.
            model: The name and version that the answers carry.
            mode: For requests that name none.
        """
        self._pipeline = pipeline
        self._model = model
        self._mode = mode

    def answer(self, calls: Sequence[Call]) -> Answers:
        """Answer every call; never raises for anything that a client can send."""
        requests = [self._read(call) for call in calls]
        probing = [isinstance(item, Request) and is_probe(item.request_id, item.pictures) for item in requests]
        results: list[list[Result]] = [[] for _ in requests]
        times = StageTimes()
        for probes in (False, True):
            chosen = {
                index: request
                for index, request in enumerate(requests)
                if isinstance(request, Request) and probing[index] is probes
            }
            found = self._predict(list(chosen.values()), StageTimes() if probes else times)
            for index, per_request in zip(chosen, found, strict=True):
                results[index] = per_request
        outcomes = [
            request if isinstance(request, Failure) else self._reply(request, per_request)
            for request, per_request in zip(requests, results, strict=True)
        ]
        samples = self._samples(requests, probing, results, outcomes, times)
        return Answers([refuse(item) if isinstance(item, Failure) else item for item in outcomes], samples)

    def _samples(
        self,
        requests: Sequence[Request | Failure],
        probing: Sequence[bool],
        results: Sequence[Sequence[Result]],
        outcomes: Sequence[Reply | Failure],
        times: StageTimes,
    ) -> list[Sample]:
        """What a batch adds to the metrics; a probe that fails counts as every other request."""
        probes, counted, modes = 0, list[Result](), Counter[str]()
        for request, probes_health, found, outcome in zip(requests, probing, results, outcomes, strict=True):
            if probes_health and not any(isinstance(item, Failure) for item in (outcome, *found)):
                probes += 1
                continue
            counted += found
            modes[UNREAD if isinstance(request, Failure) else self._mode_of(request.options).value] += 1
        samples = list(samples_of(counted, times))
        samples += [Sample(PROBES, probes)] if probes else []
        samples += [Sample(REQUESTS, count, (mode,)) for mode, count in modes.items()]
        return samples + [Sample(FAILURES, 1, (outcome.code,)) for outcome in outcomes if isinstance(outcome, Failure)]

    def _read(self, call: Call) -> Request | Failure:
        try:
            request = read_request(call.parts, call.headers)
            return replace(request, pictures=tuple(within_budget(request.pictures)))
        except RequestError as error:
            return Failure(error.code, str(error))
        except Exception:  # a fault in the parser is ours, and must not reach the neighbours
            return internal_failure()

    def _reply(self, request: Request, results: Sequence[Result]) -> Reply | Failure:
        try:
            return reply(results, self._model, single=request.single, top_k=request.options.top_k)
        except Exception:  # such as a probability that is no number
            return internal_failure()

    def _predict(self, requests: Sequence[Request], times: StageTimes) -> list[list[Result]]:
        """Results per request: one pass of the pipeline for all pictures that are cropped in the same way."""
        results: list[list[Result]] = [[] for _ in requests]
        for crop in (True, False):
            chosen = [index for index, request in enumerate(requests) if request.options.crop is crop]
            items = [(picture, requests[index].options) for index in chosen for picture in requests[index].pictures]
            usable = [(picture, options) for picture, options in items if not isinstance(picture, Failure)]
            predicted = iter(self._predict_isolated(usable, crop, times))
            for index in chosen:
                results[index] = [
                    item if isinstance(item, Failure) else next(predicted) for item in requests[index].pictures
                ]
        return results

    def _mode_of(self, options: Options) -> Mode:
        return options.mode or self._mode

    def _predict_isolated(
        self, items: Sequence[tuple[bytes | bytearray, Options]], crop: bool, times: StageTimes
    ) -> list[Result]:
        """One result per picture, where an exception costs only the picture that raises it."""
        if not items:
            return []
        try:
            return self._pipeline.predict(
                [picture for picture, _ in items],
                top_k=max(options.top_k for _, options in items),
                afd=[self._mode_of(options) for _, options in items],
                crop=crop,
                times=times,
            )
        except Exception:
            if len(items) == 1:
                return [internal_failure()]
            _log.warning("a batch of %d pictures failed; trying them one by one", len(items))
        return [self._predict_isolated([item], crop, times)[0] for item in items]


def internal_failure(log: Callable[[str], object] = _log.error) -> Failure:
    """A failure for the exception being handled, whose traceback goes to the log under the failure's id."""
    identifier = uuid.uuid4().hex[:12]
    # An exception's text may quote what a client sent. Escaped into one line, it can forge no log line (TorchServe
    # takes lines that start with [METRICS] for metrics).
    log(f"internal error {identifier}: {traceback.format_exc()!a}")
    return Failure("internal", f"internal error; the log has the details under id {identifier}")
