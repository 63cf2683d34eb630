"""Reading what a server publishes at its metrics port."""

import re
import time

from afd_serve.servers.triton import Triton

_SERIES = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


def total(text: str, name: str, **labels: str) -> float:
    """The sum over all series of a name that have these labels; 0 where there is none."""
    return sum(value for found, given, value in _read(text) if found == name and labels.items() <= given.items())


def settled(server: Triton) -> str:
    """A scrape with all that was counted so far; the server's processes tell each other within a second."""
    time.sleep(1)
    return server.metrics()


def counted(server: Triton, name: str, **labels: str) -> float:
    """`total` of a scrape now."""
    return total(settled(server), name, **labels)


def names(text: str) -> set[str]:
    """The names of all series."""
    return {name for name, _, _ in _read(text)}


def _read(text: str) -> list[tuple[str, dict[str, str], float]]:
    found = [_SERIES.fullmatch(line) for line in text.splitlines() if line and not line.startswith("#")]
    return [
        (series[1], dict(re.findall(r'(\w+)="(.*?)"', series[2] or "")), float(series[3])) for series in found if series
    ]
