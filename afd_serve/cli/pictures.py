# ruff: noqa: PLC0415
"""Commands about single pictures: what is in them, and what they show."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from afd_serve.cli.options import BAD_INPUT, DEFAULT_MODEL, OptionalModelOption
from afd_serve.errors import ConfigError
from afd_serve.mode import Mode
from afd_serve.runs import write_atomically

if TYPE_CHECKING:
    from afd_serve.results import Failure, Prediction

__all__ = ["app"]

app = typer.Typer()

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


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
    model: OptionalModelOption = None,
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
        typer.Option(help="A Triton or TorchServe, whose model answers: grpc, grpcs, http or https://HOST:PORT."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name on the server; else the usual one.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="AFD_SERVE_TOKEN", help="The key for inference, of TorchServe or of a proxy.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(envvar="AFD_SERVE_CA", help="In TLS, certificates (PEM) that vouch for the server.")
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Draw where the picture has drifted, as a PNG.", dir_okay=False)
    ] = None,
) -> None:
    """Classify pictures here, or on a server."""
    from afd_serve import classification
    from afd_serve.request import MAX_PICTURES, Options
    from afd_serve.results import Failure

    mode = _chosen_mode(mode, afd)
    if explain:
        _check_explain(explain, pictures, mode)
    options = Options(mode, top_k, crop)
    _check_where(model, server, name)
    chosen: classification.Model = (
        classification.There(server, name, token, ca) if server else classification.Here(model or DEFAULT_MODEL)
    )
    if explain:
        chosen.check_draws()
    failed, answers = False, []
    # As many at a time as one request carries: answers appear as they come, memory stays as it is, and a server's
    # deadline is for so many, however many there are.
    for start in range(0, len(pictures), MAX_PICTURES):
        some = pictures[start : start + MAX_PICTURES]
        contents = [path.read_bytes() for path in some]
        results, model_info = chosen.classify(contents, options)
        failed |= any(isinstance(result, Failure) for result in results)
        if as_json:
            answers += classification.wire_format(results, model_info)
        else:
            for path, result in zip(some, results, strict=True):
                _print_result(path, result)
    if as_json:
        _print_json(answers[0] if len(pictures) == 1 else answers)
    if explain and not failed:
        drawing, words = chosen.draw(contents[0], options)
        _write_drawing(explain, drawing)
        if not as_json:
            typer.echo(f"{words}wrote {explain}")
    if failed:
        raise typer.Exit(BAD_INPUT)


def _chosen_mode(mode: Mode | None, afd: bool | None) -> Mode | None:
    if afd is None:
        return mode
    if mode not in (None, Mode.of(afd)):
        raise ConfigError("--mode says one thing, and --afd or --no-afd another")
    return Mode.of(afd)


def _check_explain(drawing: Path, pictures: list[Path], mode: Mode | None) -> None:
    if mode not in (None, Mode.PROTECT) or len(pictures) > 1:
        raise ConfigError("--explain draws one picture, with AFD on")
    if drawing.exists() and drawing.samefile(pictures[0]):
        raise ConfigError(f"--explain would write over the picture {pictures[0]}: name another file")


def _write_drawing(path: Path, drawing: bytes) -> None:
    """In one step, unless that would put a file in the place of a link, a pipe or a device."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(drawing)
    else:
        write_atomically(path, lambda partial: partial.write_bytes(drawing))


def _check_where(model: str | None, server: str | None, name: str | None) -> None:
    """Every option that says which model answers must be about where it runs."""
    if server and model is not None:
        raise ConfigError("a server has its own models: leave out --model, or choose one of them with --name")
    if name is not None and not server:
        raise ConfigError("--name chooses among a server's models: say which server with --server, or use --model")


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _print_result(path: Path, result: "Prediction | Failure") -> None:
    from afd_serve.classification import show
    from afd_serve.results import Failure

    if isinstance(result, Failure):
        typer.echo(f"{path}: {result.code}: {result.reason}", err=True)
    else:
        typer.echo(show(path, result))
