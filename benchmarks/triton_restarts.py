"""Starts, stops and kills of a Triton: how long it takes to answer again, and whether anything stays in /dev/shm.

Usage: python benchmarks/triton_restarts.py [--rounds 20] [--model NAME] [--platform NAME] [--python PYTHON]

Each round starts a server, lets a client use shared memory, and then stops it in one of four ways: as it should be; by
SIGKILL to a Python process of it, or to tritonserver, after which the supervisor must bring it back; by SIGKILL to the
supervisor, which takes the server with it. It ends with status 1 if anything of ours is left in /dev/shm.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from afd_serve.client import Client
from afd_serve.packaging.triton import TritonLimits, package_triton
from afd_serve.results import Prediction
from afd_serve.sample import sample_picture
from afd_serve.servers import triton
from afd_serve.servers.triton_environment import SHARED_MEMORY

WAYS = ("stop", "Python process", "tritonserver", "supervisor")


def victim(server: triton.Triton, way: str) -> psutil.Process:
    """The process to kill."""
    supervisor = psutil.Process(server.pid)
    if way == "supervisor":
        return supervisor
    (process,) = supervisor.children()
    stubs = [child for child in process.children() if "triton_python_backend_stub" in child.name()]
    return process if way == "tritonserver" else stubs[-1]


def classify(client: Client) -> None:
    assert isinstance(client.classify(sample_picture()), Prediction)


def one_round(repository: Path, state: Path, python: Path, way: str) -> tuple[float, float | None]:
    """Seconds until the server answered, and until it answered again."""
    start = time.monotonic()
    server = triton.start(repository, state, python=python, ports=triton.TritonPorts.free(), shared_memory=True)
    started, returned = time.monotonic() - start, None
    try:
        with Client(server.grpc_url, shared_memory=True, timeout=60, attempts=1000) as client:
            classify(client)
            if way != "stop":
                process = victim(server, way)
                killed = time.monotonic()
                os.kill(process.pid, signal.SIGKILL)
                psutil.wait_procs([process], timeout=20)
            if way in ("Python process", "tritonserver"):
                while server.ready_file.exists() and time.monotonic() < killed + 2:
                    time.sleep(0.01)  # the supervisor has not looked yet
                classify(client)
                returned = time.monotonic() - killed
    finally:
        triton.Triton.stop(state)
    return started, returned


def ours() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob("afd_*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--platform", default="python_cpu")
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    arguments = parser.parse_args()
    before, starts, returns = ours(), [], []
    with tempfile.TemporaryDirectory(prefix="afd-restarts-") as scratch:
        limits = TritonLimits(classifiers=os.cpu_count() or 1)
        repository = package_triton(
            arguments.model, Path(scratch) / "repository", platform=arguments.platform, limits=limits
        )
        for index in range(arguments.rounds):
            way = WAYS[index % len(WAYS)]
            started, returned = one_round(repository, Path(scratch) / "state", arguments.python, way)
            starts.append(started)
            if returned is not None:
                returns.append(returned)
            again = f", answers again after {returned:.1f} s" if returned is not None else ""
            left = len(ours() - before)
            print(f"{index + 1:3} {way:15} ready after {started:.1f} s{again}; left in /dev/shm: {left}", flush=True)
    print(f"ready after {np.median(starts):.1f} s (longest {max(starts):.1f})", end="")
    print(f", again after {np.median(returns):.1f} s (longest {max(returns):.1f})" if returns else "")
    if ours() - before:
        sys.exit(f"left in /dev/shm: {sorted(ours() - before)}")


if __name__ == "__main__":
    main()
