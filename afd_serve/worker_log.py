"""Log lines that reach whoever reads them together, a moment later.

TorchServe's frontend reads what its workers print. A line wakes it up on a core that is at work on a picture, and every
batch prints two: one by one they cost three per cent of all CPU time.
"""

import logging
from logging.handlers import MemoryHandler
from typing import Final, TextIO

from afd_serve.later import Later

__all__ = ["hold_back"]

_MOST: Final = 1000
"""Lines."""


def hold_back(logger: logging.Logger, stream: TextIO) -> None:
    """Let a logger's lines wait, up to half a second, before they are written to a stream.

    A warning, or whatever is worse, does not wait, and neither do the lines before it. A process that is killed takes
    with it what waits.
    """
    for handler in logger.handlers[:]:
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            logger.removeHandler(handler)
            logger.addHandler(_Patient(handler))


class _Patient(MemoryHandler):
    """Keeps records until a thread of its own, a warning or their number passes them on."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__(_MOST, logging.WARNING, target)
        self._later = Later(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self._later.ask()
