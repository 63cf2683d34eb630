"""Starts of servers that fail or are interrupted, with sleeping processes in the servers' place."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("psutil")

from afd_serve.errors import ConfigError, ServingError
from afd_serve.runs import alone_in
from afd_serve.servers import quickstart, torchserve, triton, triton_quickstart
from afd_serve.servers.java import Java
from afd_serve.servers.processes import started_at
from afd_serve.servers.torchserve import TorchServe
from afd_serve.servers.triton import Triton
from afd_serve.servers.triton_environment import TritonEnvironment

Sleeper = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    """Start a process that does nothing, with these words on its command line."""
    started = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *words]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchserve, "find_java", lambda: Java(Path("java"), 17))
    monkeypatch.setattr(torchserve, "write_settings", lambda *_: None)
    environment = TritonEnvironment(Path("bin"), Path("server"), "3.11", "")
    monkeypatch.setattr(triton, "find_environment", lambda _: environment)


def start_torchserve(state_dir: Path) -> TorchServe:
    return torchserve.start(Path("afd.mar"), state_dir, probe=b"", ports=torchserve.Ports.free())


def start_triton(state_dir: Path) -> Triton:
    return triton.start(Path("repository"), state_dir, ports=triton.TritonPorts.free())


def write_state(server: TorchServe | Triton) -> None:
    (server.state_dir / "server.json").write_text(json.dumps(asdict(server), default=str))


def test_a_torchserve_that_fails_to_start_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, sleeper: Sleeper, tmp_path: Path
) -> None:
    own, other = sleeper(), sleeper()

    def fail(server: TorchServe, *_: object) -> None:
        write_state(replace(server, pid=other.pid, started=started_at(other.pid), scratch=tmp_path / "afd-ts-other"))
        raise ServingError("no answer")

    monkeypatch.setattr(torchserve, "launch", lambda *_: own.pid)
    monkeypatch.setattr(torchserve, "_wait", fail)
    with pytest.raises(ServingError, match="no answer"):
        start_torchserve(tmp_path)
    own.wait(30)
    assert other.poll() is None
    found = torchserve.find(tmp_path)
    assert found is not None
    assert found.pid == other.pid


def test_a_triton_that_fails_to_start_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, sleeper: Sleeper, tmp_path: Path
) -> None:
    own, other = sleeper(), sleeper()

    def fail(server: Triton, _: float) -> None:
        write_state(replace(server, pid=other.pid, started=started_at(other.pid), prefix="afd_triton_0123456789ab_"))
        raise ServingError("no answer")

    monkeypatch.setattr(triton, "_launch", lambda server: replace(server, pid=own.pid, started=started_at(own.pid)))
    monkeypatch.setattr(triton, "_wait", fail)
    with pytest.raises(ServingError, match="no answer"):
        start_triton(tmp_path)
    own.wait(30)
    assert other.poll() is None
    found = triton.find(tmp_path)
    assert found is not None
    assert found.pid == other.pid


def test_an_interruption_ends_a_torchserve_whose_process_is_not_known_yet(
    monkeypatch: pytest.MonkeyPatch, sleeper: Sleeper, tmp_path: Path
) -> None:
    processes = []

    def interrupted(_archive: Path, _state_dir: Path, scratch: Path, _java: Path) -> int:
        processes.append(sleeper(f"-Djava.io.tmpdir={scratch}"))
        raise KeyboardInterrupt

    monkeypatch.setattr(torchserve, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_torchserve(tmp_path)
    processes[0].wait(30)
    assert torchserve.find(tmp_path) is None


def test_an_interruption_ends_a_supervisor_whose_process_is_not_known_yet(
    monkeypatch: pytest.MonkeyPatch, sleeper: Sleeper, tmp_path: Path
) -> None:
    processes = []

    def interrupted(command: list[str], **_: object) -> None:
        processes.append(sleeper(*command[1:]))
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_triton(tmp_path)
    processes[0].wait(30)
    assert not (tmp_path / "server.json").exists()


def test_a_state_directory_is_held_while_a_server_starts(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
) -> None:
    def start(_: Path, state_dir: Path, **__: object) -> str:
        with pytest.raises(ConfigError, match="another run"), alone_in(state_dir):
            pass
        return "started"

    for module in (quickstart, triton_quickstart):
        monkeypatch.setattr(module, "start", start)
        monkeypatch.setattr(module, "fingerprint_of", lambda *_: "")
    monkeypatch.setattr(quickstart, "package_torchserve", lambda *_, **__: (tmp_path / "archives").mkdir())
    monkeypatch.setattr(triton_quickstart, "package_triton", lambda *_, **__: Path("repository"))
    assert quickstart.serve_torchserve(tiny_run, tmp_path) == "started"
    assert triton_quickstart.serve_triton(tiny_run, tmp_path, python=Path(sys.executable)) == "started"
