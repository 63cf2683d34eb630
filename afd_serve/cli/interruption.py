"""Commands that take long end in one line when they are interrupted."""

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

import typer

from afd_serve.cli.options import INTERRUPTED

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["hold_signals", "interruptible", "release_signals", "signals_interrupt"]

_LOADER_ENDED: Final = re.compile(r"DataLoader worker \(pid")
"""How PyTorch begins to say that a process of a loader has ended; what such a process raised comes in other words."""

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Ctrl-C, a terminal that is closed, or the SIGTERM of whoever stops a container, ends the work with one line.

    The status is one of its own. So it is at the end of a process that loads pictures: systemd signals all of a
    service's, and memory may run out. Under nohup, which ignores a closed terminal, the work goes on.
    """
    try:
        with signals_interrupt():
            yield
    except KeyboardInterrupt:
        typer.echo(message, err=True)
        raise typer.Exit(INTERRUPTED) from None
    except RuntimeError as error:
        if not _LOADER_ENDED.match(str(error)):
            raise
        typer.echo(f"{message} ({str(error).strip()})", err=True)
        raise typer.Exit(INTERRUPTED) from error


def hold_signals() -> None:
    """Let what tells this process to end wait until `release_signals`, also in a program that takes its place.

    Where other threads run, one of them may take the signal: then it interrupts this one at once, as without this.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDING, signal.SIGINT))


def release_signals() -> None:
    """Let through what `hold_signals` held back, and what comes from now on."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_ENDING, signal.SIGINT))


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """`_ENDING` raise KeyboardInterrupt, once: a closed terminal says it twice, and then there is work to save."""
    ending, main_thread = False, threading.get_ident()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        if not ending:
            ending = True
            raise KeyboardInterrupt

    def dropped(found: "UnraisableHookArgs") -> None:
        # Python passes on no exception of the callbacks around a fork, as of a loader's start, nor of a destructor.
        nonlocal ending
        if found.exc_type is not KeyboardInterrupt:
            before_hook(found)
            return
        ending = False
        threading.Timer(0.1, interrupt_again).start()

    def interrupt_again() -> None:
        # Sent to the thread itself, which may be waiting for something.
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.pthread_kill(main_thread, signal.SIGTERM)

    before_hook, sys.unraisablehook = sys.unraisablehook, dropped
    # What is ignored stays so, and what Python did not install (None) it could not restore.
    handlers = {number: signal.getsignal(number) for number in _ENDING}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        sys.unraisablehook = before_hook
        for number, handler in before.items():
            signal.signal(number, handler)
