"""Work that is done together, a moment later, instead of piece by piece."""

import logging
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["Later"]

_log = logging.getLogger(__name__)

_EVERY: Final = 0.5
"""Seconds."""


class Later:
    """Runs an action in a thread of its own, half a second after somebody has asked for it.

    An action that fails is logged, and runs again when it is asked for again.

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
        """Run the action once more, at once or right after a run that is under way, and for the last time."""
        self._closed.set()
        self._asked.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            self._asked.wait()
            self._closed.wait(_EVERY)
            self._asked.clear()
            last = self._closed.is_set()  # who closes after this has asked after the line above: there is one more run
            try:
                self._action()
            except Exception:
                _log.exception("what was left for later failed")
