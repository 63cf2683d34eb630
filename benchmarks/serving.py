"""A TorchServe with AFD against the stock image handler without: pictures per second, latency, CPU time, memory.

    python benchmarks/serving.py [--pictures FOLDER] [--model NAME] [--out DIR] [--rounds 3] [--requests 300]
                                 [--systems NAME,NAME...] [--workers N]

Every system is a real TorchServe with the same settings and workers of one thread each. All of them run at once, to
take turns: each round loads one after the other, first as fast as it answers (closed loop, `--concurrency` requests
under way), then with requests that arrive at random at 70 % of that rate (open loop; latencies count from when a
request was due). ``stock`` is TorchServe's own image_classifier handler with the bare backbone as TorchScript in
float32; ``echo`` answers without looking, which is what TorchServe itself costs. CPU time is that of the server's
processes, the client's excluded. Of the rounds, the medians are shown. The first answer's time counts from the start of
the server's process, while the servers before it idle. The machine should do nothing else. Pictures without colours are
passed over, because the stock handler fails on them; so is bfloat16 on a CPU that lacks it, unless it is asked for.

Needs the extras ``torchserve``, ``torchvision`` and ``plots``, those of the engines, and captum, which the stock
handler imports: pip install --no-deps captum
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch
from http_load import Connection, prediction_request
from machine import cpu_name, family, memory
from matplotlib.figure import Figure
from pictures import made_jpegs
from rich.console import Console
from rich.table import Table

from afd_serve import jpeg
from afd_serve.checkpoint import find_weights, read_config
from afd_serve.engines.torchscript import freeze, precisions
from afd_serve.export import export_classifier
from afd_serve.models.backbones import load_backbone
from afd_serve.models.folding import fold_norms
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.servers import torchserve

STOCK = """
import torch
from afd_serve.models.torchvision_compat import import_torchvision_models
import_torchvision_models()  # torchvision from PyPI does not import beside a CPU-only torch without this
from ts.torch_handler.image_classifier import ImageClassifier
torch.set_num_threads(1)
class Stock(ImageClassifier):
    pass
"""

ECHO = """
class Echo:
    def initialize(self, context):
        pass
    def handle(self, data, context):
        return [b"{}"] * len(data)
"""


@dataclass(frozen=True)
class System:
    """One server: how its archive is made, and what its requests say."""

    archive: Callable[[str, Path], Path]
    header: str = ""


def ours(engine: str, precision: str) -> Callable[[str, Path], Path]:
    def build(model: str, folder: Path) -> Path:
        exported = export_classifier(model, folder / "exported", engine=engine, precision=precision)
        return package_torchserve(exported.folder, folder)

    return build


def with_handler(code: str) -> Callable[[str, Path], Path]:
    """An archive of the model's bare backbone with a handler that is not ours."""

    def build(model: str, folder: Path) -> Path:
        backbone = load_backbone(read_config(find_weights(model)).backbone)
        freeze(fold_norms(backbone.module)).save(str(folder / "model.pt"))
        (folder / "handler.py").write_text(code)
        labels = {str(index): label for index, label in enumerate(backbone.labels)}
        (folder / "index_to_name.json").write_text(json.dumps(labels))
        command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "stock", "--version", "1.0"]
        command += ["--serialized-file", str(folder / "model.pt"), "--handler", str(folder / "handler.py")]
        command += ["--extra-files", str(folder / "index_to_name.json"), "--export-path", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        return folder / "stock.mar"

    return build


SYSTEMS = {
    "echo": System(with_handler(ECHO)),
    "stock": System(with_handler(STOCK)),
    "torchscript float32, AFD off": System(ours("torchscript", "float32"), "afd: off\r\n"),
    "torchscript float32": System(ours("torchscript", "float32")),
    "torchscript bfloat16": System(ours("torchscript", "bfloat16")),
    "onnxruntime float32": System(ours("onnxruntime", "float32")),
    "openvino float32": System(ours("openvino", "float32")),
    "openvino bfloat16": System(ours("openvino", "bfloat16")),
}


def fit_for_this_cpu() -> list[str]:
    """The systems that compute in what this CPU has."""
    return [name for name in SYSTEMS if "bfloat16" not in name or torch.bfloat16 in precisions()]


def coloured(folder: Path) -> Iterator[bytes]:
    """The JPEGs of a folder that have colours."""
    for path in sorted(folder.glob("*.[jJ][pP]*[gG]")):
        data = path.read_bytes()
        if len(jpeg.read_header(data).components) == 3:
            yield data


@dataclass(frozen=True)
class Measured:
    """One round of one system; times in milliseconds, memory in MiB."""

    rate: float
    cpu: float
    p50: float
    p95: float
    p99: float
    failed: int


@dataclass(frozen=True)
class Held:
    """What a system takes before it is asked: MiB per worker, and seconds from its start to its first answer."""

    memory: float
    first_answer: float


@contextmanager
def serving(
    system: System, model: str, folder: Path, probe: bytes, workers: int
) -> Iterator[tuple[torchserve.TorchServe, float]]:
    """A server, and how many seconds it took from its start to its first answer."""
    folder.mkdir()
    archive = system.archive(model, folder)
    state = folder / "state"
    ports = torchserve.Ports.free()
    server = torchserve.start(archive, state, probe=probe, ports=ports, workers=workers, sealed=False)
    try:
        yield server, time.time() - psutil.Process(server.pid).create_time()
    finally:
        torchserve.TorchServe.stop(state)


class Load:
    """Sends one server's requests over connections that stay open."""

    def __init__(self, server: torchserve.TorchServe, header: str, pictures: Sequence[bytes]) -> None:
        self.port = server.ports.inference
        self.requests = [prediction_request(server, data, header) for data in pictures]
        self.failed = 0

    async def closed(self, count: int, concurrency: int) -> float:
        """Pictures per second with so many requests under way."""
        waiting = iter(range(count))
        start = time.perf_counter()
        await asyncio.gather(*(self._worker(waiting) for _ in range(concurrency)))
        return count / (time.perf_counter() - start)

    async def _worker(self, waiting: Iterator[int]) -> None:
        connection = Connection(self.port)
        for index in waiting:
            await self._ask(connection, index)
        connection.close()

    async def opened(self, count: int, rate: float, connections: int = 32) -> list[float]:
        """Seconds from when each request was due until its answer, with Poisson arrivals."""
        gaps = np.random.default_rng(count).exponential(1 / rate, count)
        free: asyncio.Queue[Connection] = asyncio.Queue()
        for _ in range(connections):
            connection = Connection(self.port)
            await connection.open()
            free.put_nowait(connection)
        start = time.perf_counter()
        due = start + np.cumsum(gaps)
        latencies = await asyncio.gather(*(self._at(float(moment), index, free) for index, moment in enumerate(due)))
        while not free.empty():
            free.get_nowait().close()
        return list(latencies)

    async def _at(self, moment: float, index: int, free: asyncio.Queue[Connection]) -> float:
        await asyncio.sleep(max(0.0, moment - time.perf_counter()))
        connection = await free.get()
        await self._ask(connection, index)
        free.put_nowait(connection)
        return time.perf_counter() - moment

    async def _ask(self, connection: Connection, index: int) -> None:
        answer = await connection.send(self.requests[index % len(self.requests)])
        self.failed += answer.status != 200


def cpu_seconds(server: torchserve.TorchServe) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in family(server.pid)))


def worker_memory(server: torchserve.TorchServe) -> float:
    """MiB that a worker holds for itself and its share of what it shares with others."""
    pids = {int(worker["pid"]) for worker in server.workers()}
    return float(np.mean([size for pid, size in memory(server.pid).items() if pid in pids]))


def measure(server: torchserve.TorchServe, load: Load, requests: int, concurrency: int) -> Measured:
    load.failed = 0
    asyncio.run(load.closed(concurrency * 2, concurrency))
    before = cpu_seconds(server)
    rate = asyncio.run(load.closed(requests, concurrency))
    cpu = (cpu_seconds(server) - before) / requests
    latencies = np.array(asyncio.run(load.opened(requests, 0.7 * rate))) * 1e3
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return Measured(rate, cpu * 1e3, float(p50), float(p95), float(p99), load.failed)


def median(rounds: Sequence[Measured]) -> Measured:
    values = {name: float(np.median([asdict(one)[name] for one in rounds])) for name in asdict(rounds[0])}
    return Measured(**values | {"failed": sum(one.failed for one in rounds)})  # type: ignore[arg-type]


def show(found: dict[str, Measured], held: dict[str, Held]) -> Table:
    stock = found.get("stock")
    table = Table(
        "TorchServe with",
        "pictures/s",
        "x stock",
        "CPU ms",
        "p50 ms",
        "p95",
        "p99",
        "p99/p50",
        "MiB",
        "first, s",
        "failed",
    )
    for name, row in found.items():
        times = f"{row.rate / stock.rate:.2f}" if stock else "-"
        milliseconds = [f"{value:.1f}" for value in (row.cpu, row.p50, row.p95, row.p99)]
        table.add_row(
            name,
            f"{row.rate:.1f}",
            times,
            *milliseconds,
            f"{row.p99 / row.p50:.1f}",
            f"{held[name].memory:.0f}",
            f"{held[name].first_answer:.1f}",
            str(row.failed),
        )
    return table


def draw(found: dict[str, Measured], path: Path) -> None:
    names = [name for name in found if name != "echo"]
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(names))
    left.barh(
        rows, [found[name].rate for name in names], color=["#999999" if n == "stock" else "#3b76af" for n in names]
    )
    left.set_yticks(rows, names)
    left.invert_yaxis()
    left.set_xlabel("pictures per second, saturated")
    for part, shade in (("p99", "#c6d8e9"), ("p95", "#86aed1"), ("p50", "#3b76af")):
        right.barh(rows, [getattr(found[name], part) for name in names], color=shade, label=part)
    right.set_xlabel("latency at 70 % of that load, ms")
    right.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--out", type=Path, default=Path("serving"))
    parser.add_argument("--systems", help=f"some of: {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="per server; 0 for one per core")
    arguments = parser.parse_args()
    usable = islice(coloured(arguments.pictures), 256) if arguments.pictures else ()
    pictures = list(usable) or made_jpegs(32)
    names = arguments.systems.split(",") if arguments.systems else fit_for_this_cpu()
    workers = arguments.workers or os.cpu_count() or 1
    rounds: dict[str, list[Measured]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="afd-serving-") as scratch, ExitStack() as stack:
        servers, starts = {}, {}
        for index, name in enumerate(names):
            context = serving(SYSTEMS[name], arguments.model, Path(scratch) / str(index), pictures[0], workers)
            servers[name], starts[name] = stack.enter_context(context)
            print(f"{name} is up", flush=True)
        loads = {name: Load(servers[name], SYSTEMS[name].header, pictures) for name in names}
        for number in range(arguments.rounds):
            for name in names:
                rounds[name].append(measure(servers[name], loads[name], arguments.requests, arguments.concurrency))
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
        held = {name: Held(worker_memory(servers[name]), starts[name]) for name in names}
    found = {name: median(measured) for name, measured in rounds.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "pictures": len(pictures),
    }
    rows = {name: asdict(row) | asdict(held[name]) for name, row in found.items()}
    (arguments.out / "serving.json").write_text(json.dumps(facts | {"systems": rows}, indent=1))
    draw(found, arguments.out / "serving.png")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
    console.print(show(found, held))


if __name__ == "__main__":
    main()
