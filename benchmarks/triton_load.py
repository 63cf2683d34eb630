"""Load on a running Triton: latency, throughput and CPU time per picture, against `Pipeline` loops on the same cores.

Usage: python benchmarks/triton_load.py [--state-dir DIR] [--model NAME] [--requests N] [--concurrency N ...]
                                        [--per-request N] [--pictures FOLDER] [--transport grpc|http] [--shared-memory]
                                        [--rounds N]

The server is one that `afd-serve serve triton` started, with --shared-memory where that is measured; DIR is its state
directory. CPU time is that of all of the server's processes, without the client's. "model" is what the classifier alone
takes, measured around each call in the process that makes it, and "besides" is all the rest. All rows are measured once
per round, one after the other; of each row the round with the least besides is shown, and behind it the worst round's
besides. The machine should do nothing else.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from machine import cpu_name
from pictures import made_jpegs
from rich.console import Console
from rich.table import Table
from torch import Tensor

from afd_serve.client import AsyncClient
from afd_serve.pipeline import Pipeline
from afd_serve.preprocess import ClassifierInputs
from afd_serve.results import Prediction
from afd_serve.servers import triton
from afd_serve.servers.http import ask
from afd_serve.triton_protocol import MODEL_CPU_METRIC


@dataclass(frozen=True)
class Row:
    """Seconds per picture, but ``rate`` in pictures per second."""

    rate: float
    cpu: float
    model: float
    latencies: tuple[float, ...] = ()

    @property
    def besides(self) -> float:
        return self.cpu - self.model


class TimedPipeline(Pipeline):
    """A pipeline that knows how much CPU time its classifier took."""

    model_seconds = 0.0

    def logits(self, inputs: ClassifierInputs) -> tuple[Tensor, Tensor]:
        start = time.thread_time()
        said = super().logits(inputs)
        self.model_seconds += time.thread_time() - start
        return said


def loop(model: str, pictures: Sequence[bytes], count: int, rounds: int, barrier: object, results: object) -> None:
    """One process: pictures through a pipeline, one after the other, when all processes are ready."""
    pipeline = TimedPipeline.load(model, threads=1)
    pipeline.warm_up()
    for _ in range(rounds):
        pipeline.model_seconds = 0.0
        barrier.wait()
        wall, cpu = time.perf_counter(), time.process_time()
        for index in range(count):
            pipeline.predict([pictures[index % len(pictures)]])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        results.put(Row(count / wall, cpu / count, pipeline.model_seconds / count))
        barrier.wait()


class Loops:
    """Processes that wait with a loaded pipeline, so that each round is one word."""

    def __init__(self, processes: int, model: str, pictures: Sequence[bytes], count: int, rounds: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._barrier, self._results = context.Barrier(processes + 1), context.Queue()
        arguments = (model, pictures, count, rounds, self._barrier, self._results)
        self._processes = [context.Process(target=loop, args=arguments) for _ in range(processes)]
        for process in self._processes:
            process.start()

    def measure(self) -> Row:
        self._barrier.wait()
        rows = [self._results.get() for _ in self._processes]
        self._barrier.wait()
        rate = sum(row.rate for row in rows)
        return Row(rate, float(np.mean([row.cpu for row in rows])), float(np.mean([row.model for row in rows])))


def cpu_seconds(server: triton.Triton) -> float:
    """CPU time of tritonserver and its Python processes so far."""
    family = psutil.Process(server.pid).children(recursive=True)
    return sum(times.user + times.system for times in (process.cpu_times() for process in family))


def model_seconds(server: triton.Triton) -> float:
    """CPU time of the classifier in the server's processes so far; they tell it with a delay."""
    time.sleep(1.2)
    lines = [line for line in server.metrics().splitlines() if line.startswith(MODEL_CPU_METRIC)]
    return sum(float(line.split()[-1]) for line in lines)


async def load(
    url: str, batches: Sequence[list[bytes]], concurrency: int, *, shared_memory: bool
) -> tuple[list[float], float]:
    """Seconds that each request took, and seconds for all, with so many requests at a time."""
    latencies: list[float] = []
    waiting = iter(batches)
    async with AsyncClient(url, timeout=300, shared_memory=shared_memory) as client:

        async def ask_on() -> None:
            for batch in waiting:
                start = time.perf_counter()
                results = await client.classify_many(batch)
                latencies.append(time.perf_counter() - start)
                assert all(isinstance(result, Prediction) for result in results)

        start = time.perf_counter()
        await asyncio.gather(*(ask_on() for _ in range(concurrency)))
        return latencies, time.perf_counter() - start


def measure_server(
    server: triton.Triton, url: str, batches: Sequence[list[bytes]], concurrency: int, shared_memory: bool
) -> Row:
    model, cpu = model_seconds(server), cpu_seconds(server)
    latencies, seconds = asyncio.run(load(url, batches, concurrency, shared_memory=shared_memory))
    cpu = cpu_seconds(server) - cpu
    total = sum(map(len, batches))
    return Row(total / seconds, cpu / total, (model_seconds(server) - model) / total, tuple(latencies))


def facts(server: triton.Triton) -> str:
    """What the figures depend on."""
    version = ask(urllib.request.Request(f"{server.url}/v2"), 10).json()["version"]
    return (
        f"{cpu_name()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}, Triton {version}, {server.repository.name}: "
        f"{json.dumps(sorted(path.name for path in server.repository.iterdir()))}; load {os.getloadavg()[0]:.1f}"
    )


def show(measured: dict[str, list[Row]]) -> Table:
    table = Table("", "p50 ms", "p99 ms", "pictures/s", "CPU ms/picture", "model", "besides", "worst")
    for name, rows in measured.items():
        best = min(rows, key=lambda row: row.besides)
        tails = [f"{value * 1e3:.1f}" for value in np.percentile(best.latencies, [50, 99])] if best.latencies else "--"
        times = (best.cpu, best.model, best.besides, max(row.besides for row in rows))
        table.add_row(name, *tails, f"{best.rate:.1f}", *(f"{value * 1e3:.2f}" for value in times))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-dir", type=Path, default=Path(".serve/triton"))
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--per-request", type=int, default=1)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--transport", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--shared-memory", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    server = triton.Triton.find(arguments.state_dir)
    if server is None:
        parser.error(f"no server runs in {arguments.state_dir}")
    files = sorted(arguments.pictures.glob("*.jp*g"))[:64] if arguments.pictures else []
    pictures = [file.read_bytes() for file in files] or made_jpegs(32)
    total = arguments.requests * arguments.per_request
    many = [pictures[index % len(pictures)] for index in range(total)]
    batches = [many[start : start + arguments.per_request] for start in range(0, total, arguments.per_request)]
    url = server.grpc_url if arguments.transport == "grpc" else server.url

    loops = {
        f"Pipeline, {count} process{'es' if count > 1 else ''}": Loops(
            count, arguments.model, pictures, total // count, arguments.rounds
        )
        for count in sorted({1, os.cpu_count() or 1})
    }
    measured: dict[str, list[Row]] = {}
    for _ in range(arguments.rounds):
        for name, waiting in loops.items():
            measured.setdefault(name, []).append(waiting.measure())
        for concurrency in arguments.concurrency:
            row = measure_server(server, url, batches, concurrency, arguments.shared_memory)
            measured.setdefault(f"Triton, {concurrency} at a time", []).append(row)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(facts(server), highlight=False)
    console.print(show(measured))


if __name__ == "__main__":
    main()
