# ruff: noqa: PLC0415
"""The command line. Modules that import torch are imported by the commands that need them: ``--help`` stays quick."""

import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from afd_serve import __version__
from afd_serve.config import PRESETS, SERVED_PRESET
from afd_serve.errors import AfdError, ConfigError, InputError
from afd_serve.mode import Mode

if TYPE_CHECKING:
    from afd_serve.results import Failure, Prediction

__all__ = ["app", "main"]

_BAD_INPUT = 1
_FAILED = 2
_INTERRUPTED = 130

app = typer.Typer(
    help="Keep a frozen image classifier accurate on heavily compressed JPEGs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
package_app = typer.Typer(help="Package a classifier for a server.", no_args_is_help=True)
serve_app = typer.Typer(help="Start a server and ask it a first question.", no_args_is_help=True)
app.add_typer(package_app, name="package")
app.add_typer(serve_app, name="serve")

ModelOption = Annotated[
    str, typer.Option("--model", help="A shipped model's name, a fitted run's folder or an exported model's folder.")
]
DefaultModeOption = Annotated[
    Mode, typer.Option("--mode", help="For requests that name none: AFD answers, is off, or runs for the metrics only.")
]
StateDirOption = Annotated[Path, typer.Option("--state-dir", help="Where the server's settings and logs lie.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_DEFAULT_MODEL = "efficientnet-lite0"
_DEFAULT_STATE = Path(".serve/torchserve")
_DEFAULT_TRITON_STATE = Path(".serve/triton")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error is one line on stderr and an exit status, never a traceback.

    Args:
        arguments: what follows the program's name; of this process where left out.

    Raises:
        SystemExit: always; 0 done, 1 a picture cannot be used, 2 anything else, 130 interrupted.
    """
    try:
        app(args=arguments)
    except AfdError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(_BAD_INPUT if isinstance(error, InputError) else _FAILED)
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(_FAILED)


@app.callback(invoke_without_command=True)
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def inspect(
    picture: Annotated[Path, typer.Argument(help="A JPEG file.", exists=True, dir_okay=False)],
    as_json: JsonOption = False,
) -> None:
    """Show a JPEG's header, components and quantization tables, and how it was compressed."""
    from afd_serve.inspection import inspect_jpeg, print_inspection, to_dict

    inspection = inspect_jpeg(picture)
    if as_json:
        _print_json(to_dict(inspection))
    else:
        print_inspection(inspection, Console())


@app.command()
def classify(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files.", exists=True, dir_okay=False)],
    model: ModelOption = _DEFAULT_MODEL,
    mode: Annotated[
        Mode | None, typer.Option(help="Whether AFD answers, is off, or only runs as well; else as the model is set.")
    ] = None,
    afd: Annotated[
        bool | None, typer.Option("--afd/--no-afd", help="The same as --mode protect, and --mode off.")
    ] = None,
    crop: Annotated[bool, typer.Option("--crop/--no-crop", help="Crop, or take pictures as cropped already.")] = True,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many classes to name.")] = 5,
    as_json: JsonOption = False,
    server: Annotated[
        str | None,
        typer.Option(help="grpc://HOST:PORT or http://HOST:PORT of a Triton or TorchServe, whose model answers."),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="AFD_SERVE_TOKEN", help="The server's key for inference, as TorchServe has.")
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Draw where the picture has drifted, as a PNG.", dir_okay=False)
    ] = None,
) -> None:
    """Classify pictures here, or on a server."""
    from afd_serve import classification
    from afd_serve.request import Options
    from afd_serve.results import Failure

    mode = _chosen_mode(mode, afd)
    if explain and (server or mode not in (None, Mode.PROTECT) or len(pictures) > 1):
        raise ConfigError("--explain draws one picture, with AFD on and a model that is here")
    data, options = [path.read_bytes() for path in pictures], Options(mode, top_k, crop)
    if server:
        results, model_info = classification.ask_server(server, token, data, options), None
    else:
        results, model_info = classification.predict_here(model, data, options)
    failed = any(isinstance(result, Failure) for result in results)
    explained = classification.draw_explanation(model, data[0], options, explain) if explain and not failed else None
    if as_json:
        answers = classification.wire_format(results, model_info)
        _print_json(answers[0] if len(pictures) == 1 else answers)
    else:
        for path, result in zip(pictures, results, strict=True):
            _print_result(path, result)
        if explained:
            typer.echo(f"{explained}\nwrote {explain}")
    if failed:
        raise typer.Exit(_BAD_INPUT)


def _chosen_mode(mode: Mode | None, afd: bool | None) -> Mode | None:
    if afd is None:
        return mode
    if mode not in (None, Mode.of(afd)):
        raise ConfigError("--mode says one thing, and --afd or --no-afd another")
    return Mode.of(afd)


@app.command()
def fit(
    backbone: Annotated[str, typer.Option(help="efficientnet-lite0, torchvision:NAME, timm:NAME or file:PATH.py.")],
    images: Annotated[list[str], typer.Option(help="Folders of unlabelled pictures, separated by commas.")],
    out: Annotated[Path, typer.Option(help="The run's folder; an interrupted run in it goes on.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = SERVED_PRESET,
    steps: Annotated[int | None, typer.Option(min=1, help="How many steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pictures per step.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and compression.")] = 0,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that load pictures.")] = None,
    exclude: Annotated[list[Path] | None, typer.Option(help="Files or folders to leave out.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Start from these weights: a shipped name or a run's folder.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest, after warming up.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Side of crops, a multiple of 32; may be repeated.")] = None,
) -> None:
    """Fit AFD to a classifier on unlabelled pictures."""
    from afd_serve.config import FitConfig
    from afd_serve.training.fit import fit as run_fit

    chosen = {
        "steps": steps,
        "batch_size": batch_size,
        "workers": workers,
        "learning_rate": learning_rate,
        "sizes": tuple(size) if size else None,
    }
    settings: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    folders = tuple(Path(folder) for entry in images for folder in entry.split(",") if folder)
    config = FitConfig(
        backbone, folders, out, preset=preset, seed=seed, exclude=tuple(exclude or ()), init=init, **settings
    )
    with _resumable(out, "interrupted; the same command goes on from the last step"):
        result = run_fit(config)
    typer.echo(
        f"{result.weights} (loss {result.loss:.4f}); next: afd-serve evaluate --model {out} --images ... --out ..."
    )


@app.command()
def evaluate(
    images: Annotated[Path, typer.Option(help="A folder per class, or a CSV file with columns file and label.")],
    out: Annotated[Path, typer.Option(help="Where the report goes; an interrupted run in it goes on.")],
    model: ModelOption = _DEFAULT_MODEL,
    protocol: Annotated[str, typer.Option(help="Of A, B, C, resave, webp, avif, clean, separated by commas.")] = "A",
    split: Annotated[str | None, typer.Option(help="Rows of the CSV file to keep.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many pictures, spread over the set.")] = None,
    seed: Annotated[int, typer.Option(help="Of what protocol C draws.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Torch's threads; more help on an idle machine only.")] = 1,
    latency: Annotated[
        int, typer.Option(min=0, help="Rounds to time AFD against the bare backbone; on a quiet machine only.")
    ] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the answers that --out holds.")] = False,
) -> None:
    """Measure accuracy on compressed pictures, with and without AFD."""
    from afd_serve.evaluation.protocols import parse_protocols
    from afd_serve.evaluation.report import print_report
    from afd_serve.evaluation.study import Study, run_study

    study = Study(model, images, out, parse_protocols(protocol), split, limit, seed, threads, latency)
    with _resumable(out, "interrupted; the same command goes on from here"), _task("classifying") as progress:
        report, files = run_study(study, progress, fresh=fresh)
    print_report(report, Console())
    typer.echo("\n".join(f"wrote {path}" for path in files))


@app.command()
def compare(
    images: Annotated[list[str], typer.Option(help="Folders of unlabelled pictures, separated by commas.")],
    labelled: Annotated[Path, typer.Option(help="A folder per class, or a CSV file with columns file and label.")],
    out: Annotated[Path, typer.Option(help="Where rows, fits and the report go; rows that are there are kept.")],
    backbone: Annotated[str, typer.Option(help="The classifier, as for `fit`.")] = _DEFAULT_MODEL,
    split: Annotated[str | None, typer.Option(help="Rows of the CSV file to keep.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many labelled pictures.")] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Of direct, arcnn, dncnn, ddp, batchnorm, paper, lite, default, full, separated by commas."),
    ] = None,
    ours: Annotated[list[str] | None, typer.Option(help="A fitted model to take for the row of its preset.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each fit.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and compression.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load pictures.")] = 1,
    latency: Annotated[int, typer.Option(min=0, help="Rounds to time each method against the bare backbone.")] = 0,
) -> None:
    """Compare AFD with other methods, fitted on the same pictures: accuracy, size, cost."""
    from afd_serve.evaluation import compare as comparing
    from afd_serve.evaluation.compare_report import print_comparison, summarize_rows, write_comparison

    folders = tuple(Path(folder) for entry in images for folder in entry.split(",") if folder)
    given: dict[str, Any] = {} if steps is None else {"steps": steps}
    config = comparing.CompareConfig(
        backbone, folders, labelled, out, split, limit, seed=seed, workers=workers, rounds=latency, **given
    )
    wanted = [row.strip() for row in rows.split(",")] if rows else list(comparing.ROWS)
    with _resumable(out, "interrupted; the same command goes on from the row that is not done"):
        found = comparing.compare(config, wanted, ours or (), _task)
    comparison = summarize_rows(found, config)
    print_comparison(comparison, Console())
    typer.echo("\n".join(f"wrote {path}" for path in write_comparison(comparison, out)))


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The folder for the engine's files and signature.json.")],
    model: ModelOption = _DEFAULT_MODEL,
    engine: Annotated[str, typer.Option(help="torchscript; on a CPU also onnxruntime or openvino.")] = "torchscript",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16, as the engine can.")] = "float32",
) -> None:
    """Write a classifier with its AFD for one engine, checked against the original on real pictures."""
    from afd_serve.export import export_classifier

    signature = export_classifier(model, out, engine=engine, precision=precision).signature
    typer.echo(f"{out}: {signature.backbone}, preset {signature.preset}, {engine} {precision}")
    typer.echo(f"largest difference of a probability from the original: {signature.parity:.1e}")


@package_app.command("torchserve")
def package_torchserve(
    out: Annotated[Path, typer.Option(help="The model store: the folder for the archive.")],
    model: ModelOption = _DEFAULT_MODEL,
    name: Annotated[str, typer.Option(help="The model's name in URLs.")] = "afd",
    version: Annotated[str, typer.Option(help="The model's version.")] = "1.0",
    mode: DefaultModeOption = Mode.PROTECT,
) -> None:
    """Build a model archive (.mar) for TorchServe."""
    from afd_serve.packaging import torchserve

    typer.echo(torchserve.package_torchserve(model, out, name=name, version=version, mode=mode))


@package_app.command("triton")
def package_triton(
    out: Annotated[Path, typer.Option(help="The model repository.")],
    model: ModelOption = _DEFAULT_MODEL,
    platform: Annotated[
        str, typer.Option(help="python, python_cpu, or pytorch_libtorch where Triton has it, as in NVIDIA's container.")
    ] = "python",
    decoders: Annotated[int, typer.Option(min=1, help="Processes that read pictures.")] = 1,
    classifiers: Annotated[int, typer.Option(min=1, help="Classifier processes, per GPU where there are any.")] = 1,
    mode: DefaultModeOption = Mode.PROTECT,
) -> None:
    """Build a model repository for Triton."""
    from afd_serve.packaging import triton

    limits = triton.TritonLimits(decoders=decoders, classifiers=classifiers)
    typer.echo(triton.package_triton(model, out, platform=platform, limits=limits, mode=mode))


@serve_app.command("torchserve")
def serve_torchserve(
    model: ModelOption = _DEFAULT_MODEL,
    state_dir: StateDirOption = _DEFAULT_STATE,
    name: Annotated[str, typer.Option(help="The model's name in URLs.")] = "afd",
    mode: DefaultModeOption = Mode.PROTECT,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0 for one per core.")] = 0,
    port: Annotated[int, typer.Option(help="For predictions.")] = 8080,
    management_port: Annotated[int, typer.Option(help="For management.")] = 8081,
    metrics_port: Annotated[int, typer.Option(help="For metrics.")] = 8082,
    grpc_port: Annotated[int, typer.Option(help="For predictions over gRPC.")] = 7070,
    grpc_management_port: Annotated[int, typer.Option(help="For management over gRPC.")] = 7071,
) -> None:
    """Serve a classifier on TorchServe in the background, on loopback, and classify a sample picture."""
    from afd_serve.servers import quickstart
    from afd_serve.servers.torchserve import Ports

    ports = Ports(port, management_port, metrics_port, grpc_port, grpc_management_port)
    server = quickstart.serve_torchserve(model, state_dir, name=name, mode=mode, ports=ports, workers=workers)
    typer.echo(quickstart.show(server))


@serve_app.command("triton")
def serve_triton(
    model: ModelOption = _DEFAULT_MODEL,
    state_dir: StateDirOption = _DEFAULT_TRITON_STATE,
    python: Annotated[
        Path | None, typer.Option(help="A Python with afd-serve[triton-server]; else this one, or a new one.")
    ] = None,
    mode: DefaultModeOption = Mode.PROTECT,
    workers: Annotated[int, typer.Option(min=0, help="Classifier processes; 0 for one per core.")] = 0,
    port: Annotated[int, typer.Option(help="For HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="For gRPC.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="For metrics.")] = 8002,
) -> None:
    """Serve a classifier on Triton in the background, on loopback, and classify a sample picture."""
    from afd_serve.servers import triton_quickstart
    from afd_serve.servers.triton import TritonPorts

    ports = TritonPorts(port, grpc_port, metrics_port)
    server = triton_quickstart.serve_triton(model, state_dir, mode=mode, python=python, ports=ports, workers=workers)
    typer.echo(triton_quickstart.show(server))


@app.command()
def stop(state_dir: StateDirOption = _DEFAULT_STATE) -> None:
    """Stop the server that `serve` started."""
    from afd_serve.servers import torchserve, triton

    # Each knows its own state files only.
    stopped = torchserve.stop(state_dir) or triton.stop(state_dir)
    typer.echo("stopped" if stopped else "nothing runs")


@app.command()
def doctor() -> None:
    """Tell what is installed, what is missing, and what to do about it."""
    from afd_serve.doctor import examine

    healthy = True
    for check in examine():
        mark = "ok" if check.ok else "missing"
        typer.echo(f"{mark:8}{check.name:22}{check.detail}")
        healthy = healthy and (check.ok or not check.required)
    if not healthy:
        raise typer.Exit(_FAILED)


@contextmanager
def _resumable(out: Path, message: str) -> Iterator[None]:
    """Work that goes on in a folder, for one process at a time.

    Ctrl-C, or the SIGTERM of whoever stops a container, ends it with one line and a status of its own.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _alone_in(out):
            yield
    except KeyboardInterrupt:
        typer.echo(message, err=True)
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(f"another run is at work in {folder}; wait for it or choose another folder") from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _task(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields what is told how much of how much is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _print_result(path: Path, result: "Prediction | Failure") -> None:
    from afd_serve.classification import show
    from afd_serve.results import Failure

    if isinstance(result, Failure):
        typer.echo(f"{path}: {result.code}: {result.reason}", err=True)
    else:
        typer.echo(show(path, result))
