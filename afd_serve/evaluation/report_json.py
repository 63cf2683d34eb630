"""A report's figures as JSON."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from afd_serve.runs import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["write_json"]


def write_json(path: Path, report: "DataclassInstance") -> None:
    """Write a report's fields; what is not defined (NaN) is null."""
    write_text(path, json.dumps(_finite(asdict(report)), indent=2) + "\n")


def _finite(value: object) -> object:
    """Replace NaN, which is no JSON, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
