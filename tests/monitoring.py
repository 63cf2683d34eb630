"""What is in monitoring/, for the tests of it: expressions, the metrics in them, and the tools that judge them."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "monitoring"

TRITON_METRICS = frozenset(
    {
        "nv_inference_pending_request_count",
        "nv_inference_queue_duration_us",
        "nv_inference_request_duration_us",
        "nv_inference_request_failure",
        "nv_inference_request_success",
    }
)
"""Those of Triton's documented metrics that are used; a test looks for them in a real scrape."""

_NO_METRIC = re.compile(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)')
_NAME = re.compile(r"\b[a-zA-Z_]\w*\b(?!\s*\()")
_KEYWORDS = frozenset({"and", "or", "unless", "offset"})


def tool(name: str) -> Path:
    """The path of ``prometheus`` or ``promtool``; skips the test where it is not."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH; `make test` unpacks Debian's package prometheus where it can be had")
    return Path(found)


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, with the rows between them."""
    return list(json.loads((FOLDER / "dashboard.json").read_text())["panels"])


def dashboard_expressions() -> Iterator[str]:
    """The dashboard's queries, with Grafana's variables filled in."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")


def metrics_in(expression: str) -> set[str]:
    """The names of the metrics in a PromQL expression."""
    return set(_NAME.findall(_NO_METRIC.sub(" ", expression))) - _KEYWORDS
