"""Show an evaluation's figures: a table for the terminal, ``report.json``, ``report.md`` and plots."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from afd_serve.evaluation.drift_maps import DriftExample
from afd_serve.evaluation.latency import Latency
from afd_serve.evaluation.metrics import Interval
from afd_serve.evaluation.protocols import RESAVED, SAVED_ONCE, TITLES
from afd_serve.evaluation.report_json import write_json
from afd_serve.evaluation.summary import ConditionReport, ProtocolReport, Report
from afd_serve.evaluation.wording import counted, left_out, printable
from afd_serve.runs import write_text

if TYPE_CHECKING:
    from afd_serve.evaluation.plots import Plot

__all__ = ["print_report", "write_report"]

_COLUMNS = (
    "",
    "top-1 without",
    "top-1 with AFD",
    "gain",
    "p",
    "top-5 without",
    "top-5 with AFD",
    "as clean without",
    "as clean with AFD",
    "ECE without",
    "ECE with AFD",
    "gate open",
)
_NUMBERS = len(_COLUMNS) - 1
_SHOWN = 5  # of the columns, so that a terminal of 80 places can hold them


def print_report(report: Report, console: Console) -> None:
    """Print one table per protocol; accuracies in per cent, 95% intervals in brackets."""
    for protocol in report.protocols:
        table = Table(
            title=TITLES[protocol.name], title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        for index, column in enumerate(_COLUMNS[:_SHOWN]):
            table.add_column(column, justify="right" if index else "left")
        for row in _rows(protocol):
            table.add_row(*row[:_SHOWN], style="bold" if row[0] == "mean" else None)
        console.print(table)
        console.print(_verdict(protocol, report), style="bold", highlight=False, markup=False)
    if report.latency is not None:
        console.print(_latency(report.latency), style="bold", highlight=False, markup=False)
    console.print(_footer(report), style="dim", highlight=False, markup=False)


def write_report(report: Report, out: Path, examples: Sequence[DriftExample] = ()) -> list[Path]:
    """Write ``report.json``, ``report.md`` and, where matplotlib is installed, the plots; an earlier report's go.

    Plots come last, so that one which cannot be drawn takes no figures with it.

    Args:
        report: what to write; shares in the JSON are 0..1, and null where they are not defined.
        out: folder, which exists.
        examples: pictures whose drift maps are shown.

    Returns:
        The files written.
    """
    json_file, markdown_file = out / "report.json", out / "report.md"
    write_json(json_file, report)
    write_text(markdown_file, _markdown(report, ()))
    if importlib.util.find_spec("matplotlib") is None:
        return [json_file, markdown_file]
    from afd_serve.evaluation.plots import draw_plots  # noqa: PLC0415 (optional, and slow to import)

    plots = draw_plots(report, out, examples)
    write_text(markdown_file, _markdown(report, plots))
    return [json_file, markdown_file, *(plot.path for plot in plots)]


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
        f"{100 * report.bare.agreement:.1f}",
        f"{100 * report.afd.agreement:.1f}",
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


def _verdict(protocol: ProtocolReport, report: Report) -> str:
    """The figure that counts: what was won back, or what it costs where nothing was lost."""
    if protocol.recovered is not None:
        recovered = f"Recovered of the lost top-1: {_percent(protocol.recovered)}"
        if protocol.name == RESAVED.protocol and report.resave_gap is not None:
            recovered += f"; {_beside_saved_once(report.resave_gap)}"
        return recovered
    opened = protocol.conditions[0].gates_opened
    cost = _percent(protocol.gain, sign="+")
    pictures = counted(report.pictures, "picture")
    return f"Clean cost: top-1 changes by {cost} points; the gate opened for {opened} of {pictures}"


def _beside_saved_once(gap: Interval) -> str:
    """How what was saved again compares with what was saved once."""
    if math.isnan(gap.value):
        return f"how that compares with {SAVED_ONCE.title} alone is not defined"
    return f"beside {SAVED_ONCE.title} alone {_percent(gap, sign='+')} points"


def _latency(latency: Latency) -> str:
    """What AFD costs, in one line."""
    opened, closed = (
        f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" for ratio in (latency.opened, latency.closed)
    )
    return (
        f"Latency, times the bare backbone's {latency.bare_ms:.1f} ms: gate open {opened}, gate closed {closed} "
        f"(one thread, batch {latency.batch}, interleaved, medians of {counted(latency.rounds, 'round')})"
    )


def _footer(report: Report) -> str:
    used = f"{counted(report.pictures, 'picture')} of {printable(report.dataset)}{left_out(len(report.failures))}"
    return (
        f"{used}. Per cent, with 95% bootstrap intervals over pictures; p: McNemar's exact test. As clean: the first "
        "class is that of the clean picture without AFD, right or wrong. Recovered = (with - without) / (clean without "
        "- without), means over rows."
    )


def _markdown(report: Report, plots: "Sequence[Plot]") -> str:
    lines = ["# Accuracy on compressed pictures, with and without AFD", "", f"Model: `{report.model}`.", ""]
    for protocol in report.protocols:
        lines += [f"## {TITLES[protocol.name]}", "", _markdown_row(_COLUMNS)]
        lines.append(_markdown_row(["---", *["--:"] * _NUMBERS]))
        lines += [_markdown_row(row) for row in _rows(protocol)]
        lines += ["", f"{_verdict(protocol, report)}.", ""]
    if report.latency is not None:
        lines += ["## Latency", "", f"{_latency(report.latency)}.", ""]
    for plot in plots:
        lines += [f"## {plot.caption}", "", f"![{plot.caption}]({plot.path.name})", "", plot.note, ""]
    lines.append(_footer(report))
    if report.failures:
        reasons = ((printable(name), printable(reason)) for name, reason in report.failures.items())
        lines += ["", "Left out:", "", *(f"- {_code(name)}: {reason}" for name, reason in reasons)]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """As code, with the ends that Markdown wants where the text itself has backticks."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _markdown_row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
