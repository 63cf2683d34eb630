"""The command line: one module for each kind of command.

Modules that import torch are imported by the commands that need them: ``--help`` stays quick.
"""

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from afd_serve import __version__
from afd_serve.cli import fitting, pictures, serving
from afd_serve.cli.options import BAD_INPUT, FAILED
from afd_serve.errors import AfdError, InputError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Keep a frozen image classifier accurate on heavily compressed JPEGs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for commands in (pictures.app, fitting.app, serving.app):
    app.add_typer(commands)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error is one line on stderr and an exit status, never a traceback.

    Args:
        arguments: what follows the program's name; of this process where left out.

    Raises:
        SystemExit: always; 0 done, 1 a picture cannot be used, 2 anything else, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files, and labels, may be more than it can write
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=arguments)
    except AfdError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(BAD_INPUT if isinstance(error, InputError) else FAILED)
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(FAILED)


@app.callback(invoke_without_command=True)
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
