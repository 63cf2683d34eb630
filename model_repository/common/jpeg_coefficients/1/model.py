"""First step: encoded pictures in, the classifier's inputs and a finding per picture out. Always on the CPU."""

import time
from typing import Any

import torch

from afd_serve.errors import InputError
from afd_serve.export import SIGNATURE_NAME, Signature
from afd_serve.models.classifier import INPUTS
from afd_serve.pipeline import Failure, StageTimes
from afd_serve.request import Options
from afd_serve.servers import triton_adapter as triton
from afd_serve.steps import PreparingStep
from afd_serve.telemetry import FAILURES, PREPROCESS, Sample, samples_of


class TritonPythonModel:
    """Triton's interface; one object per instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)
        signature = Signature.from_json((triton.version_folder(args) / SIGNATURE_NAME).read_text())
        self._step = PreparingStep(signature.preprocessing)
        self._metrics = triton.Metrics()

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton.respond(requests, self._answer)

    def _answer(self, request: Any) -> list[Any]:
        options = self._options(request)
        start = time.perf_counter()
        inputs, findings = self._step.prepare(triton.bytes_of(request, "picture"), options)
        seconds = time.perf_counter() - start
        if len(findings) == 1 and findings[0].failure:
            self._end(request, findings[0].failure, seconds)
        self._metrics.record(request, [Sample(PREPROCESS, seconds)])
        tensors = [triton.output(name, tensor) for name, tensor in zip(INPUTS, inputs, strict=True)]
        return [*tensors, triton.text_output("finding", [finding.to_json() for finding in findings])]

    def _options(self, request: Any) -> Options:
        try:
            return triton.options_of(request)
        except InputError as error:
            self._metrics.record(request, [Sample(FAILURES, 1, (error.code,))])
            raise

    def _end(self, request: Any, failure: Failure, seconds: float) -> None:
        """A picture that came alone fails its request; the next step, which counts all others, never sees it."""
        self._metrics.record(request, samples_of([failure], StageTimes(preprocess=seconds)))
        raise triton.FailedRequestError(failure)
