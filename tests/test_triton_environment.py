"""What Triton needs of a Python environment is looked for in that environment, and what is missing is named.

The environment is this one with a server and a NumPy that are made up; its stub is a script that ends as the loader or
the real one does. `tests/serving` has the real ones.
"""

import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("psutil")

from afd_serve.errors import DependencyError
from afd_serve.servers.ports import TritonPorts
from afd_serve.servers.triton_environment import NoServerError, TritonEnvironment, find_environment, server_command

PYTHON = Path(sys.executable)
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


class Packages:
    """A folder of packages that come before the environment's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stub = folder / "pytriton/tritonserver/python_backend_stubs" / VERSION / "triton_python_backend_stub"

    def add_numpy(self, version: str) -> None:
        (self.folder / "numpy.py").write_text(f"__version__ = '{version}'")

    def add_server(self, libraries: str) -> None:
        """With a stub that finds its libraries if this is part of LD_LIBRARY_PATH."""
        self.stub.parent.mkdir(parents=True)
        (self.folder / "pytriton/__init__.py").touch()
        self.stub.write_text(
            f'#!/bin/sh\ncase ":$LD_LIBRARY_PATH:" in *"{libraries}"*) exit 1;; esac\n'
            "echo 'libpython: cannot open shared object file' >&2\nexit 127\n"
        )
        self.stub.chmod(0o755)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    made = Packages(tmp_path)
    made.add_numpy("1.26.4")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/the/callers")
    return made


def test_libraries_that_every_program_finds_need_no_path(packages: Packages) -> None:
    packages.add_server("")
    found = find_environment(PYTHON)
    assert found == TritonEnvironment(PYTHON.parent, packages.folder / "pytriton/tritonserver", VERSION, "")
    assert found.variables["LD_LIBRARY_PATH"] == "/the/callers"


@pytest.mark.parametrize("folder", [sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix, "lib"))])
def test_libraries_beside_python_are_found_there(packages: Packages, folder: str) -> None:
    """As with a Python that is no part of the system: its own process has them, others do not."""
    packages.add_server(f":{folder}:")
    found = find_environment(PYTHON)
    assert found.library_path == folder
    assert found.variables["LD_LIBRARY_PATH"] == f"{folder}:/the/callers"


def test_libraries_that_are_nowhere_are_named_with_what_to_do(packages: Packages) -> None:
    packages.add_server("/nowhere")
    with pytest.raises(DependencyError, match=f"libpython: cannot open.*apt-get install libpython{VERSION}"):
        find_environment(PYTHON)


def test_a_stub_that_may_not_run_is_named(packages: Packages) -> None:
    packages.add_server("")
    packages.stub.chmod(0o644)
    with pytest.raises(DependencyError, match="triton_python_backend_stub cannot be started"):
        find_environment(PYTHON)


def test_a_python_without_a_stub_is_refused(packages: Packages) -> None:
    packages.add_server("")
    packages.stub.unlink()
    with pytest.raises(DependencyError, match=f"no stub for Python {VERSION}"):
        find_environment(PYTHON)


def test_an_environment_without_the_server_or_with_a_newer_numpy_is_not_the_one(packages: Packages) -> None:
    with pytest.raises(NoServerError, match="nvidia-pytriton is not installed"):
        find_environment(PYTHON)
    packages.add_server("")
    packages.add_numpy("2.4.1")
    with pytest.raises(NoServerError, match=r"NumPy below 2, not 2\.4\.1"):
        find_environment(PYTHON)


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="python9 cannot be started"):
        find_environment(tmp_path / "python9")


@pytest.mark.parametrize("shared_memory", [False, True])
def test_shared_memory_is_open_to_who_asked_for_it_and_nothing_else_is(shared_memory: bool) -> None:
    environment = TritonEnvironment(Path("bin"), Path("server"), VERSION, "")
    command = server_command(
        environment, Path("models"), Path("backends"), TritonPorts(), "prefix_", shared_memory=shared_memory
    )
    options = {name: value for name, _, value in (word.partition("=") for word in command)}
    for name in ("--http-restricted-api", "--grpc-restricted-protocol"):
        closed, _, word = options[name].partition(":")
        assert {"model-repository", "logging", "trace"} <= set(closed.split(","))
        assert ("shared-memory" in closed.split(",")) is not shared_memory
        assert not word.partition("=")[0].isprintable(), "somebody may send it"
