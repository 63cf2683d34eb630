"""Show a comparison: a table for the terminal, ``report.md``, ``report.json`` and a plot."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from afd_serve.errors import ConfigError
from afd_serve.evaluation.compare import CONDITIONS, FITTED_HERE, GATED_CLEAN, PLOT_NAME, ROWS, CompareConfig, Row
from afd_serve.evaluation.latency import Latency
from afd_serve.evaluation.metrics import Floats, Interval, bootstrap_means, interval, recovered_share
from afd_serve.evaluation.report_json import write_json
from afd_serve.evaluation.wording import counted, left_out, printable
from afd_serve.runs import write_text

__all__ = ["Comparison", "Method", "print_comparison", "summarize_rows", "write_comparison"]

_COMPRESSED = tuple(condition for condition in CONDITIONS if condition.key != "clean")
_MILLION = 1e6


@dataclass(frozen=True)
class Method:
    """The figures of one row; accuracies and shares are 0..1.

    Attributes:
        name: a key of `ROWS`.
        title: what it is.
        weights: where its weights come from.
        top1: per quality of protocol A.
        mean: of ``top1`` over the qualities.
        recovered: share of the top-1 lost by compression that the method wins back; NaN for no protection.
        clean: top-1 on clean pictures with the method applied to all of them.
        clean_gated: the same where the gate decides; None for methods without one.
        parameters: values stored beside the backbone's.
        extra_macs: multiply-accumulates per picture beside the backbone's.
        latency: against the bare backbone, where measured.
    """

    name: str
    title: str
    weights: str
    top1: dict[int, Interval]
    mean: Interval
    recovered: Interval
    clean: Interval
    clean_gated: Interval | None
    parameters: int
    extra_macs: int
    latency: Latency | None


@dataclass(frozen=True)
class Comparison:
    """All rows on the pictures that could be read."""

    backbone: str
    labelled: str
    fitted_on: tuple[str, ...]
    steps: int
    seed: int
    pictures: int
    left_out: int
    backbone_macs: int
    methods: tuple[Method, ...]


def summarize_rows(rows: Sequence[Row], config: CompareConfig) -> Comparison:
    """Compute the figures; intervals are paired: one resample of the pictures serves all rows.

    Args:
        rows: What `compare` returned, the first without protection.
        config: Of the comparison.

    Raises:
        ConfigError: No picture could be read.
    """
    names = [(row.name, key) for row in rows for key in row.hits]
    table = np.array([row.hits[key] for row in rows for key in row.hits], np.float64).T
    used = (table >= 0).all(axis=1)
    if not used.any():
        raise ConfigError(f"no picture of {config.labelled} could be classified")
    hits = {name: table[used, index] for index, name in enumerate(names)}
    resampled = bootstrap_means(table[used])
    means = {name: resampled[:, index] for index, name in enumerate(names)}
    return Comparison(
        backbone=config.backbone,
        labelled=str(config.labelled) + (f", split {config.split}" if config.split else ""),
        fitted_on=tuple(str(folder) for folder in config.images),
        steps=config.steps,
        seed=config.seed,
        pictures=int(used.sum()),
        left_out=int((~used).sum()),
        backbone_macs=rows[0].macs[1],
        methods=tuple(_method(row, hits, means) for row in rows),
    )


_Columns = dict[tuple[str, str], Floats]


def _method(row: Row, hits: _Columns, means: _Columns) -> Method:
    def accuracy(*keys: str, name: str = row.name) -> tuple[float, Floats]:
        """Mean top-1 over conditions, and the same of each resample."""
        value = float(np.mean([hits[name, key] for key in keys]))
        return value, np.mean([means[name, key] for key in keys], axis=0)

    compressed = [condition.key for condition in _COMPRESSED]
    clean, bare, ours = accuracy("clean", name="direct"), accuracy(*compressed, name="direct"), accuracy(*compressed)
    share = recovered_share(np.array(clean[0]), np.array(bare[0]), np.array(ours[0]))
    recovered = interval(float(share), recovered_share(clean[1], bare[1], ours[1]))
    return Method(
        name=row.name,
        title=ROWS[row.name],
        weights=row.weights,
        top1={condition.level: interval(*accuracy(condition.key)) for condition in _COMPRESSED},
        mean=interval(*ours),
        recovered=Interval(math.nan, math.nan, math.nan) if row.name == "direct" else recovered,
        clean=interval(*accuracy("clean")),
        clean_gated=interval(*accuracy(GATED_CLEAN)) if GATED_CLEAN in row.hits else None,
        parameters=row.parameters,
        extra_macs=row.macs[0] - row.macs[1],
        latency=row.latency,
    )


_COLUMNS = (
    "method",
    *(condition.title for condition in _COMPRESSED),
    "mean",
    "recovered",
    "clean, no gate",
    "clean, gate",
    "parameters",
    "extra MMACs",
    "latency",
)
_SHOWN = ("method", "mean", "recovered", "clean, no gate", "extra MMACs")
"""What a terminal of 80 places can hold."""


def _cells(method: Method) -> list[str]:
    latency = method.latency
    return [
        method.title,
        *(f"{100 * top1.value:.1f}" for top1 in method.top1.values()),
        _percent(method.mean),
        "" if method.name == "direct" else _percent(method.recovered),
        f"{100 * method.clean.value:.1f}",
        "" if method.clean_gated is None else f"{100 * method.clean_gated.value:.1f}",
        f"{method.parameters:,}",
        f"{method.extra_macs / _MILLION:,.1f}",
        "" if latency is None else f"{latency.opened.value:.2f}x",
    ]


def _percent(value: Interval) -> str:
    """An interval as ``53.4 [50.1, 56.7]``."""
    if math.isnan(value.value):
        return "not defined"
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table, as far as a terminal holds it, and what its figures are."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in _SHOWN:
        table.add_column(column, justify="left" if column == "method" else "right")
    for method in comparison.methods:
        cells = dict(zip(_COLUMNS, _cells(method), strict=True))
        table.add_row(*(cells[column] for column in _SHOWN))
    console.print(table)
    console.print(_footer(comparison), style="dim", highlight=False, markup=False)


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Write ``report.json``, ``report.md`` and, where there are shares and matplotlib is, ``comparison.png``.

    The plot comes last, so that one which cannot be drawn takes no figures with it.

    Args:
        comparison: What to write; in the JSON, what is not defined is null.
        out: Folder, which exists.

    Returns:
        The files written.
    """
    json_file, markdown_file, plot_file = out / "report.json", out / "report.md", out / PLOT_NAME
    write_json(json_file, comparison)
    write_text(markdown_file, _markdown(comparison, None))
    plot_file.unlink(missing_ok=True)  # an earlier comparison's
    shares = [method.recovered.value for method in comparison.methods]
    if not np.isfinite(shares).any() or importlib.util.find_spec("matplotlib") is None:
        return [json_file, markdown_file]
    _plot(comparison, plot_file)
    write_text(markdown_file, _markdown(comparison, plot_file.name))
    return [json_file, markdown_file, plot_file]


def _footer(comparison: Comparison) -> str:
    used = f"{counted(comparison.pictures, 'picture')} of {printable(comparison.labelled)}"
    return (
        f"{comparison.backbone}, {used}{left_out(comparison.left_out)}. Per cent top-1, protocol A, with 95% bootstrap "
        "intervals paired over pictures. Recovered = (with - without) / (clean without - without), means over the "
        "qualities. MMACs: million multiply-accumulates per picture, beside the backbone's "
        f"{comparison.backbone_macs / _MILLION:,.0f}. Latency: times the bare backbone, open gate, one thread, batch 1."
    )


_NOTES = {
    "arcnn": "AR-CNN (Dong et al., ICCV 2015): 9-7-1-5 convolutions on RGB, with its output added to the input, "
    "because a fit this short could not reproduce the picture otherwise.",
    "dncnn": "DnCNN (Zhang et al., IEEE TIP 2017), scaled to 8 convolutions of 32 channels; BatchNorm, residual "
    "learning.",
    "ddp": "DDP: a re-implementation from the idea of Wang et al., CVPR 2020 (a small centre-surround module on "
    "shallow features, fitted without labels to the features of the clean picture), not the authors' network.",
    "batchnorm": "BatchNorm: statistics estimated anew from compressed fitting pictures, one set per quality; a "
    "picture gets the set nearest to its tables, a clean one too, whose nearest is the mildest.",
    "paper": "AFD at the stem: the preset `paper`, fitted with this project's losses.",
}


def _markdown(comparison: Comparison, plot: str | None) -> str:
    return "\n".join(_lines(comparison, plot)) + "\n"


def _lines(comparison: Comparison, plot: str | None) -> Iterator[str]:
    yield from ("# AFD beside what else could be done", "")
    yield "| " + " | ".join(_COLUMNS) + " |"
    yield "| --- |" + " --: |" * (len(_COLUMNS) - 1)
    for method in comparison.methods:
        yield "| " + " | ".join(_cells(method)) + " |"
    yield ""
    if plot:
        yield from (f"![Recovered share of each method]({plot})", "")
    yield from (_footer(comparison), "")
    folders, steps = ", ".join(map(printable, comparison.fitted_on)), counted(comparison.steps, "step")
    yield f"Fitted on {folders} for {steps}, seed {comparison.seed}."
    given = [f"{method.title}: `{method.weights}`" for method in comparison.methods if method.weights != FITTED_HERE]
    if given:
        yield f"Weights that were given instead: {'; '.join(given)}."
    yield ""
    yield from (f"- {_NOTES[method.name]}" for method in comparison.methods if method.name in _NOTES)


def _plot(comparison: Comparison, path: Path) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 (optional, and slow to import)

    methods = [method for method in comparison.methods if method.name != "direct"][::-1]
    values = np.array([100 * method.recovered.value for method in methods])
    low, high = (np.array([100 * getattr(m.recovered, end) for m in methods]) for end in ("low", "high"))
    figure = Figure(figsize=(8.0, 1.2 + 0.5 * len(methods)), layout="constrained")
    panel = figure.subplots()
    ours = {"lite", "default", "full"}
    colors = ["tab:blue" if method.name in ours else "0.6" for method in methods]
    errors = np.abs(np.stack([values - low, high - values]))
    panel.barh(range(len(methods)), values, xerr=errors, color=colors, ecolor="0.2", capsize=3, height=0.65)
    panel.axvline(0, color="0.2", linewidth=0.8)
    panel.set_yticks(range(len(methods)), [_tick(method) for method in methods])
    panel.set(xlabel="recovered share of the top-1 that JPEG took, % (protocol A)")
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
    figure.savefig(path, dpi=150)


def _tick(method: Method) -> str:
    cost = "" if method.latency is None else f", {method.latency.opened.value:.2f}x latency"
    return f"{method.title}\n{method.extra_macs / _MILLION:+,.1f} MMACs{cost}"
