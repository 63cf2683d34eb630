"""Start, question and stop a TorchServe of our own, apart from any other on the machine.

Everything that a server writes lies in its state directory: settings, logs, token keys, the model store and
``server.json``, which tells later calls what runs. TorchServe's sockets are the exception: their paths may have about
100 characters, so they lie in a short temporary folder that `stop` removes.
"""

import json
import os
import re
import shutil
import stat
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from afd_serve.errors import ServingError
from afd_serve.runs import write_atomically
from afd_serve.servers.http import Answer, ask
from afd_serve.servers.java import find_java
from afd_serve.servers.launch import (
    Ports,
    check_installed,
    launch,
    log_tail,
    short_temporary_folder,
    write_settings,
)
from afd_serve.servers.processes import check_ports, end, kill_marked, read_log, runs, started_at

__all__ = ["Answer", "Ports", "TorchServe", "find", "start", "stop"]

_STATE: Final = "server.json"
_SCRATCH: Final = "afd-ts-"
_DIED: Final = "Backend worker process died"


@dataclass(frozen=True)
class TorchServe:
    """A running server, as ``server.json`` describes it.

    Attributes:
        state_dir: Where its files lie.
        model: The name of the model that it serves.
        fingerprint: What it was started from, in the words of the caller of `start`.
        scratch: The folder of its sockets and unpacked models, which all its processes have on their command lines.
        ports: Where it listens.
        pid: The frontend's process.
        started: Since when that process runs: a process id alone may belong to another process by now.
    """

    state_dir: Path
    model: str
    fingerprint: str
    scratch: Path
    ports: Ports = field(default_factory=Ports)
    pid: int = 0
    started: str = ""

    @property
    def url(self) -> str:
        """Where predictions are asked for."""
        return self._url("predictions")

    def _url(self, route: str) -> str:
        return f"http://127.0.0.1:{self.ports.inference}/{route}/{self.model}"

    @property
    def header_file(self) -> Path:
        """A file with the header that authorizes inference: ``curl -H @FILE``."""
        return self.state_dir / "inference.header"

    def token(self, kind: str = "inference") -> str:
        """The key for ``inference`` or ``management`` calls.

        Raises:
            ServingError: The server has written no keys.
        """
        try:
            return str(json.loads((self.state_dir / "key_file.json").read_text())[kind]["key"])
        except (OSError, ValueError, KeyError) as error:
            raise ServingError(f"the server has no {kind} token in {self.state_dir}: {error}") from error

    def alive(self) -> bool:
        """Whether the frontend's process still runs."""
        return runs(self.pid, self.started)

    def post(
        self,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        route: Literal["predictions", "explanations"] = "predictions",
        timeout: float = 60,
    ) -> Answer:
        """Ask for a prediction or an explanation.

        Args:
            body: An encoded picture, or whatever ``headers`` say that it is.
            headers: Content type and options.
            route: What to ask for.
            timeout: Seconds to wait.

        Raises:
            ServingError: The server cannot be reached.
        """
        own = {"Authorization": f"Bearer {self.token()}", "Content-Type": "application/octet-stream"}
        return ask(urllib.request.Request(self._url(route), data=body, headers=own | dict(headers or {})), timeout)

    def get(self, kind: str, path: str, *, timeout: float = 60) -> Answer:
        """Read from the ``inference``, ``management`` or ``metrics`` address.

        Raises:
            ServingError: The server cannot be reached.
        """
        token = self.token("management" if kind == "management" else "inference")
        url = f"http://127.0.0.1:{getattr(self.ports, kind)}{path}"
        return ask(urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"}), timeout)

    def workers(self) -> list[dict[str, Any]]:
        """The model's workers as the management API lists them (``id``, ``status``, ``pid``, ...)."""
        answer = self.get("management", f"/models/{self.model}")
        return list(answer.json()[0]["workers"]) if answer.status == 200 else []


def start(
    archive: Path,
    state_dir: Path,
    *,
    probe: bytes,
    fingerprint: str = "",
    ports: Ports | None = None,
    workers: int = 0,
    timeout: float = 180,
    takes_over: bool = False,
) -> TorchServe:
    """Start a server for one archive and wait until it has answered a real request.

    Args:
        archive: What `afd_serve.packaging.torchserve.package_torchserve` built.
        state_dir: A folder of the server's own; made when missing.
        probe: An encoded picture: workers that call themselves ready may still fail on the first one.
        fingerprint: Kept with the server, so that a later call can tell whether it is still the right one.
        ports: Where to listen.
        workers: How many worker processes; 0 stands for one per core.
        timeout: Seconds until the start counts as failed.
        takes_over: Whether a server that runs in ``state_dir`` is stopped, once TorchServe and Java are found and the
            ports are free.

    Raises:
        DependencyError: Java or TorchServe is missing.
        ServingError: A server runs in ``state_dir`` that is not to be stopped, a port is taken, or no answer came; with
            the reason.
    """
    running = find(state_dir)
    if running is not None and not takes_over:
        raise ServingError(f"a server already runs in {state_dir}; stop it first")
    if running is None:
        stop(state_dir)  # what is left of one whose start was cut short may hold the ports
    check_installed()
    java = find_java().path
    ports = ports or Ports()
    check_ports(ports, held=running.ports if running is not None else None)
    stop(state_dir)
    state_dir = state_dir.resolve()
    for name in ("logs", "workflow_store"):  # a workflow's archive is code, and the settings cannot forbid its API
        _remove(state_dir / name)
    for name in ("model_store", "workflow_store", "logs"):
        (state_dir / name).mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=short_temporary_folder()))
    server = TorchServe(state_dir, archive.stem, fingerprint, scratch, ports)
    try:
        write_settings(archive, state_dir, ports, workers)
        _save(server)  # before there is a process that nobody but this one would know of
        pid = launch(archive, state_dir, scratch, java)
        server = replace(server, pid=pid, started=started_at(pid))
        _save(server)
        _wait(server, probe, time.monotonic() + timeout)
    except BaseException:
        _end(server, state_dir, timeout=30)
        raise
    return server


def _save(server: TorchServe) -> None:
    text = json.dumps(asdict(server), indent=2, default=str)
    write_atomically(server.state_dir / _STATE, lambda path: path.write_text(text))


def find(state_dir: Path) -> TorchServe | None:
    """The server that runs in a state directory, if one does."""
    server = _last(state_dir)
    return server if server is not None and server.alive() else None


def _last(state_dir: Path) -> TorchServe | None:
    """The server that was started last in a state directory; it may have ended since."""
    try:
        values = json.loads((state_dir / _STATE).read_text())
        return TorchServe(
            **values
            | {
                "state_dir": Path(values["state_dir"]),
                "scratch": Path(values["scratch"]),
                "ports": Ports(**values["ports"]),
            }
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def stop(state_dir: Path, *, timeout: float = 30) -> bool:
    """Stop the server of a state directory with all its workers; False when none runs."""
    server = _last(state_dir)
    return server is not None and _end(server, state_dir, timeout)


def _end(server: TorchServe, state_dir: Path, timeout: float) -> bool:
    """Stop one server and remove its files, not those of one that took its place; False where it had ended."""
    running = server.alive()
    if running:
        end(server.pid, timeout)
    if re.fullmatch(rf"{_SCRATCH}\w+", server.scratch.name):  # never another one, whatever the state file says
        kill_marked(server.scratch.name)  # a frontend may run whose id nobody got to know
        shutil.rmtree(server.scratch, ignore_errors=True)
    last = _last(state_dir)
    if last is not None and last.scratch == server.scratch:
        for name in (_STATE, "key_file.json", server.header_file.name):
            _remove(state_dir / name)
    return running


def _wait(server: TorchServe, probe: bytes, deadline: float) -> None:
    reason = "no answer yet"
    while time.monotonic() < deadline:
        if not server.alive():
            raise ServingError(f"TorchServe ended while it started; {log_tail(server.state_dir)}")
        if _DIED in read_log(server.state_dir):
            _wait_for_quiet(server.state_dir)
            raise ServingError(f"a worker died while it started; {log_tail(server.state_dir)}")
        try:
            if _ready(server):
                answer = server.post(probe)
                if answer.status == 200:
                    _write_header(server)
                    _keep_from_cleaning(server.scratch)
                    return
                reason = answer.body.decode(errors="replace")
        except ServingError as error:
            reason = str(error)
        time.sleep(0.2)
    raise ServingError(f"TorchServe gave no answer in time ({reason}); {log_tail(server.state_dir)}")


def _keep_from_cleaning(folder: Path) -> None:
    """Give files the sticky bit: systemd-tmpfiles removes from /tmp what nobody reads for days, but none that have it.

    A worker that is replaced after weeks needs the unpacked model again.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | stat.S_ISVTX)


def _wait_for_quiet(state_dir: Path) -> None:
    """Let a worker's traceback arrive: the frontend copies it into the log line by line."""
    before = None
    deadline = time.monotonic() + 10
    while (text := read_log(state_dir)) != before and time.monotonic() < deadline:
        before = text
        time.sleep(1)


def _ready(server: TorchServe) -> bool:
    workers = server.workers()
    return bool(workers) and all(worker["status"] == "READY" for worker in workers)


def _write_header(server: TorchServe) -> None:
    descriptor = os.open(server.header_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"Authorization: Bearer {server.token()}\n")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
