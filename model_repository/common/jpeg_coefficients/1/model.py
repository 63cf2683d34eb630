"""First step: encoded pictures in, the classifier's inputs and a finding per picture out. Always on the CPU."""

from typing import Any

import torch

from afd_serve.models.classifier import INPUTS
from afd_serve.servers import triton_adapter as triton
from afd_serve.signature import SIGNATURE_NAME, Signature
from afd_serve.steps import PreparingStep


class TritonPythonModel:
    """Triton's interface; one object per instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)
        signature = Signature.from_json((triton.version_folder(args) / SIGNATURE_NAME).read_text())
        self._metrics = triton.Metrics(args)
        self._preparing = triton.Preparing(PreparingStep(signature.preprocessing), args)

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton.respond(requests, self._answer, self._metrics)

    def _answer(self, request: Any, samples: triton.Samples) -> list[Any]:
        inputs, findings = self._preparing.prepare(request, samples)
        tensors = [triton.output(name, tensor) for name, tensor in zip(INPUTS, inputs, strict=True)]
        return [*tensors, triton.text_output("finding", [finding.to_json() for finding in findings])]

    def finalize(self) -> None:
        self._metrics.close()
