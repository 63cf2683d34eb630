"""What ``tritonserver`` needs around it: a Python environment of its own, a backend folder, settings on loopback.

The wheel ``nvidia-pytriton`` carries the server and, for each Python, a stub: the process in which a Python model runs.
The server looks for shared library, stub and module in one folder, which links in the state directory make. The stub
embeds Python and finds its packages through the first ``python3`` on PATH; PYTHONPATH means nothing to it.
"""

import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from afd_serve.errors import DependencyError
from afd_serve.servers.ports import TritonPorts

__all__ = [
    "SHARED_MEMORY",
    "NoServerError",
    "TritonEnvironment",
    "find_environment",
    "link_backend",
    "server_command",
]

SHARED_MEMORY: Final = Path("/dev/shm")

_CLOSED: Final = ("model-repository", "logging", "trace")
"""What would make the server write files or load models while it runs."""

_NOBODYS_WORD: Final = "\n=\n"
"""The header, and its value, that open what is closed: none that anybody could send, however well they know it.

Command lines are for everyone to read, so a secret would be none. In HTTP the end of a line is never part of a header's
name. Over gRPC any bytes can be sent; its library takes every value, but no such name.
"""

_ADVICE: Final = "make an environment for it: pip install torch==VERSION && pip install 'afd-serve[triton-server]'"
_LOOK: Final = """
import importlib.util, json, os, sys, sysconfig
def has(name): return importlib.util.find_spec(name) is not None
if has("numpy"):
    import numpy
print(json.dumps({
    "bin": os.path.dirname(sys.executable),
    "server": os.path.join(os.path.dirname(importlib.util.find_spec("pytriton").origin), "tritonserver")
        if has("pytriton") else "",
    "afd": has("afd_serve"),
    "numpy": numpy.__version__ if has("numpy") else "",
    "python": "%d.%d" % sys.version_info[:2],
    "libraries": [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")],
}))
"""

_NOT_LOADED: Final = 127
"""The status of a program whose shared libraries are not found; a stub without arguments ends with another."""


class NoServerError(DependencyError):
    """The environment lacks the server, or has a NumPy that is too new for it: another environment would do."""


@dataclass(frozen=True)
class TritonEnvironment:
    """A Python environment with the server in it.

    Attributes:
        bin: The folder of its ``python3``.
        server: The folder that ``nvidia-pytriton`` brings.
        python: Python's version, such as ``3.11``.
        library_path: Where ``libpython`` lies, if not where every program finds it.
    """

    bin: Path
    server: Path
    python: str
    library_path: str

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables for the server and its stubs."""
        # A proxy or a PYTHONPATH of the caller's means other environments.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        libraries = [self.library_path, kept.get("LD_LIBRARY_PATH", "")]
        return kept | {
            "PATH": f"{self.bin}{os.pathsep}{kept.get('PATH', '')}",
            "LD_LIBRARY_PATH": os.pathsep.join(path for path in libraries if path),
            # One thread per process, from its first import on: more threads than cores collapse under load.
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }


def find_environment(python: Path) -> TritonEnvironment:
    """Look at the environment of a Python.

    Raises:
        NoServerError: It has no server that could run in it.
        DependencyError: Something else is missing; the message says what to do.
    """
    done = _run([python, "-P", "-c", _LOOK])
    if done.returncode != 0:
        raise DependencyError(f"{python} fails: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout)
    if not found["server"]:
        raise NoServerError(f"nvidia-pytriton is not installed for {python}; {_ADVICE}")
    if not found["afd"]:
        raise DependencyError(f"afd-serve is not installed for {python}; {_ADVICE}")
    if int(found["numpy"].partition(".")[0]) >= 2:
        raise NoServerError(f"Triton's Python backend needs NumPy below 2, not {found['numpy']}; {_ADVICE}")
    environment = TritonEnvironment(Path(found["bin"]), Path(found["server"]), found["python"], "")
    if not _stub(environment).is_file():
        raise DependencyError(f"nvidia-pytriton has no stub for Python {environment.python}; use another Python")
    return _with_libraries(environment, found["libraries"])


def _with_libraries(environment: TritonEnvironment, folders: Sequence[str]) -> TritonEnvironment:
    """Whether the stub finds ``libpython`` is what it tells itself: Python's own process has its library already."""
    for folder in ("", *folders):
        candidate = dataclasses.replace(environment, library_path=folder)
        done = _run([_stub(candidate)], candidate.variables)
        if done.returncode != _NOT_LOADED:
            return candidate
    raise DependencyError(
        f"Triton's Python processes cannot start ({done.stderr.strip()[-300:]}); "
        f"on Debian: apt-get install libpython{environment.python}"
    )


def _run(command: Sequence[str | Path], variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    except OSError as error:
        raise DependencyError(f"{command[0]} cannot be started: {error}") from error


def _stub(environment: TritonEnvironment) -> Path:
    return environment.server / "python_backend_stubs" / environment.python / "triton_python_backend_stub"


def link_backend(environment: TritonEnvironment, folder: Path) -> Path:
    """Make the backend folder of links; returns what the server takes as ``--backend-directory``."""
    backend = folder / "python"
    backend.mkdir(parents=True, exist_ok=True)
    provided = environment.server / "backends" / "python"
    for target in (provided / "libtriton_python.so", provided / "triton_python_backend_utils.py", _stub(environment)):
        (backend / target.name).unlink(missing_ok=True)
        (backend / target.name).symlink_to(target)
    return folder


def server_command(
    environment: TritonEnvironment,
    repository: Path,
    backends: Path,
    ports: TritonPorts,
    prefix: str,
    *,
    shared_memory: bool = False,
) -> list[str]:
    """The server's command line.

    Args:
        environment: Where the server is.
        repository: The model repository.
        backends: What `link_backend` made.
        ports: Where to listen.
        prefix: What the names of its shared memory regions begin with.
        shared_memory: Whether clients may name shared memory for the server to read and write. It asks nobody whose
            that is: whoever reaches a port can let it write into its own, which its Python processes work with.
    """
    closed = ",".join(_CLOSED if shared_memory else (*_CLOSED, "shared-memory")) + f":{_NOBODYS_WORD}"
    options = {
        "model-repository": repository,
        "backend-directory": backends,
        "http-address": "127.0.0.1",
        "http-port": ports.http,
        "grpc-address": "127.0.0.1",
        "grpc-port": ports.grpc,
        "metrics-address": "127.0.0.1",
        "metrics-port": ports.metrics,
        "model-control-mode": "none",
        "http-restricted-api": closed,
        "grpc-restricted-protocol": closed,
        # The options of a request may come as headers, as they do on TorchServe.
        "http-header-forward-pattern": "(?i)(afd|crop|top[_-]k)",
        "grpc-header-forward-pattern": "(?i)(afd|crop|top[_-]k)",
        "backend-config": f"python,shm-region-prefix-name={prefix}",
        "exit-timeout-secs": 5,
    }
    command = [str(environment.server / "bin" / "tritonserver"), "--disable-auto-complete-config"]
    return command + [f"--{name}={value}" for name, value in options.items()]
