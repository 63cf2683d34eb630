"""What can run the exported classifier: TorchScript, or another engine from two ONNX graphs.

An engine is chosen at export and recorded in the signature. Whatever it is, its inputs are `INPUTS` and its outputs
`OUTPUTS`, so nothing but the loading knows which one answers.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from torch import Tensor

__all__ = ["ENGINES", "Engine", "EngineFacts"]


class Engine(Protocol):
    """A loaded classifier; arguments and results as `AfdClassifier.forward` has them."""

    def __call__(
        self, rgb: Tensor, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor, gate: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and drift scores [N] of N pictures."""


@dataclass(frozen=True)
class EngineFacts:
    """The files of an engine's exported classifier, and what it can compute in; the first precision is the default."""

    files: tuple[str, ...]
    precisions: tuple[str, ...]


_GRAPHS: Final = ("bare.onnx", "protected.onnx")

ENGINES: Final = {
    "torchscript": EngineFacts(("model.pt",), ("float32", "float16", "bfloat16")),
    "onnxruntime": EngineFacts(_GRAPHS, ("float32",)),
    "openvino": EngineFacts(_GRAPHS, ("float32", "bfloat16")),
}
"""Every engine by its name; the first is the default and the only one that runs on a GPU."""
