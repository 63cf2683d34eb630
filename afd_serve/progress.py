"""Progress of long-running work: a bar on a terminal, and a line now and then where its output goes to a file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Step", "task"]

_SECONDS_BETWEEN_LINES: Final = 60.0


class Step(Protocol):
    """What is told how far the work is."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """So much of so much is done; ``note`` is shown behind it."""


@contextmanager
def task(title: str, *, between_lines: float = _SECONDS_BETWEEN_LINES) -> Iterator[Step]:
    """Show how far a part of the work is, on stderr.

    Args:
        title: What is being done.
        between_lines: Seconds from a line to the next, where stderr is no terminal.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, between_lines)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=None, note="")
        yield lambda done, total, note="": progress.update(bar, completed=done, total=total, note=note)


class _Lines:
    def __init__(self, title: str, between: float) -> None:
        self._title, self._between = title, between
        self._due = time.monotonic() + between
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        begun, before = self._first
        if now < self._due and done < total:
            return
        self._due = now + self._between
        words = [f"{self._title}: {done} of {total}", note]
        if before < done < total:
            left = (now - begun) / (done - before) * (total - done)
            words.append(f"{timedelta(seconds=round(left))} left")
        print(", ".join(filter(None, words)), file=sys.stderr, flush=True)
