"""Work that is done together, a moment later, instead of piece by piece."""

import threading
from collections.abc import Callable
from typing import Final

__all__ = ["Later"]

_EVERY: Final = 0.5
"""Seconds."""


class Later:
    """Runs an action in a thread of its own, half a second after somebody has asked for it.

    Args:
        action: What to run; who asks meanwhile is served by the same run.
    """

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self._asked, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Let the action run within half a second."""
        self._asked.set()

    def close(self) -> None:
        """Run the action once more, at once, and for the last time."""
        self._closed.set()
        self._asked.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._asked.wait()
            self._closed.wait(_EVERY)
            self._asked.clear()
            self._action()
