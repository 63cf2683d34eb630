"""Encoded pictures in, answers out, in one process per core: on a CPU no tensor has to go from process to process."""

from typing import Any

import torch

from afd_serve.export import load_deployed
from afd_serve.servers import triton_adapter as triton
from afd_serve.steps import ClassifierStep, PreparingStep


class TritonPythonModel:
    """Triton's interface; one object per instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)
        device = torch.device("cpu")
        deployed = load_deployed(triton.version_folder(args), device)
        self._metrics = triton.Metrics(args)
        self._preparing = triton.Preparing(PreparingStep(deployed.signature.preprocessing), args)
        self._classifying = triton.Classifying(ClassifierStep(deployed, device, together=False))
        self._answers = triton.Answers(deployed.signature, args)

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton.respond(requests, self._answer, self._metrics)

    def _answer(self, request: Any, samples: triton.Samples) -> list[Any]:
        batch = self._preparing.prepare(request, samples)
        (classified,) = self._classifying.classify([batch])
        return self._answers.outputs(request, batch.findings, classified, samples)

    def finalize(self) -> None:
        self._metrics.close()
