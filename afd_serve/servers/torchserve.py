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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from afd_serve.errors import ServingError
from afd_serve.sample import PROBE_ID
from afd_serve.servers.folders import make_private, make_state_dir
from afd_serve.servers.http import Answer, ask
from afd_serve.servers.java import find_java
from afd_serve.servers.launch import (
    check_installed,
    launch,
    log_tail,
    short_temporary_folder,
    store_archive,
    write_settings,
)
from afd_serve.servers.ports import Ports, check_ports
from afd_serve.servers.processes import kill_marked, read_log
from afd_serve.servers.state import BackgroundServer

__all__ = ["Answer", "Ports", "TorchServe", "start"]

_SCRATCH: Final = "afd-ts-"
_DIED: Final = "Backend worker process died"


@dataclass(frozen=True, kw_only=True)
class TorchServe(BackgroundServer):
    """A server whose first process is its frontend.

    Attributes:
        model: The name of the model that it serves.
        scratch: The folder of its sockets and unpacked models, which all its processes have on their command lines.
        ports: Where it listens.
    """

    model: str
    scratch: Path
    ports: Ports = field(default_factory=Ports)

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

    @property
    def mark(self) -> str:
        """The name of its folder of sockets."""
        return self.scratch.name

    @property
    def files(self) -> tuple[Path, ...]:
        """Its tokens."""
        return self.state_dir / "key_file.json", self.header_file

    def clean_up(self) -> None:
        """End processes that nobody got to know, and remove sockets and unpacked models."""
        if re.fullmatch(rf"{_SCRATCH}\w+", self.mark):
            kill_marked(self.mark)
            shutil.rmtree(self.scratch, ignore_errors=True)

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

    def probe(self, picture: bytes) -> Answer:
        """Ask for a prediction that the metrics leave out where the picture is the sample; errors as of `post`."""
        return self.post(picture, {"X-Request-Id": PROBE_ID})

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
    sealed: bool = True,
) -> TorchServe:
    """Start a server for one archive and wait until it has answered a real request.

    Args:
        archive: What `afd_serve.packaging.torchserve.package_torchserve` built.
        state_dir: A folder of the server's own; made, for this account alone, when missing.
        probe: An encoded picture: workers that call themselves ready may still fail on the first one.
        fingerprint: Kept with the server, so that a later call can tell whether it is still the right one.
        ports: Where to listen.
        workers: How many worker processes; 0 stands for one per core.
        timeout: Seconds until the start counts as failed.
        takes_over: Whether a server that runs in ``state_dir`` is stopped, once TorchServe and Java are found, the
            ports are free and the archive is copied.
        sealed: Whether the archive must be as it was packaged, with our handler; not so where others are compared.

    Raises:
        DependencyError: Java or TorchServe is missing.
        CheckpointError: The archive is to be sealed and is not as it was packaged, or has another handler.
        ServingError: A server runs in ``state_dir`` that is not to be stopped, a port is taken, the archive cannot be
            copied, or no answer came; with the reason.
    """
    running = TorchServe.predecessor(state_dir, makes_way=takes_over)
    check_installed()
    java = find_java().path
    ports = ports or Ports()
    check_ports(ports, held=running.ports if running is not None else None)
    make_state_dir(state_dir)
    store_archive(archive, state_dir, sealed=sealed)
    TorchServe.stop(state_dir)
    state_dir = state_dir.resolve()
    for name in ("logs", "workflow_store"):  # a workflow's archive is code, and the settings cannot forbid its API
        _remove(state_dir / name)
        make_private(state_dir / name)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=short_temporary_folder()))
    server = TorchServe(state_dir=state_dir, fingerprint=fingerprint, model=archive.stem, scratch=scratch, ports=ports)
    try:
        write_settings(state_dir, ports, workers)
        server.save()  # before there is a process that nobody but this one would know of
        server = server.launched(launch(archive, state_dir, scratch, java))
        _wait(server, probe, time.monotonic() + timeout)
    except BaseException:
        server.end()
        raise
    return server


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
                answer = server.probe(probe)
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
