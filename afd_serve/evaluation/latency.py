"""What AFD costs: a protected classifier's time against its bare backbone's, same engine, one thread, interleaved.

The bare backbone is compiled and loaded as the deployed classifier is. Each round times every form once, in turn, so
that whatever else the machine does falls on all of them alike; ratios of medians are what counts.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from afd_serve.engines import torchscript
from afd_serve.engines.graphs import graph_pixels, write_bare_graph
from afd_serve.engines.runtimes import open_graph
from afd_serve.errors import ConfigError
from afd_serve.evaluation.metrics import Floats, Interval, interval
from afd_serve.export import example_inputs, export_classifier, load_deployed
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.classifier import Normalize
from afd_serve.models.precision import bare_in
from afd_serve.signature import Signature

__all__ = ["Forms", "Latency", "deployed_forms", "exported_forms", "measure", "time_forms"]

_WARM_UP: Final = 5
_RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Forms:
    """What is timed, each as a call without arguments: the bare backbone, and AFD with its gate closed and open."""

    bare: Callable[[], object]
    closed: Callable[[], object]
    opened: Callable[[], object]
    batch: int = 1


@dataclass(frozen=True)
class Latency:
    """What one measurement found.

    Attributes:
        bare_ms: median milliseconds per picture of the bare backbone.
        closed: time with the gate closed, as a multiple of ``bare_ms``, with its 95% interval over rounds.
        opened: time with the gate open, as a multiple of ``bare_ms``, with its 95% interval over rounds.
        batch: pictures per call.
        rounds: how often each form was timed.
    """

    bare_ms: float
    closed: Interval
    opened: Interval
    batch: int
    rounds: int


def deployed_forms(source: str | Path, batch: int = 1) -> Forms:
    """The forms of a classifier as it is deployed; its bare backbone runs in the same engine and precision.

    Args:
        source: A shipped model's name, a run's folder or an exported model's folder.
        batch: Pictures per call.

    Raises:
        CheckpointError: There is no such model.
        BackboneError: The backbone that it was made from cannot be loaded.
        DependencyError: The engine is not installed.
    """
    with _one_thread():  # engines other than TorchScript are loaded for a number of threads
        deployed = load_deployed(source)
        backbone = load_backbone(deployed.signature.backbone)
        inputs = example_inputs(backbone.preprocessing.size, batch)
        inputs = inputs._replace(rgb=inputs.rgb.contiguous(memory_format=torch.channels_last))  # as `stack` leaves it
        bare = _bare(backbone, deployed.signature, inputs.rgb)
    closed, opened = (inputs._replace(gate=torch.full((batch,), gate)) for gate in (0.0, 1.0))
    return Forms(lambda: bare(inputs.rgb), lambda: deployed.module(*closed), lambda: deployed.module(*opened), batch)


def exported_forms(source: str | Path, engine: str, precision: str, batch: int = 1) -> Forms:
    """As `deployed_forms`, of fitted weights that are exported first.

    Args:
        source: A shipped model's name or a run's folder.
        engine: One of `ENGINES`.
        precision: One of the engine's.
        batch: Pictures per call.

    Raises:
        AfdError: See `export_classifier`.
    """
    with TemporaryDirectory() as folder:
        return deployed_forms(export_classifier(source, Path(folder), engine=engine, precision=precision).folder, batch)


def _bare(backbone: Backbone, signature: Signature, rgb: Tensor) -> Callable[[Tensor], object]:
    if signature.engine == "torchscript":
        short = signature.precision != "float32"
        trunk = bare_in(backbone.module, getattr(torch, signature.precision)) if short else backbone.module
        bare = nn.Sequential(Normalize(backbone.preprocessing), trunk)
        return torchscript.Packed(torchscript.freeze_or_record(bare, [rgb]), [rgb])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bare.onnx"
        write_bare_graph(backbone, rgb[:1], path, signature.precision)
        graph = open_graph(path, signature.engine, signature.precision)
    return lambda rgb: np.concatenate([graph([picture[None]])[0] for picture in graph_pixels(rgb)])


def measure(forms: Forms, rounds: int = 100, clock: Callable[[], float] = time.perf_counter) -> Latency:
    """Time the forms against each other, on one thread.

    Args:
        forms: what to time.
        rounds: how often.
        clock: seconds. `time.thread_time` leaves out what other processes take of a busy machine, but for its caches.

    Raises:
        ConfigError: ``rounds`` is not positive.
    """
    if rounds < 1:
        raise ConfigError(f"a measurement needs at least 1 round, not {rounds}")
    seconds = time_forms(forms, rounds, clock)
    medians, resampled = np.median(seconds, axis=0), _resampled_medians(seconds)
    closed, opened = (
        interval(float(medians[form] / medians[0]), resampled[:, form] / resampled[:, 0]) for form in (1, 2)
    )
    return Latency(float(medians[0]) * 1e3 / forms.batch, closed, opened, forms.batch, rounds)


def time_forms(forms: Forms, rounds: int, clock: Callable[[], float] = time.perf_counter) -> Floats:
    """Seconds of each call, ``[rounds, 3]``: bare, closed, open, in turn; after warming up, on one thread."""
    calls = (forms.bare, forms.closed, forms.opened)
    seconds = np.empty((_WARM_UP + rounds, len(calls)))
    with _one_thread(), torch.inference_mode():
        for row in seconds:
            for form, call in enumerate(calls):
                start = clock()
                call()
                row[form] = clock() - start
    return seconds[_WARM_UP:]


def _resampled_medians(seconds: Floats) -> Floats:
    """Medians [R, forms] of resampled rounds; a round's times stay together."""
    rows = np.random.default_rng(0).integers(0, len(seconds), (_RESAMPLES, len(seconds)))
    medians: Floats = np.median(seconds[rows], axis=1)
    return medians


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
