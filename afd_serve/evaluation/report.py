"""Show an evaluation's figures: a table for the terminal, ``report.json``, ``report.md`` and a plot."""

import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from afd_serve.evaluation.metrics import Interval
from afd_serve.evaluation.summary import ConditionReport, ProtocolReport, Report

__all__ = ["print_report", "write_report"]

_TITLES = {
    "clean": "Clean pictures",
    "A": "Protocol A: the model's crop, compressed",
    "B": "Protocol B: compressed at native size",
    "C": "Protocol C: compressed several times",
    "resave": "Compressed hard, then re-saved at high quality",
}
_COLUMNS = (
    "",
    "top-1 without",
    "top-1 with AFD",
    "gain",
    "p",
    "top-5 without",
    "top-5 with AFD",
    "ECE without",
    "ECE with AFD",
    "gate open",
)
_NUMBERS = len(_COLUMNS) - 1
_SHOWN = 5  # of the columns, so that a terminal of 80 places can hold them


def print_report(report: Report, console: Console) -> None:
    """Print one table per protocol; accuracies in per cent, 95% intervals in brackets."""
    for protocol in report.protocols:
        table = Table(title=_TITLES[protocol.name], title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(_COLUMNS[:_SHOWN]):
            table.add_column(column, justify="right" if index else "left")
        for row in _rows(protocol):
            table.add_row(*row[:_SHOWN], style="bold" if row[0] == "mean" else None)
        console.print(table)
        if protocol.recovered is not None:
            console.print(_recovered(protocol), style="bold", highlight=False)
    console.print(_footer(report), style="dim", highlight=False)


def write_report(report: Report, out: Path) -> list[Path]:
    """Write ``report.json``, ``report.md`` and, where matplotlib is installed, ``accuracy.png``.

    Args:
        report: what to write; shares in the JSON are 0..1, and null where they are not defined.
        out: folder, which exists.

    Returns:
        The files written.
    """
    json_file, markdown_file, plot_file = out / "report.json", out / "report.md", out / "accuracy.png"
    json_file.write_text(json.dumps(_finite(asdict(report)), indent=2) + "\n", encoding="utf-8")
    curves = [p for p in report.protocols if p.name in ("A", "B")]
    plotted = bool(curves) and importlib.util.find_spec("matplotlib") is not None
    if plotted:
        _plot(report, curves, plot_file)
    markdown_file.write_text(_markdown(report, plot_file.name if plotted else None), encoding="utf-8")
    return [json_file, markdown_file, *([plot_file] if plotted else [])]


def _rows(protocol: ProtocolReport) -> Iterator[tuple[str, ...]]:
    for report in protocol.conditions:
        yield _condition_row(report)
    if len(protocol.conditions) > 1:
        means = (_percent(protocol.bare), _percent(protocol.afd), _percent(protocol.gain, sign="+"))
        yield ("mean", *means, *[""] * (_NUMBERS - len(means)))


def _condition_row(report: ConditionReport) -> tuple[str, ...]:
    return (
        report.condition.title,
        _percent(report.bare.top1),
        _percent(report.afd.top1),
        _percent(report.gain, sign="+"),
        "<0.001" if report.p_value < 0.001 else f"{report.p_value:.3f}",
        f"{100 * report.bare.top5.value:.1f}",
        f"{100 * report.afd.top5.value:.1f}",
        f"{100 * report.bare.calibration_error:.1f}",
        f"{100 * report.afd.calibration_error:.1f}",
        f"{100 * report.gate_open:.0f}",
    )


def _percent(value: Interval, sign: str = "-") -> str:
    """Write an interval as ``53.4 [50.1, 56.7]``; ``sign="+"`` shows the sign of positive numbers too."""
    if math.isnan(value.value):
        return "not defined"
    numbers = [format(100 * number, f"{sign}.1f") for number in (value.value, value.low, value.high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _recovered(protocol: ProtocolReport) -> str:
    share = "not defined" if protocol.recovered is None else _percent(protocol.recovered)
    return f"Recovered of the lost top-1: {share}"


def _footer(report: Report) -> str:
    left_out = f"; {len(report.failures)} could not be read and are left out" if report.failures else ""
    return (
        f"{report.pictures} pictures of {report.dataset}{left_out}. Per cent, with 95% bootstrap intervals over "
        "pictures; p: McNemar's exact test. Recovered = (with - without) / (clean without - without), means over rows."
    )


def _markdown(report: Report, plot: str | None) -> str:
    lines = ["# Accuracy on compressed pictures, with and without AFD", "", f"Model: `{report.model}`.", ""]
    for protocol in report.protocols:
        lines += [f"## {_TITLES[protocol.name]}", "", _markdown_row(_COLUMNS)]
        lines.append(_markdown_row(["---", *["--:"] * _NUMBERS]))
        lines += [_markdown_row(row) for row in _rows(protocol)]
        lines += ["", *([_recovered(protocol), ""] if protocol.recovered is not None else [])]
    if plot:
        lines += [f"![Top-1 accuracy against quality factor]({plot})", ""]
    lines.append(_footer(report))
    if report.failures:
        lines += ["", "Left out:", "", *(f"- `{name}`: {reason}" for name, reason in report.failures.items())]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _finite(value: Any) -> Any:
    """Replace NaN, which is no JSON, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plot(report: Report, curves: list[ProtocolReport], path: Path) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 (optional, and slow to import)

    figure = Figure(figsize=(5.2 * len(curves), 4.0), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    clean = next(protocol for protocol in report.protocols if protocol.name == "clean").bare.value
    for panel, protocol in zip(panels, curves, strict=True):
        panel.axhline(100 * clean, color="0.4", linestyle=":", label="clean, without AFD")
        qualities = [c.condition.level for c in protocol.conditions]
        for name, color, marker in (("bare", "tab:red", "s"), ("afd", "tab:blue", "o")):
            scores = [getattr(c, name).top1 for c in protocol.conditions]
            label = "with AFD" if name == "afd" else "without AFD"
            panel.plot(qualities, [100 * s.value for s in scores], color=color, marker=marker, label=label)
            low, high = [100 * s.low for s in scores], [100 * s.high for s in scores]
            panel.fill_between(qualities, low, high, color=color, alpha=0.15, linewidth=0)
        panel.set(title=_TITLES[protocol.name], xlabel="JPEG quality factor", xticks=qualities)
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right")
    panels[0].set_ylabel("top-1 accuracy, %")
    figure.savefig(path, dpi=150)
