# ruff: noqa: PLC0415
"""Commands that work for long, and can be interrupted: fit, evaluate, compare.

Their imports take seconds and can be interrupted too, so they stand inside `interruptible`: Python drops what is raised
in some of an import's callbacks, and would go on.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from afd_serve.cli.interruption import interruptible
from afd_serve.cli.options import DEFAULT_MODEL, ModelOption
from afd_serve.config import PRESETS, SERVED_PRESET, FitConfig
from afd_serve.progress import task

__all__ = ["app"]

app = typer.Typer()

ImagesOption = Annotated[list[str], typer.Option(help="Folders of unlabelled pictures, separated by commas.")]


@app.command()
def fit(
    backbone: Annotated[str, typer.Option(help="efficientnet-lite0, torchvision:NAME, timm:NAME or file:PATH.py.")],
    images: ImagesOption,
    out: Annotated[Path, typer.Option(help="The run's folder; an interrupted run in it goes on.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = SERVED_PRESET,
    steps: Annotated[int | None, typer.Option(min=1, help="How many steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pictures per step.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and compression.")] = 0,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that load pictures.")] = None,
    exclude: Annotated[list[Path] | None, typer.Option(help="Files or folders to leave out.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Start from these weights: a shipped name or a run's folder.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest, after warming up.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Side of crops, a multiple of 32; may be repeated.")] = None,
) -> None:
    """Fit AFD to a classifier on unlabelled pictures."""
    chosen = {
        "steps": steps,
        "batch_size": batch_size,
        "workers": workers,
        "learning_rate": learning_rate,
        "sizes": tuple(size) if size else None,
    }
    settings: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    config = FitConfig(
        backbone, _folders(images), out, preset=preset, seed=seed, exclude=tuple(exclude or ()), init=init, **settings
    )
    with interruptible("interrupted; the same command goes on from the last saved step"):
        from afd_serve.training.fit import fit as run_fit

        result = run_fit(config)
    for remark in result.remarks:
        typer.echo(remark)
    typer.echo(
        f"{result.weights} (loss {result.loss:.4f}); next: afd-serve evaluate --model {out} --images ... --out ..."
    )


@app.command()
def evaluate(
    images: Annotated[Path, typer.Option(help="A folder per class, or a CSV file with columns file and label.")],
    out: Annotated[Path, typer.Option(help="Where the report goes; an interrupted run in it goes on.")],
    model: ModelOption = DEFAULT_MODEL,
    protocol: Annotated[str, typer.Option(help="Of A, B, C, resave, webp, avif, clean, separated by commas.")] = "A",
    split: Annotated[str | None, typer.Option(help="Rows of the CSV file to keep.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many pictures, spread over the set.")] = None,
    seed: Annotated[int, typer.Option(help="Of what protocol C draws.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Torch's threads; more help on an idle machine only.")] = 1,
    latency: Annotated[
        int,
        typer.Option(
            min=0, help="Rounds to time AFD against the bare backbone, which must be there; on a quiet machine only."
        ),
    ] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the answers that --out holds.")] = False,
) -> None:
    """Measure accuracy on compressed pictures, with and without AFD."""
    with interruptible("interrupted; the same command goes on from here"):
        from afd_serve.evaluation.protocols import parse_protocols
        from afd_serve.evaluation.report import print_report
        from afd_serve.evaluation.study import Study, run_study

        study = Study(model, images, out, parse_protocols(protocol), split, limit, seed, threads, latency)
        with task("classifying") as progress:
            report, files = run_study(study, progress, fresh=fresh)
        print_report(report, Console())
        _say_what_was_written(files)


@app.command()
def compare(
    images: ImagesOption,
    labelled: Annotated[Path, typer.Option(help="A folder per class, or a CSV file with columns file and label.")],
    out: Annotated[Path, typer.Option(help="Where rows, fits and the report go; rows that are there are kept.")],
    backbone: Annotated[str, typer.Option(help="The classifier, as for `fit`.")] = DEFAULT_MODEL,
    split: Annotated[str | None, typer.Option(help="Rows of the CSV file to keep.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many labelled pictures.")] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Of direct, arcnn, dncnn, ddp, batchnorm, paper, lite, default, full, separated by commas."),
    ] = None,
    ours: Annotated[list[str] | None, typer.Option(help="A fitted model to take for the row of its preset.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each fit.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and compression.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load pictures.")] = 1,
    latency: Annotated[int, typer.Option(min=0, help="Rounds to time each method against the bare backbone.")] = 0,
) -> None:
    """Compare AFD with other methods, fitted on the same pictures: accuracy, size, cost."""
    with interruptible("interrupted; the same command goes on from the row that is not done"):
        from afd_serve.evaluation import compare as comparing
        from afd_serve.evaluation.compare_report import print_comparison, summarize_rows, write_comparison

        given: dict[str, Any] = {} if steps is None else {"steps": steps}
        config = comparing.CompareConfig(
            backbone, _folders(images), labelled, out, split, limit, seed=seed, workers=workers, rounds=latency, **given
        )
        wanted = list(comparing.ROWS) if rows is None else [row.strip() for row in rows.split(",") if row.strip()]
        comparison = summarize_rows(comparing.compare(config, wanted, ours or ()), config)
        print_comparison(comparison, Console())
        _say_what_was_written(write_comparison(comparison, out))


def _say_what_was_written(files: Sequence[Path]) -> None:
    typer.echo("\n".join(f"wrote {path}" for path in files))
    if find_spec("matplotlib") is None:
        typer.echo("no plots: matplotlib is not installed; pip install 'afd-serve[plots]'", err=True)


def _folders(entries: list[str]) -> tuple[Path, ...]:
    """What is there under the whole name is one folder, whatever commas that name has."""
    lists = ([entry] if Path(entry).exists() else entry.split(",") for entry in entries)
    return tuple(Path(folder) for folders in lists for folder in folders if folder)
