"""The classifier as two ONNX graphs for one picture: one for a closed gate and one for an open one.

Each has its own trunk and the estimate of the drift. Engines optimize a plain graph better than one with a condition.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from afd_serve.engines import ENGINES
from afd_serve.errors import DependencyError, ExportError
from afd_serve.models.classifier import INPUTS, OUTPUTS, AfdClassifier
from afd_serve.preprocess import ClassifierInputs

__all__ = ["GRAPH_INPUTS", "write_graphs"]

GRAPH_INPUTS: Final = INPUTS[:-1]
"""A graph takes what the classifier takes, but for the gate: the gate chooses the graph."""


class _Graph(nn.Module):
    """The classifier with its gate closed or open for good."""

    def __init__(self, classifier: AfdClassifier, *, is_open: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self.is_open = is_open

    def forward(
        self, rgb: Tensor, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor
    ) -> tuple[Tensor, Tensor]:
        run = self.classifier.opened if self.is_open else self.classifier.closed
        return run(rgb, dequantized, quant_tables, geometry)


def write_graphs(classifier: AfdClassifier, example: ClassifierInputs, folder: Path) -> None:
    """Write both graphs.

    Args:
        classifier: In evaluation mode and reparameterized.
        example: Inputs of one picture.
        folder: For the files, which `ENGINES` names.

    Raises:
        DependencyError: ONNX's packages are not installed.
        ExportError: The classifier cannot be written as a graph.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for is_open, name in enumerate(ENGINES["onnxruntime"].files):
        module = _Graph(classifier, is_open=bool(is_open))
        _write(module.eval(), tuple(example)[: len(GRAPH_INPUTS)], folder / name)


def _write(module: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, example, dynamo=True, verbose=False, input_names=GRAPH_INPUTS, output_names=OUTPUTS
            )
    except ImportError as error:
        raise DependencyError(
            f"ONNX graphs need more packages ({error}): pip install 'afd-serve[onnxruntime]'"
        ) from error
    except Exception as error:  # the exporter raises whatever third-party code makes it stumble over
        raise ExportError(
            f"torch {torch.__version__} cannot write the classifier as an ONNX graph ({_first_cause(error)}); "
            "export it for torchscript"
        ) from error
    if program is None:
        raise ExportError("the ONNX exporter gave nothing back")
    program.save(path)


def _first_cause(error: BaseException) -> str:
    """In one line; the exporter's own text is a page of how to have PyTorch changed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter remarks on operators of packages that are not there, and on its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
