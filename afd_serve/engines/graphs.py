"""The classifier as two ONNX graphs for one picture: one for a closed gate and one for an open one.

Each has its own trunk and the estimate of the drift. Engines optimize a plain graph better than one with a condition.
The coefficients' mean magnitudes are worked out before, exactly and in a tenth of the time: an engine makes a float of
every coefficient first.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from afd_serve import _jpeg
from afd_serve.engines import ENGINES
from afd_serve.errors import DependencyError, ExportError
from afd_serve.models.attach import attach
from afd_serve.models.backbones import Backbone
from afd_serve.models.classifier import OUTPUTS, AfdClassifier, Normalize
from afd_serve.models.fde import statistics_of
from afd_serve.models.folding import GatedActivation, GatedConv, fold_norms
from afd_serve.models.widening import widened
from afd_serve.preprocess import ClassifierInputs
from afd_serve.transforms import Preprocessing

__all__ = ["GRAPH_INPUTS", "graph_inputs", "graph_pixels", "write_bare_graph", "write_graphs"]

GRAPH_INPUTS: Final = ("pixels", "dequantized", "magnitudes", "quant_tables", "geometry")
"""What a graph takes, see `graph_inputs`. There is no gate: it chooses the graph."""

_TILE: Final = 32
"""Numbers of bfloat16 in a row of what AMX multiplies."""


def graph_inputs(rgb: Tensor, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor) -> tuple[NDArray[Any], ...]:
    """Make a graph's inputs of the classifier's, which `AfdClassifier.forward` describes.

    Returns:
        Pixels as they were decoded, uint8 [N, S, S, 3]; the dequantized coefficients; the mean magnitude of each
        frequency, float32 [N, 192]; quantization tables and geometry.
    """
    coefficients, *others = (tensor.contiguous().numpy() for tensor in (dequantized, quant_tables, geometry))
    return graph_pixels(rgb), coefficients, _jpeg.mean_magnitudes(coefficients), *others


def graph_pixels(rgb: Tensor) -> NDArray[np.uint8]:
    """Pixels as they were decoded, [N, S, S, 3], of the classifier's, uint8 [N, 3, S, S]."""
    pixels: NDArray[np.uint8] = rgb.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


class _Graph(nn.Module):
    """The classifier with its gate closed or open for good."""

    def __init__(self, classifier: AfdClassifier, *, is_open: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self.is_open = is_open

    def forward(
        self, pixels: Tensor, dequantized: Tensor, magnitudes: Tensor, quant_tables: Tensor, geometry: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, statistics = self.classifier.normalize.rows(pixels), statistics_of(magnitudes, quant_tables, geometry)
        descriptor = self.classifier.afd.fde.summarize(statistics)
        if self.is_open:
            return self.classifier.opened(x, dequantized, descriptor)
        return self.classifier.closed(x, descriptor)


class _BareGraph(nn.Module):
    """A classifier without AFD."""

    def __init__(self, trunk: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalize = Normalize(preprocessing)
        self.trunk = trunk

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.trunk(self.normalize.rows(pixels))
        return logits


def write_graphs(
    classifier: AfdClassifier, example: ClassifierInputs, folder: Path, engine: str, precision: str
) -> None:
    """Write both graphs.

    Args:
        classifier: In evaluation mode and reparameterized.
        example: Inputs of one picture.
        folder: Where the files go, which `ENGINES` names.
        engine: What they are for; the others run them as well, if not as fast.
        precision: In which they will run. In bfloat16 they are made for what the processor at hand multiplies.

    Raises:
        DependencyError: ONNX's packages are not installed.
        ExportError: The classifier cannot be written as a graph.
    """
    inputs = tuple(torch.from_numpy(array) for array in graph_inputs(*example[:-1]))
    if engine == "onnxruntime":
        classifier = _with_shifts_apart(classifier)
    if _widens(precision):
        classifier = _widened(classifier)
    for is_open, name in enumerate(ENGINES["onnxruntime"].files):
        module = _Graph(classifier, is_open=bool(is_open))
        _write(module.eval(), inputs, folder / name, GRAPH_INPUTS, OUTPUTS)


def write_bare_graph(backbone: Backbone, example: Tensor, path: Path, precision: str) -> None:
    """Write the backbone alone, as it would be deployed without AFD.

    Args:
        backbone: The classifier.
        example: Pixels of one picture, uint8 [1, 3, S, S].
        path: The file.
        precision: As of `write_graphs`; errors as well.
    """
    bare = _widened_trunk(backbone.module) if _widens(precision) else backbone.module
    module = _BareGraph(bare, backbone.preprocessing).eval()
    _write(module, (torch.from_numpy(graph_pixels(example)),), path, GRAPH_INPUTS[:1], OUTPUTS[:1])


def _with_shifts_apart(classifier: AfdClassifier) -> AfdClassifier:
    apart = copy.deepcopy(classifier)
    for name, module in list(apart.protected.named_children()):
        if isinstance(module, (GatedConv, GatedActivation)):
            setattr(apart.protected, name, _ShiftApart(module))
    return apart


class _ShiftApart(nn.Module):
    """A convolution, and the shift behind it instead of a bias that is computed, which ONNX Runtime's fastest lack."""

    def __init__(self, gated: GatedConv | GatedActivation) -> None:
        super().__init__()
        self.conv, self.activation = (
            (gated.conv, gated.activation) if isinstance(gated, GatedActivation) else (gated, nn.Identity())
        )

    def forward(self, x: Tensor, part: Tensor) -> Tensor:
        """As that of what it takes the place of, for a single picture."""
        shifted = self.conv.convolve(x, None) + part[:, None, None]
        out: Tensor = self.activation(shifted)
        return out


def _widens(precision: str) -> bool:
    return precision == "bfloat16" and torch.cpu._is_amx_tile_supported()  # noqa: SLF001 (no public name tells)


def _widened(classifier: AfdClassifier) -> AfdClassifier:
    wide = copy.deepcopy(classifier)
    wide.bare = _widened_trunk(wide.bare)
    wide.protected = widened(wide.protected, _TILE)
    return wide


def _widened_trunk(bare: nn.Module) -> fx.GraphModule:
    return widened(attach(fold_norms(bare)), _TILE)


def _write(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, example, dynamo=True, verbose=False, input_names=inputs, output_names=outputs
            )
    except ImportError as error:
        raise DependencyError(
            f"ONNX graphs need more packages ({error}): pip install 'afd-serve[onnxruntime]' or 'afd-serve[openvino]', "
            "whichever shall run them"
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
