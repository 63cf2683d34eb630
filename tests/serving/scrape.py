"""Reading what a server publishes at its metrics port."""

import re

_SERIES = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


def total(text: str, name: str, **labels: str) -> float:
    """The sum over all series of a name that have these labels; 0 where there is none."""
    return sum(value for found, given, value in _read(text) if found == name and labels.items() <= given.items())


def names(text: str) -> set[str]:
    """The names of all series."""
    return {name for name, _, _ in _read(text)}


def _read(text: str) -> list[tuple[str, dict[str, str], float]]:
    found = [_SERIES.fullmatch(line) for line in text.splitlines() if line and not line.startswith("#")]
    return [
        (series[1], dict(re.findall(r'(\w+)="(.*?)"', series[2] or "")), float(series[3])) for series in found if series
    ]
