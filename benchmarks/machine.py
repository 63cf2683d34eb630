"""What a server's processes take of the machine, and which machine that is."""

import platform
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["cpu_name", "family", "memory"]


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def memory(pid: int) -> dict[int, float]:
    """MiB of each process of a family, by process id: its own and its share of what it shares with others."""
    sizes = {}
    for process in family(pid):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            sizes[process.pid] = process.memory_full_info().pss / 2**20
    return sizes
