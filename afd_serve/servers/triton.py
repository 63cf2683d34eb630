"""Start, question and stop a Triton of our own, apart from any other on the machine.

What runs in the background is a supervisor (`afd_serve.servers.triton_supervisor`), which keeps ``tritonserver`` alive:
a Python process of the server that dies is not replaced by the server itself, which goes on to call itself ready. So
nothing here believes in readiness: the only proof is a picture that was classified.

Everything that the server writes lies in its state directory: settings, logs, links, and ``server.json``, which tells
later calls what runs. Its shared memory is the exception; `stop` removes what a killed server left there.
"""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from afd_serve.errors import ServingError
from afd_serve.sample import PROBE_ID, sample_picture
from afd_serve.servers.folders import PRIVATE_UMASK, make_private, make_state_dir
from afd_serve.servers.http import ask
from afd_serve.servers.ports import TritonPorts, check_ports
from afd_serve.servers.processes import kill_marked, read_log
from afd_serve.servers.state import BackgroundServer
from afd_serve.servers.triton_environment import SHARED_MEMORY, find_environment, link_backend
from afd_serve.triton_protocol import ENSEMBLE, OK, PICTURE, STATUS

__all__ = ["Triton", "TritonPorts", "check_paths", "probe", "start"]

_PREFIX: Final = "afd_triton_"

_PLAIN: Final = re.compile(r"[A-Za-z0-9_@%+=:,./~#^-]+")
"""Paths that a shell takes as they are."""


@dataclass(frozen=True, kw_only=True)
class Triton(BackgroundServer):
    """A server and its supervisor, which is its first process.

    Attributes:
        repository: The model repository.
        python: The Python in whose environment it runs.
        prefix: What the names of its shared memory regions begin with. It is also on the command lines of supervisor,
            server and Python processes.
        ports: Where it listens.
        shared_memory: Whether clients may use shared memory.
    """

    repository: Path
    python: Path
    prefix: str
    ports: TritonPorts
    shared_memory: bool = False

    @property
    def url(self) -> str:
        """Where HTTP is spoken."""
        return f"http://127.0.0.1:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Where gRPC is spoken."""
        return f"grpc://127.0.0.1:{self.ports.grpc}"

    @property
    def log(self) -> Path:
        """What the server and its supervisor say."""
        return self.state_dir / "logs" / "triton.log"

    @property
    def ready_file(self) -> Path:
        """A file that is there while the supervisor holds the server for well."""
        return self.state_dir / "ready"

    @property
    def mark(self) -> str:
        """Its prefix."""
        return self.prefix

    @property
    def files(self) -> tuple[Path, ...]:
        """What says that it is well."""
        return (self.ready_file,)

    def clean_up(self) -> None:
        """End and remove what a killed server leaves: Python processes that wait for it for ever, and shared memory.

        A supervisor that is not the caller ends too.
        """
        if re.fullmatch(rf"{_PREFIX}[0-9a-f]{{12}}_", self.prefix):
            kill_marked(self.prefix)
            for path in SHARED_MEMORY.glob(f"{self.prefix}*"):
                path.unlink(missing_ok=True)

    def hide_memory(self) -> None:
        """Keep its shared memory, through which the pictures go, from other accounts.

        The library that makes it lets everyone read it, whatever the umask.
        """
        for path in SHARED_MEMORY.glob(f"{self.prefix}*"):
            with suppress(FileNotFoundError):  # one that ends right now
                path.chmod(0o600)

    def metrics(self) -> str:
        """The text of the metrics port.

        Raises:
            ServingError: The server cannot be reached.
        """
        return _ask(f"http://127.0.0.1:{self.ports.metrics}/metrics", None, {}, 10).decode()


def start(
    repository: Path,
    state_dir: Path,
    *,
    python: Path | None = None,
    fingerprint: str = "",
    ports: TritonPorts | None = None,
    shared_memory: bool = False,
    timeout: float = 120,
    takes_over: bool = False,
) -> Triton:
    """Start a server for a model repository and wait until it has classified a picture.

    Args:
        repository: What `afd_serve.packaging.triton.package_triton` built.
        state_dir: A folder of the server's own; made, for this account alone, when missing.
        python: A Python whose environment has ``nvidia-pytriton``; the running one where left out.
        fingerprint: Kept with the server, so that a later call can tell whether it is still the right one.
        ports: Where to listen.
        shared_memory: Whether clients may use shared memory, which every account that reaches a port then can abuse:
            see `server_command`.
        timeout: Seconds until the start counts as failed.
        takes_over: Whether a server that runs in ``state_dir`` is stopped, once the environment is known to be complete
            and the ports to be free.

    Raises:
        DependencyError: The environment lacks something.
        ServingError: A server runs in ``state_dir`` that is not to be stopped, a port is taken, Triton cannot work in a
            folder of this name, or no answer came; with the reason.
    """
    running = Triton.predecessor(state_dir, makes_way=takes_over)
    server = Triton(
        state_dir=state_dir.resolve(),
        repository=repository.resolve(),
        python=python or Path(sys.executable),
        fingerprint=fingerprint,
        prefix=f"{_PREFIX}{uuid.uuid4().hex[:12]}_",
        ports=ports or TritonPorts(),
        shared_memory=shared_memory,
    )
    check_paths(server.state_dir, server.repository)
    environment = find_environment(server.python)
    check_ports(server.ports, held=running.ports if running is not None else None)
    make_state_dir(state_dir)
    Triton.stop(state_dir)
    shutil.rmtree(server.log.parent, ignore_errors=True)
    make_private(server.log.parent)
    link_backend(environment, server.state_dir / "backends")
    server.save()
    try:
        server = _launch(server)
        _wait(server, time.monotonic() + timeout)
    except BaseException:
        server.end()
        raise
    return server


def probe(server: Triton, timeout: float) -> str | None:
    """Let the server classify the sample picture; None if it did, or else what it said instead."""
    picture = len(sample_picture()).to_bytes(4, "little") + sample_picture()
    header = json.dumps(
        {
            "id": PROBE_ID,
            "inputs": [
                {
                    "name": PICTURE,
                    "shape": [1, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(picture)},
                }
            ],
            "outputs": [{"name": STATUS, "parameters": {"binary_data": False}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    try:
        text = _ask(f"{server.url}/v2/models/{ENSEMBLE}/infer", header + picture, headers, timeout)
        status = json.loads(text)["outputs"][0]["data"]
    except (ServingError, ValueError, LookupError) as error:
        return str(error)
    return None if status == [OK] else f"the sample picture got the status {status}"


def check_paths(*folders: Path) -> None:
    """Triton starts its Python processes through a shell, without quotes, and they encode paths in ASCII.

    Raises:
        ServingError: It cannot work in one of these folders.
    """
    for folder in folders:
        if not _PLAIN.fullmatch(str(folder)):
            raise ServingError(
                f"Triton cannot work in {folder}: its Python processes take no spaces, no quotes and only ASCII "
                "characters in a path; choose another --state-dir"
            )


def _launch(server: Triton) -> Triton:
    command = [sys.executable, "-P", "-m", "afd_serve.servers.triton_supervisor", str(server.state_dir), server.prefix]
    with server.log.open("ab") as log:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            umask=PRIVATE_UMASK,
            check=False,
        )
    try:
        return server.launched(int(done.stdout))
    except (ValueError, ServingError) as error:
        raise ServingError(f"the supervisor ended at once; {_log_tail(server)}") from error


def _wait(server: Triton, deadline: float) -> None:
    while time.monotonic() < deadline:
        if not server.alive():
            raise ServingError(f"Triton ended while it started; {_log_tail(server)}")
        if server.ready_file.is_file():
            return
        time.sleep(0.05)
    raise ServingError(f"Triton gave no answer in time; {_log_tail(server)}")


def _log_tail(server: Triton) -> str:
    """What the log says: its errors, or else its end."""
    lines = read_log(server.state_dir, server.log.name).splitlines()
    errors = [line for line in lines if line.startswith("E") and "CUDA" not in line and "Cuda" not in line]
    return f"{server.log} says:\n" + "\n".join((errors or lines)[-30:])


def _ask(url: str, body: bytes | None, headers: dict[str, str], timeout: float) -> bytes:
    answer = ask(urllib.request.Request(url, data=body, headers=headers), timeout)
    if answer.status >= 400:
        raise ServingError(f"{url} answered {answer.status}: {answer.body.decode(errors='replace')}")
    return answer.body
