"""Commands that take long end in one line when they are interrupted."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from afd_serve.cli.options import INTERRUPTED

__all__ = ["interruptible"]


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Ctrl-C, or the SIGTERM of whoever stops a container, ends the work with one line and a status of its own.

    So does the end of a process that loads pictures: systemd signals all of a service's, and memory may run out.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(message, err=True)
        raise typer.Exit(INTERRUPTED) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        typer.echo(f"{message} ({str(error).strip()})", err=True)
        raise typer.Exit(INTERRUPTED) from error
    finally:
        signal.signal(signal.SIGTERM, before)
