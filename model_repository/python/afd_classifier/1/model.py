"""Second step: the exported classifier, and the answers made of what it says. On a GPU where there is one."""

from collections.abc import Sequence
from typing import Any

import torch

from afd_serve.export import load_deployed
from afd_serve.models.classifier import INPUTS
from afd_serve.preprocess import ClassifierInputs
from afd_serve.servers import triton_adapter as triton
from afd_serve.steps import ClassifierStep, PreparedBatch


class TritonPythonModel:
    """Triton's interface; one object per instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)
        gpu = args["model_instance_kind"] == "GPU"
        device = torch.device("cuda", int(args["model_instance_device_id"])) if gpu else torch.device("cpu")
        deployed = load_deployed(triton.version_folder(args), device)
        self._classifying = triton.Classifying(ClassifierStep(deployed, device, together=gpu))
        self._metrics = triton.Metrics(args)
        self._answers = triton.Answers(deployed.signature, args)

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton.respond_together(requests, self._answer, self._metrics)

    def _answer(self, requests: Sequence[Any], samples: Sequence[triton.Samples]) -> list[list[Any]]:
        batches = [_batch_of(request) for request in requests]
        classified = self._classifying.classify(batches)
        return [
            self._answers.outputs(request, batch.findings, said, own)
            for request, batch, said, own in zip(requests, batches, classified, samples, strict=True)
        ]

    def finalize(self) -> None:
        self._metrics.close()


def _batch_of(request: Any) -> PreparedBatch:
    inputs = ClassifierInputs(*(triton.tensor_of(request, name) for name in INPUTS))
    return PreparedBatch(inputs, triton.findings_of(request))
