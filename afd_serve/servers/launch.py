"""The processes behind a server of our own: what TorchServe needs to start, starting it, and seeing it end."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from afd_serve.errors import DependencyError, ServingError
from afd_serve.packaging.handlers import handlers_dir
from afd_serve.packaging.seal import check_archive
from afd_serve.runs import write_atomically
from afd_serve.servers.allocator import preloaded
from afd_serve.servers.folders import PRIVATE_UMASK, make_private
from afd_serve.servers.ports import Ports
from afd_serve.servers.processes import read_log

__all__ = [
    "check_installed",
    "launch",
    "log_tail",
    "short_temporary_folder",
    "store_archive",
    "write_settings",
]


_LOG_SETTINGS: Final = "log4j2.xml"


def short_temporary_folder() -> str:
    """The usual temporary folder, or /tmp where the usual one's path would be too long for a socket's."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= 40 else "/tmp"


def store_archive(archive: Path, state_dir: Path, *, sealed: bool) -> None:
    """Copy an archive to where a server loads it from; one that runs has unpacked its own.

    Raises:
        CheckpointError: It is to be ``sealed`` and is not as it was packaged, or its handler is another one; what was
            there stays.
        ServingError: It cannot be written.
    """

    def write(partial: Path) -> None:
        shutil.copyfile(archive, partial)
        if sealed:
            check_archive(partial)  # the copy, which nobody changes any more

    target = state_dir / "model_store" / archive.name
    try:
        make_private(target.parent)
        write_atomically(target, write)
    except OSError as error:
        raise ServingError(f"the archive cannot be copied to {target.parent}: {error}") from error


def write_settings(state_dir: Path, ports: Ports, workers: int) -> None:
    """Write ``config.properties`` and its companions for one server into its state directory."""
    own = {
        "inference_address": f"http://127.0.0.1:{ports.inference}",
        "management_address": f"http://127.0.0.1:{ports.management}",
        "metrics_address": f"http://127.0.0.1:{ports.metrics}",
        "grpc_inference_port": ports.grpc_inference,
        "grpc_management_port": ports.grpc_management,
        "default_workers_per_model": workers,
        "metrics_config": state_dir / "metrics.yaml",
    }
    for name in ("metrics.yaml", _LOG_SETTINGS, "logging.properties"):
        shutil.copyfile(handlers_dir() / name, state_dir / name)
    template = (handlers_dir() / "config.properties").read_text().splitlines()
    kept = [line for line in template if line.partition("=")[0] not in own]
    text = "\n".join([*kept, *(f"{name}={_escaped(str(value))}" for name, value in own.items())]) + "\n"
    (state_dir / "config.properties").write_text(text)


def _escaped(value: str) -> str:
    """A value as Java reads it, which takes these files for Latin-1: its escapes are those of JSON."""
    return json.dumps(value)[1:-1]


def check_installed() -> None:
    """Make sure that TorchServe can be started.

    Raises:
        DependencyError: It is not installed.
    """
    if importlib.util.find_spec("ts") is None:
        raise DependencyError("TorchServe is not installed: pip install 'afd-serve[torchserve]'")


def launch(archive: Path, state_dir: Path, scratch: Path, java: Path) -> int:
    """Start the frontend detached from this process; returns its process id.

    Raises:
        ServingError: It does not start, for the reason that it gives.
    """
    # TorchServe lets variables of these names override its settings and its command line.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TS_")}
    environment |= {
        "JAVA_HOME": str(java.parent.parent),
        "TMPDIR": str(scratch),
        "TEMP": str(scratch),
        "LOG_LOCATION": str(state_dir / "logs"),
        "METRICS_LOCATION": str(state_dir / "logs"),
        "LC_ALL": "C.UTF-8",  # in C alone Java knows no folder whose name is not ASCII
        # One thread per worker, from its first import on: more threads than cores collapse under load.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        **preloaded(state_dir / "model_store" / archive.name),
    }
    command = [sys.executable, "-P", "-m", "ts.model_server", "--start", "--ncs"]
    command += ["--ts-config", str(state_dir / "config.properties")]
    command += ["--model-store", str(state_dir / "model_store"), "--workflow-store", str(state_dir / "workflow_store")]
    command += ["--models", f"{archive.stem}={archive.name}", "--log-config", str(state_dir / _LOG_SETTINGS)]
    with (state_dir / "logs" / "console.log").open("ab") as console:
        done = subprocess.run(
            command,
            cwd=state_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=PRIVATE_UMASK,
            check=False,
        )
    pid_file = scratch / ".model_server.pid"
    if done.returncode != 0 or not pid_file.is_file():
        raise ServingError(f"TorchServe did not start: {read_log(state_dir, 'console.log').strip()[-2000:]}")
    return int(pid_file.read_text())


_TRACEBACK: Final = 80
"""Lines of a log that a traceback is sure to end in, with that of an exception that was its cause."""


def log_tail(state_dir: Path) -> str:
    """What the logs say: the first traceback of a worker, or else the ends of the console and of the frontend's log."""
    # Each line carries time, level, thread and logger before the worker's own text.
    lines = [line.partition(" MODEL_LOG - ")[2] for line in read_log(state_dir).splitlines()]
    start = next((index for index, line in enumerate(lines) if line.startswith("Traceback")), None)
    if start is not None:
        said = {"model_log.log": lines[start : start + _TRACEBACK]}
    else:
        said = {name: read_log(state_dir, name).splitlines()[-30:] for name in ("console.log", "ts_log.log")}
    return "\n".join(f"{state_dir / 'logs' / name} says:\n" + "\n".join(lines) for name, lines in said.items() if lines)
