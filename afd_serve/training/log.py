"""The log of a fit: an object of JSON per line, with a step and the mean loss of those before it."""

import json
from pathlib import Path

from afd_serve.runs import write_text

__all__ = ["append_loss", "keep_until"]


def append_loss(path: Path, step: int, loss: float) -> None:
    """Add a line; the file is made where it is missing."""
    with path.open("a", encoding="utf-8") as log:
        log.write(_line(step, round(loss, 5)))


def keep_until(path: Path, step: int) -> None:
    """Drop what a run that was killed did after its last saved state, as it is done again, and what is damaged."""
    before = path.read_bytes() if path.exists() else b""
    kept = [entry for entry in map(_entry, before.splitlines()) if entry is not None and entry[0] <= step]
    text = "".join(_line(*entry) for entry in kept)
    if text.encode() != before:
        write_text(path, text)


def _line(step: int, loss: float) -> str:
    return json.dumps({"step": step, "loss": loss}) + "\n"


def _entry(line: bytes) -> tuple[int, float] | None:
    """A line's step and loss; None where a full disk or a lost machine left no such line."""
    try:
        values = json.loads(line)
        return int(values["step"]), float(values["loss"])
    except (KeyError, TypeError, ValueError):
        return None
