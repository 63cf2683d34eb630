"""Third step after a classifier that is Triton's own: the answers made of its logits. Always on the CPU."""

from typing import Any

import torch

from afd_serve.servers import triton_adapter as triton
from afd_serve.signature import SIGNATURE_NAME, Signature


class TritonPythonModel:
    """Triton's interface; one object per instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)
        signature = Signature.from_json((triton.version_folder(args) / SIGNATURE_NAME).read_text())
        self._metrics = triton.Metrics(args)
        self._answers = triton.Answers(signature, args)

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton.respond(requests, self._answer, self._metrics)

    def _answer(self, request: Any, samples: triton.Samples) -> list[Any]:
        classified = triton.Classified(triton.tensor_of(request, "logits"), triton.tensor_of(request, "drift"))
        return self._answers.outputs(request, triton.findings_of(request), classified, samples)

    def finalize(self) -> None:
        self._metrics.close()
