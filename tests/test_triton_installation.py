"""The environment that is made for Triton where the running one has no server: what pip is asked for, and when."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("psutil")

from afd_serve.errors import DependencyError
from afd_serve.servers import triton_installation
from afd_serve.servers.triton_environment import NoServerError, TritonEnvironment
from afd_serve.servers.triton_installation import install, suitable_python


class Commands:
    """Takes the place of running commands: remembers them, and makes the folder that ``venv`` would make."""

    def __init__(self) -> None:
        self.run: list[list[str]] = []
        self.fail = False

    def __call__(self, command: Sequence[str], **_: object) -> SimpleNamespace:
        self.run.append(list(command))
        if "venv" in command:
            version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
            (Path(command[-1]) / "lib" / version / "site-packages").mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(returncode=int(self.fail and "pip" in command))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    instead = Commands()
    environment = TritonEnvironment(Path("bin"), Path("server"), "3.11", "")
    monkeypatch.setattr(subprocess, "run", instead)
    monkeypatch.setattr(triton_installation, "find_environment", lambda _: environment)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    return instead


def test_it_is_made_once(commands: Commands, tmp_path: Path) -> None:
    python = install(tmp_path / "environment")
    assert python == tmp_path / "environment" / "bin" / "python3"
    made, filled = commands.run
    assert made == [sys.executable, "-P", "-m", "venv", str(tmp_path / "environment")]
    assert filled[:5] == [str(python), "-P", "-m", "pip", "install"]
    assert {"numpy<2", "nvidia-pytriton==0.7.0", f"torch=={torch.__version__.partition('+')[0]}"} <= set(filled)
    assert not [word for word in filled if "torchserve" in word or word.startswith("afd-serve")]
    assert len(list((tmp_path / "environment").glob("lib/*/site-packages/afd_serve/steps.py"))) == 1
    assert install(tmp_path / "environment") == python
    assert len(commands.run) == 2


def test_what_was_interrupted_goes_on(commands: Commands, tmp_path: Path) -> None:
    commands.fail = True
    with pytest.raises(DependencyError, match="pip"):
        install(tmp_path)
    commands.fail = False
    install(tmp_path)
    assert len(commands.run) == 4


def test_one_whose_python_was_removed_is_made_anew(commands: Commands, tmp_path: Path) -> None:
    python = install(tmp_path)
    python.parent.mkdir()
    python.symlink_to(tmp_path / "removed")
    install(tmp_path)
    assert commands.run[2] == [sys.executable, "-P", "-m", "venv", "--clear", str(tmp_path)]


def test_other_requirements_are_installed_again(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    monkeypatch.setattr(torch, "__version__", "99.0+cpu")
    install(tmp_path)
    assert "torch==99.0" in commands.run[-1]


def test_only_a_missing_server_makes_one(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert suitable_python(tmp_path) == Path(sys.executable)
    assert not commands.run

    def lacks_it(python: Path) -> TritonEnvironment:
        if python == Path(sys.executable):
            raise NoServerError("no server")
        return TritonEnvironment(Path("bin"), Path("server"), "3.11", "")

    monkeypatch.setattr(triton_installation, "find_environment", lacks_it)
    assert suitable_python(tmp_path) == tmp_path / "environment" / "bin" / "python3"

    def lacks_more(_: Path) -> TritonEnvironment:
        raise DependencyError("no libpython")

    monkeypatch.setattr(triton_installation, "find_environment", lacks_more)
    with pytest.raises(DependencyError, match="libpython"):
        suitable_python(tmp_path)
