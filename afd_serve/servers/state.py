"""A server in the background, as its state directory describes it to the calls that come later."""

import json
import os
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self, get_type_hints

from afd_serve.errors import ServingError
from afd_serve.runs import alone_in, write_text
from afd_serve.servers.processes import end, runs, started_at

__all__ = ["STATE_FILE", "BackgroundServer", "no_server"]

STATE_FILE: Final = "server.json"
_KIND: Final = "kind"
"""The key under which ``server.json`` has the name of the server's class."""


@dataclass(frozen=True, kw_only=True)
class BackgroundServer(ABC):
    """What ``server.json`` says.

    Attributes:
        state_dir: Where the server's files lie.
        fingerprint: What it was started from, in the words of whoever started it.
        pid: The process that all its others come from; 0 until there is one.
        started: Since when that process runs: a process id alone may belong to another process by now.
    """

    state_dir: Path
    fingerprint: str = ""
    pid: int = 0
    started: str = ""

    @property
    @abstractmethod
    def mark(self) -> str:
        """What tells this server from every other, those before it in the same directory as well."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """What lies in the state directory only as long as the server runs."""

    @abstractmethod
    def clean_up(self) -> None:
        """End and remove what a killed server leaves elsewhere, and never another's, whatever ``server.json`` says."""

    @classmethod
    def load(cls, state_dir: Path) -> Self | None:
        """The server that was started last in a state directory; it may have ended since."""
        values = _described(state_dir)
        if not values or values.pop(_KIND, cls.__name__) != cls.__name__:
            return None
        try:
            kinds = get_type_hints(cls)
            # Other versions say more of a server; what they say as we do is enough to stop it.
            restored = {name: _restored(kinds[name], value) for name, value in values.items() if name in kinds}
            return cls(**restored | {"state_dir": state_dir.resolve()})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    @classmethod
    def find(cls, state_dir: Path) -> Self | None:
        """The server that runs in a state directory, if one does."""
        server = cls.load(state_dir)
        return server if server is not None and server.alive() else None

    @classmethod
    def stop(cls, state_dir: Path, timeout: float = 30) -> bool:
        """Stop the server of a state directory with all its processes; False when none runs."""
        server = cls.load(state_dir)
        return server is not None and server.end(timeout)

    @classmethod
    def predecessor(cls, state_dir: Path, *, makes_way: bool) -> Self | None:
        """The server that runs where another one is to start.

        Args:
            state_dir: Of both.
            makes_way: Whether it may be stopped, which is left to the caller. What is left of one that has ended is
                removed in any case: it may hold the ports.

        Raises:
            ServingError: One runs that is not to be stopped, or the directory is that of a server of another kind or
                of one that cannot be told, which nobody could stop any more.
        """
        cls._check_kind(state_dir)
        running = cls.find(state_dir)
        if running is None:
            cls.stop(state_dir)
        elif not makes_way:
            raise ServingError(f"a server already runs in {state_dir}; stop it first")
        return running

    @classmethod
    def _check_kind(cls, state_dir: Path) -> None:
        kind = _described(state_dir).get(_KIND, cls.__name__)
        if kind != cls.__name__:
            raise ServingError(
                f"{state_dir} is the folder of a {kind}; stop that first (afd-serve stop --state-dir {state_dir}), or "
                "choose another folder"
            )
        if (state_dir / STATE_FILE).exists() and cls.load(state_dir) is None:
            raise no_server(state_dir)

    def alive(self) -> bool:
        """Whether the server's first process still runs."""
        return runs(self.pid, self.started)

    def save(self) -> None:
        """Write ``server.json``."""
        values = {_KIND: type(self).__name__} | asdict(self)
        write_text(self.state_dir / STATE_FILE, json.dumps(values, indent=2, default=str))

    def launched(self, pid: int) -> Self:
        """The same server once its process is known, saved.

        Raises:
            ServingError: The process has ended already.
        """
        server = replace(self, pid=pid, started=started_at(pid))
        server.save()
        return server

    def stay(self) -> None:
        """Return once this server has been stopped, or another has taken its place.

        Raises:
            ServingError: It ended of itself, or was killed; what it left is removed.
        """
        while self.alive():
            time.sleep(0.5)
        with alone_in(self.state_dir, wait=True):  # whoever stops it holds the folder until all is removed
            if self._is_last():
                self.end()
                raise ServingError(f"the server has ended of itself; its logs lie in {self.state_dir / 'logs'}")

    def end(self, timeout: float = 30) -> bool:
        """Stop this server and remove its files, not those of one that took its place; False where it had ended.

        Raises:
            ServingError: It is another user's, or it has ended and one of its files cannot be removed.
        """
        running = self.alive()
        if running:
            end(self.pid, timeout)
        self.clean_up()
        if self._is_last():
            for path in (*self.files, self.state_dir / STATE_FILE):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise ServingError(f"the server has ended, but its files could not be removed: {error}") from error
        return running

    def _is_last(self) -> bool:
        """Whether ``server.json`` is still about this server."""
        last = self.load(self.state_dir)
        return last is not None and last.mark == self.mark


def no_server(state_dir: Path) -> ServingError:
    """What to say where a state directory does not tell of a server."""
    path = state_dir / STATE_FILE
    if path.exists() and not os.access(path, os.R_OK):
        return ServingError(f"{path} may not be read by this account: its server is another's")
    if path.exists():
        return ServingError(
            f"{path} cannot be read, as where another version wrote it: stop the server with that version, or end its "
            "processes yourself and delete that file"
        )
    return ServingError(f"no server runs in {state_dir}; `afd-serve serve` starts one")


def _described(state_dir: Path) -> dict[str, Any]:
    """The values of ``server.json``; none where it is missing or damaged."""
    try:
        return dict(json.loads((state_dir / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return {}


def _restored(kind: Any, value: Any) -> Any:
    """A value of ``server.json`` as its field's type has it."""
    if kind is Path:
        return Path(value)
    return kind(**value) if isinstance(value, dict) else value
