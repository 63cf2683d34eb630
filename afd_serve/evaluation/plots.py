"""The plots of a report: accuracy against quality, reliability, classes gained and lost, drift maps of examples.

Matplotlib is optional, and slow to import; nothing else may import this module before it has to draw.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from afd_serve.evaluation.drift_maps import DriftExample
from afd_serve.evaluation.metrics import ReliabilityBin
from afd_serve.evaluation.protocols import TITLES
from afd_serve.evaluation.summary import ClassGain, ProtocolReport, Report
from afd_serve.evaluation.wording import printable

__all__ = ["Plot", "draw_plots"]

_BARE: Final[dict[str, Any]] = {"color": "tab:red", "marker": "s", "label": "without AFD"}
_AFD: Final[dict[str, Any]] = {"color": "tab:blue", "marker": "o", "label": "with AFD"}
_DPI: Final = 110
_CLASSES: Final = 20
_LONGEST_LABEL: Final = 28


@dataclass(frozen=True)
class Plot:
    """A file that was written, what it shows, and how to read it."""

    path: Path
    caption: str
    note: str


def draw_plots(report: Report, out: Path, examples: Sequence[DriftExample] = ()) -> list[Plot]:
    """Write the plots that a report has figures for, as PNG; those that an earlier report left go.

    Args:
        report: what to draw.
        out: folder, which exists.
        examples: pictures whose drift maps are shown.
    """
    by_quality = [protocol for protocol in report.protocols if protocol.name in ("A", "B", "webp", "avif")]
    changed = any(gain.gain for gain in report.classes)
    accuracy, reliability, classes, maps = (out / f"{name}.png" for name in _NAMES)
    for path in (accuracy, reliability, classes, maps):
        path.unlink(missing_ok=True)
    plots = []
    if by_quality:
        plots.append(_save(_accuracy(report, by_quality), accuracy, "Accuracy against quality", _ACCURACY))
    plots.append(_save(_reliability(report.protocols), reliability, "Reliability", _RELIABILITY))
    if changed:
        plots.append(_save(_classes(report.classes), classes, "Classes gained and lost", _GAINS))
    if examples:
        plots.append(_save(_drift_maps(examples), maps, "Drift maps", _MAPS))
    return plots


_NAMES: Final = ("accuracy", "reliability", "classes", "drift_maps")
_ACCURACY: Final = "Top-1 with 95% bootstrap intervals over pictures."
_RELIABILITY: Final = (
    "How often the first class is right, for pictures of like confidence, all conditions of a protocol together; below "
    "the diagonal the classifier is too sure of itself. Areas show the share of the pictures."
)
_GAINS: Final = (
    "Change of top-1 by AFD, all compressed conditions together, for the classes that changed most. A number in "
    "brackets counts a class's pictures where it has several; few pictures make large changes."
)
_MAPS: Final = (
    "How far the features of each cell are moved or off, relative to their length, after the last block at stride 8: "
    "what AFD estimates from the compressed picture alone, and the actual distance from the clean picture's features "
    "without and with AFD. Above each map its mean. The examples are mostly pictures that AFD made right; one that it "
    "made wrong is among them, where there is one."
)


def _save(figure: Figure, path: Path, caption: str, note: str) -> Plot:
    with warnings.catch_warnings():
        # Boxes stand for what the font has no glyphs of; whoever sees them needs no line for each.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        figure.savefig(path, dpi=_DPI)
    return Plot(path, caption, note)


def _verbatim(text: str) -> str:
    """A name as a text of a plot: Matplotlib takes what is between two dollars for a formula."""
    return "\n".join(map(printable, text.split("\n"))).replace("$", r"\$")


def _panels(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """So many panels, in rows of ``columns``."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    # Wide enough apart for the last tick of a panel and the first of its neighbour.
    figure = Figure(figsize=(4.8 * columns, 4.0 * rows), layout=ConstrainedLayoutEngine(w_pad=0.12))
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _finish(figure: Figure, panels: Sequence[Axes], quantity: str) -> None:
    """A grid, one legend for all panels, and what the vertical axes show, once a row."""
    for panel in panels:
        panel.grid(alpha=0.3)
        place = panel.get_subplotspec()
        if place is not None and place.is_first_col():
            panel.set_ylabel(quantity)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _accuracy(report: Report, protocols: Sequence[ProtocolReport]) -> Figure:
    figure, panels = _panels(len(protocols), 2)
    clean = next(protocol for protocol in report.protocols if protocol.name == "clean").bare.value
    for panel, protocol in zip(panels, protocols, strict=True):
        panel.axhline(100 * clean, color="0.4", linestyle=":", label="clean, without AFD")
        qualities = [condition.condition.level for condition in protocol.conditions]
        for scores, style in (
            ([condition.bare.top1 for condition in protocol.conditions], _BARE),
            ([condition.afd.top1 for condition in protocol.conditions], _AFD),
        ):
            panel.plot(qualities, [100 * score.value for score in scores], **style)
            low, high = [100 * score.low for score in scores], [100 * score.high for score in scores]
            panel.fill_between(qualities, low, high, color=style["color"], alpha=0.15, linewidth=0)
        panel.set(title=TITLES[protocol.name], xlabel="quality", xticks=qualities)
    _finish(figure, panels, "top-1, %")
    return figure


def _reliability(protocols: Sequence[ProtocolReport]) -> Figure:
    figure, panels = _panels(len(protocols), 4)
    for panel, protocol in zip(panels, protocols, strict=True):
        panel.plot([0, 100], [0, 100], color="0.6", linestyle=":", label="perfectly calibrated")
        _reliability_curve(panel, protocol.bare_reliability, _BARE)
        _reliability_curve(panel, protocol.afd_reliability, _AFD)
        panel.set(title=TITLES[protocol.name], xlabel="confidence, %", xlim=(0, 100), ylim=(-4, 104))
    _finish(figure, panels, "accuracy, %")
    return figure


def _reliability_curve(panel: Axes, bins: Sequence[ReliabilityBin], style: dict[str, Any]) -> None:
    confidences, accuracies = [100 * b.confidence for b in bins], [100 * b.accuracy for b in bins]
    total = sum(b.pictures for b in bins)
    panel.plot(confidences, accuracies, color=style["color"], alpha=0.7, linewidth=1)
    panel.scatter(confidences, accuracies, [8 + 300 * b.pictures / total for b in bins], alpha=0.7, **style)


def _classes(classes: Sequence[ClassGain]) -> Figure:
    gained = sorted((c for c in classes if c.gain > 0), key=lambda c: -c.gain)
    lost = sorted((c for c in classes if c.gain < 0), key=lambda c: c.gain)
    longest = max(1, min(_CLASSES, max(len(gained), len(lost))))
    most = 105 * max(abs(c.gain) for c in classes)
    figure = Figure(figsize=(11, 1.4 + 0.24 * longest), layout="constrained")
    sides = ((gained, "gained", "tab:blue", (0, most)), (lost, "lost", "tab:red", (-most, 0)))
    for panel, (side, word, color, limits) in zip(figure.subplots(1, 2), sides, strict=True):
        shown = side[:_CLASSES]
        panel.barh(range(len(shown)), [100 * c.gain for c in shown], color=color)
        panel.set_yticks(range(len(shown)), [_class_label(c) for c in shown], fontsize=8)
        panel.set(xlim=limits, ylim=(longest - 0.5, -0.5), xlabel="top-1 with AFD - without, points")
        selected = f", the {len(shown)} that {word} most" if len(side) > len(shown) else ""
        panel.set_title(f"{len(side)} of {len(classes)} classes {word}{selected}", fontsize=10)
        panel.grid(axis="x", alpha=0.3)
    return figure


def _class_label(gain: ClassGain) -> str:
    label = printable(gain.label)
    label = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
    return _verbatim(label if gain.pictures == 1 else f"{label} ({gain.pictures})")


def _drift_maps(examples: Sequence[DriftExample]) -> Figure:
    figure = Figure(figsize=(10.5, 2.75 * len(examples)), layout="constrained")
    rows = figure.subplots(len(examples), 4, squeeze=False)
    top = float(np.quantile([example.actual for example in examples], 0.99))
    for row, example in zip(rows, examples, strict=True):
        row[0].imshow(example.rgb)
        row[0].set_title(_verbatim(example.title), fontsize=8)
        for panel, values, title in (
            (row[1], example.found, "found by AFD"),
            (row[2], example.actual, "actual, without AFD"),
            (row[3], example.remaining, "actual, with AFD"),
        ):
            shown = panel.imshow(100 * values, cmap="inferno", vmin=0, vmax=100 * top)
            panel.set_title(f"{title}: {values.mean():.0%}", fontsize=9)
    for panel in rows.flat:
        panel.set_axis_off()
    beyond = max(float(values.max()) for e in examples for values in (e.found, e.actual, e.remaining)) > top
    end, shrink = "max" if beyond else "neither", min(1.0, 1.6 / len(examples))
    bar = figure.colorbar(shown, ax=rows, shrink=shrink, pad=0.01, extend=end)
    bar.set_label("relative distance of features, %")
    return figure
