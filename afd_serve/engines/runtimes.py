"""Engines that run ONNX graphs on the CPU."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afd_serve.engines import ENGINES
from afd_serve.engines.graphs import GRAPH_INPUTS, graph_inputs
from afd_serve.errors import CheckpointError, DependencyError
from afd_serve.forks import lock_across_forks

__all__ = ["Graph", "GraphEngine", "open_graph", "open_graphs"]


class Graph(Protocol):
    """A graph that an engine has loaded, for as many threads as torch had.

    Attributes:
        inputs: Their names, in order.
    """

    inputs: tuple[str, ...]

    def __call__(self, arrays: Sequence[NDArray[Any]], /) -> list[NDArray[np.float32]]:
        """The outputs for the inputs of one picture."""


class GraphEngine:
    """Runs pictures one by one through the graph that their gates choose, see Note [One picture at a time].

    Args:
        closed: The graph for a closed gate; both take `GRAPH_INPUTS` and give `OUTPUTS`.
        opened: The graph for an open one.
    """

    def __init__(self, closed: Graph, opened: Graph) -> None:
        self._graphs = (closed, opened)

    def __call__(
        self, rgb: Tensor, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `AfdClassifier.forward`; tensors on the CPU."""
        inputs = graph_inputs(rgb, dequantized, quant_tables, geometry)
        rows = [
            self._graphs[one > 0]([array[index : index + 1] for array in inputs])
            for index, one in enumerate(gate.tolist())
        ]
        logits, drift = (torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
        return logits, drift


class _OnnxRuntime:
    """In ONNX Runtime's own kernels."""

    def __init__(self, path: Path, precision: str) -> None:
        del precision  # it has one
        onnxruntime = import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(value.name for value in self._session.get_inputs())

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = self._session.run(None, dict(zip(self.inputs, arrays, strict=True)))
        return outputs


@cache
def _openvino_core() -> Any:
    """The process's only ``openvino.Core``, kept until the process ends.

    On CPUs with AMX each core installs a stack for signals on the thread that creates it, and restores the one before
    when it is destroyed. If several are not destroyed in the reverse order, a stack that was freed is restored, and the
    next signal ends the process with a segmentation fault (OpenVINO 2026.4).
    """
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    return import_module("openvino").Core()


class _OpenVino:
    """In OpenVINO's CPU plug-in. A request holds one picture at a time, so threads take turns."""

    def __init__(self, path: Path, precision: str) -> None:
        if "malloc" in os.environ.get("LD_PRELOAD", ""):  # this is no error of OpenVINO's: it would end the process
            raise RuntimeError("it does not run with a preloaded allocator; start this process without LD_PRELOAD")
        core = _openvino_core()
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # Pinned, the workers of a server would all sit on the first core: each process counts from there.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        }
        model = core.read_model(path)
        self.inputs = tuple(value.any_name for value in model.inputs)
        self._outputs = range(len(model.outputs))
        self._tensor = import_module("openvino").Tensor
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        self._running = lock_across_forks()

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        request = self._request
        with self._running:
            for index, array in enumerate(arrays):
                request.set_input_tensor(index, self._tensor(array, shared_memory=True))
            request.infer(share_outputs=True)  # on this thread; starting it for another one and waiting takes longer
            # The request's own memory is written again by its next call.
            return [np.array(request.get_output_tensor(index).data) for index in self._outputs]


_RUNTIMES: dict[str, Callable[[Path, str], Graph]] = {"onnxruntime": _OnnxRuntime, "openvino": _OpenVino}


def open_graph(path: Path, engine: str, precision: str) -> Graph:
    """Load a graph into the engine of this name.

    Raises:
        DependencyError: The engine is not installed.
        CheckpointError: It refuses the graph.
    """
    try:
        return _RUNTIMES[engine](path, precision)
    except ImportError as error:
        raise DependencyError(f"this model runs in {engine} ({error}): pip install 'afd-serve[{engine}]'") from error
    except Exception as error:  # both raise errors of their own, which have no common base
        raise CheckpointError(f"{engine} cannot load {path}: {error}") from error


def open_graphs(folder: Path, engine: str, precision: str) -> GraphEngine:
    """Load the two graphs of a classifier; errors as of `open_graph`, and where they are another version's."""
    closed, opened = (open_graph(folder / name, engine, precision) for name in ENGINES[engine].files)
    for graph in (closed, opened):
        if graph.inputs != GRAPH_INPUTS:
            raise CheckpointError(
                f"the graphs in {folder} take {', '.join(graph.inputs)}, as another version of afd-serve writes them; "
                "export them again"
            )
    return GraphEngine(closed, opened)
