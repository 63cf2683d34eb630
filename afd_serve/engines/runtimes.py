"""Engines that run the two ONNX graphs on the CPU."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afd_serve.engines import ENGINES
from afd_serve.engines.graphs import GRAPH_INPUTS, graph_inputs
from afd_serve.errors import CheckpointError, DependencyError
from afd_serve.models.classifier import OUTPUTS

__all__ = ["GraphEngine", "OnnxRuntime", "OpenVino", "open_graphs"]


class GraphEngine(ABC):
    """Runs pictures one by one through the graph that their gates choose, see Note [One picture at a time].

    Args:
        folder: Holds the graphs.
        precision: One of the engine's own.
    """

    def __init__(self, folder: Path, precision: str) -> None:
        self._precision = precision
        self._graphs = [self._open(folder / name) for name in ENGINES["onnxruntime"].files]

    @abstractmethod
    def _open(self, path: Path) -> Any:
        """Load a graph for as many threads as torch has."""

    @abstractmethod
    def _run(self, graph: Any, inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Logits [1, K] and drift score [1] of one picture; its inputs in the order of `GRAPH_INPUTS`."""

    def __call__(
        self, rgb: Tensor, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `AfdClassifier.forward`; tensors on the CPU."""
        inputs = graph_inputs(rgb, dequantized, quant_tables, geometry)
        rows = [
            self._run(self._graphs[one > 0], [array[index : index + 1] for array in inputs])
            for index, one in enumerate(gate.tolist())
        ]
        logits, drift = (torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
        return logits, drift


def _check_inputs(names: Sequence[str]) -> None:
    if tuple(names) != GRAPH_INPUTS:
        raise ValueError(
            f"they take {', '.join(names)}, as another version of afd-serve writes them; export them again"
        )


class OnnxRuntime(GraphEngine):
    """ONNX Runtime's own kernels."""

    def _open(self, path: Path) -> Any:
        onnxruntime = import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        _check_inputs([value.name for value in session.get_inputs()])
        return session

    def _run(self, graph: Any, inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = graph.run(None, dict(zip(GRAPH_INPUTS, inputs, strict=True)))
        return outputs


class OpenVino(GraphEngine):
    """OpenVINO's CPU plug-in. A request holds one picture at a time, so threads take turns."""

    def __init__(self, folder: Path, precision: str) -> None:
        self._running = Lock()
        super().__init__(folder, precision)

    def _open(self, path: Path) -> Any:
        if "malloc" in os.environ.get("LD_PRELOAD", ""):  # this is no error of OpenVINO's: it would end the process
            raise RuntimeError("it does not run with a preloaded allocator; start this process without LD_PRELOAD")
        os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
        openvino = import_module("openvino")
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # Pinned, the workers of a server would all sit on the first core: each process counts from there.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[self._precision],
        }
        self._tensor = openvino.Tensor
        core = openvino.Core()
        model = core.read_model(path)
        _check_inputs([value.any_name for value in model.inputs])
        return core.compile_model(model, "CPU", settings).create_infer_request()

    def _run(self, graph: Any, inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        with self._running:
            for index, array in enumerate(inputs):
                graph.set_input_tensor(index, self._tensor(array, shared_memory=True))
            graph.infer(share_outputs=True)  # on this thread; starting it for another one and waiting takes longer
            # The request's own memory is written again by its next call.
            return [np.array(graph.get_output_tensor(index).data) for index in range(len(OUTPUTS))]


_RUNTIMES: dict[str, type[GraphEngine]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def open_graphs(folder: Path, engine: str, precision: str) -> GraphEngine:
    """Load the graphs in a folder into the engine of this name.

    Raises:
        DependencyError: The engine is not installed.
        CheckpointError: It refuses the graphs.
    """
    try:
        return _RUNTIMES[engine](folder, precision)
    except ImportError as error:
        raise DependencyError(f"this model runs in {engine} ({error}): pip install 'afd-serve[{engine}]'") from error
    except Exception as error:  # both raise errors of their own, which have no common base
        raise CheckpointError(f"{engine} cannot load the graphs in {folder}: {error}") from error
