"""Load on a running Triton: latency, throughput and CPU time per picture, against the same pipeline in this process.

Usage: python benchmarks/triton_load.py [--state-dir DIR] [--model NAME] [--requests N] [--concurrency N ...]
                                        [--per-request N] [--pictures FOLDER] [--transport grpc|http] [--shared-memory]

The server is one that `afd-serve serve triton` started; DIR is its state directory. CPU time is that of all of the
server's processes; "besides the model" subtracts what the classifier alone takes here for the same prepared pictures,
on one thread. The machine should do nothing else.
"""

import argparse
import asyncio
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from afd_serve.client import AsyncClient
from afd_serve.pipeline import Pipeline
from afd_serve.preprocess import stack
from afd_serve.results import Prediction
from afd_serve.servers import triton


def made_pictures(count: int) -> list[bytes]:
    """Noise with the spectrum of photographs, 500x375, quality 10 to 90."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.fftfreq(500)[None]) + 1e-3
    files = []
    for index in range(count):
        noise = np.fft.ifft2(
            np.fft.fft2(random.normal(size=(375, 500, 3)), axes=(0, 1)) / frequency[..., None], axes=(0, 1)
        )
        samples = (128 + 50 * noise.real / noise.real.std()).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(samples).save(out, "JPEG", quality=10 + 80 * index // count)
        files.append(out.getvalue())
    return files


def cpu_seconds(server: triton.Triton) -> float:
    """CPU time of tritonserver and its Python processes so far."""
    family = psutil.Process(server.pid).children(recursive=True)
    return sum(times.user + times.system for times in (process.cpu_times() for process in family))


async def load(
    url: str, batches: Sequence[list[bytes]], concurrency: int, *, shared_memory: bool
) -> tuple[list[float], float]:
    """Seconds that each request took, and seconds for all, with so many requests at a time."""
    latencies: list[float] = []
    waiting = iter(batches)
    async with AsyncClient(url, timeout=300, shared_memory=shared_memory) as client:

        async def ask() -> None:
            for batch in waiting:
                start = time.perf_counter()
                results = await client.classify_many(batch)
                latencies.append(time.perf_counter() - start)
                assert all(isinstance(result, Prediction) for result in results)

        start = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(concurrency)))
        return latencies, time.perf_counter() - start


def cpu_per_call(work: Callable[[bytes], object], pictures: Sequence[bytes]) -> float:
    start = time.process_time()
    for picture in pictures:
        work(picture)
    return (time.process_time() - start) / len(pictures)


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
    arguments = parser.parse_args()
    server = triton.find(arguments.state_dir)
    if server is None:
        parser.error(f"no server runs in {arguments.state_dir}")
    files = sorted(arguments.pictures.glob("*.jp*g"))[:64] if arguments.pictures else []
    pictures = [file.read_bytes() for file in files] or made_pictures(32)
    total = arguments.requests * arguments.per_request
    many = [pictures[index % len(pictures)] for index in range(total)]
    batches = [many[start : start + arguments.per_request] for start in range(0, total, arguments.per_request)]

    pipeline = Pipeline.load(arguments.model, threads=1)
    pipeline.warm_up()
    prepared = {picture: pipeline.prepare(picture) for picture in pictures}
    model = cpu_per_call(lambda data: pipeline.logits(stack([prepared[data]], [True])), pictures)
    wall = time.perf_counter()
    whole = cpu_per_call(lambda data: pipeline.predict([data]), pictures)
    wall = (time.perf_counter() - wall) / len(pictures)

    table = Table(
        "concurrency",
        "p50 ms",
        "p99 ms",
        "pictures/s",
        "CPU ms/picture",
        "besides the model",
        title=str(server.repository),
    )
    table.add_row("pipeline here", "-", "-", f"{1 / wall:.1f}", f"{whole * 1e3:.1f}", f"{(whole - model) * 1e3:.1f}")
    url = server.grpc_url if arguments.transport == "grpc" else server.url
    for concurrency in arguments.concurrency:
        before = cpu_seconds(server)
        latencies, seconds = asyncio.run(load(url, batches, concurrency, shared_memory=arguments.shared_memory))
        cpu = (cpu_seconds(server) - before) / total
        median, slow = np.percentile(latencies, [50, 99]) * 1e3
        table.add_row(
            str(concurrency),
            f"{median:.1f}",
            f"{slow:.1f}",
            f"{total / seconds:.1f}",
            f"{cpu * 1e3:.1f}",
            f"{(cpu - model) * 1e3:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
