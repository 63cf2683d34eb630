"""Starts of servers that fail or are interrupted, with sleeping processes in the servers' place."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("psutil")

from afd_serve.cli import main
from afd_serve.errors import ConfigError, DependencyError, ServingError
from afd_serve.packaging.triton import TritonLimits
from afd_serve.runs import alone_in
from afd_serve.servers import quickstart, torchserve, triton, triton_quickstart
from afd_serve.servers.java import Java, find_java
from afd_serve.servers.launch import check_installed, store_archive
from afd_serve.servers.torchserve import TorchServe
from afd_serve.servers.triton import Triton
from afd_serve.servers.triton_environment import TritonEnvironment, find_environment
from tests.conftest import largest_file

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
    monkeypatch.setattr(torchserve, "check_installed", lambda: None)
    monkeypatch.setattr(torchserve, "find_java", lambda: Java(Path("java"), 17))
    monkeypatch.setattr(torchserve, "store_archive", lambda *_, **__: None)
    monkeypatch.setattr(torchserve, "write_settings", lambda *_: None)
    environment = TritonEnvironment(Path("bin"), Path("server"), "3.11", "")
    monkeypatch.setattr(triton, "find_environment", lambda _: environment)
    for module in (quickstart, triton_quickstart):
        monkeypatch.setattr(module, "fingerprint_of", lambda *_: "wanted")
    monkeypatch.setattr(quickstart, "_archive", lambda *_: Path("afd.mar"))
    monkeypatch.setattr(triton_quickstart, "package_triton", lambda *_, **__: Path("repository"))


def start_torchserve(state_dir: Path) -> TorchServe:
    return torchserve.start(Path("afd.mar"), state_dir, probe=b"", ports=torchserve.Ports.free())


def start_triton(state_dir: Path) -> Triton:
    return triton.start(Path("/repository"), state_dir, ports=triton.TritonPorts.free())


def serve_torchserve(state_dir: Path, ports: torchserve.Ports) -> TorchServe:
    return quickstart.serve_torchserve("a model", state_dir, ports=ports)


def serve_triton(state_dir: Path, ports: triton.TritonPorts) -> Triton:
    return triton_quickstart.serve_triton("a model", state_dir, python=Path(sys.executable), ports=ports)


def assert_ended_beside(
    own: subprocess.Popen[bytes], other: subprocess.Popen[bytes], found: TorchServe | Triton | None
) -> None:
    own.wait(30)
    assert other.poll() is None
    assert found is not None
    assert found.pid == other.pid


def test_a_torchserve_that_fails_to_start_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, sleeper: Sleeper, tmp_path: Path
) -> None:
    own, other = sleeper(), sleeper()

    def fail(server: TorchServe, *_: object) -> None:
        replace(server, scratch=tmp_path / "afd-ts-other").launched(other.pid)
        raise ServingError("no answer")

    monkeypatch.setattr(torchserve, "launch", lambda *_: own.pid)
    monkeypatch.setattr(torchserve, "_wait", fail)
    with pytest.raises(ServingError, match="no answer"):
        start_torchserve(tmp_path)
    assert_ended_beside(own, other, TorchServe.find(tmp_path))


def test_a_triton_that_fails_to_start_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, sleeper: Sleeper, tmp_path: Path
) -> None:
    own, other = sleeper(), sleeper()

    def fail(server: Triton, _: float) -> None:
        replace(server, prefix="afd_triton_0123456789ab_").launched(other.pid)
        raise ServingError("no answer")

    monkeypatch.setattr(triton, "_launch", lambda server: server.launched(own.pid))
    monkeypatch.setattr(triton, "_wait", fail)
    with pytest.raises(ServingError, match="no answer"):
        start_triton(tmp_path)
    assert_ended_beside(own, other, Triton.find(tmp_path))


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
    assert TorchServe.find(tmp_path) is None


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


def test_a_state_directory_is_held_while_a_server_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def start(_: Path, state_dir: Path, **__: object) -> str:
        with pytest.raises(ConfigError, match="another run"), alone_in(state_dir):
            pass
        return "started"

    monkeypatch.setattr(quickstart, "start", start)
    monkeypatch.setattr(triton_quickstart, "start", start)
    assert serve_torchserve(tmp_path, torchserve.Ports.free()) == "started"
    assert serve_triton(tmp_path, triton.TritonPorts.free()) == "started"


def test_triton_gets_a_process_for_each_core_that_may_be_used_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packaged = []
    monkeypatch.setattr(triton_quickstart, "package_triton", lambda *_, limits, **__: packaged.append(limits))
    monkeypatch.setattr(triton_quickstart, "start", lambda *_, **__: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3, 5})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for workers in (0, 2):
        triton_quickstart.serve_triton("a model", tmp_path, python=Path(sys.executable), workers=workers)
    assert packaged == [TritonLimits(decoders=3, classifiers=3), TritonLimits(decoders=2, classifiers=2)]


@pytest.fixture
def running_torchserve(sleeper: Sleeper, tmp_path: Path) -> TorchServe:
    pid = sleeper().pid
    ports, scratch = torchserve.Ports.free(), tmp_path / "afd-ts-running"
    return TorchServe(
        state_dir=tmp_path, fingerprint="another one", model="afd", scratch=scratch, ports=ports
    ).launched(pid)


@pytest.fixture
def running_triton(sleeper: Sleeper, tmp_path: Path) -> Triton:
    pid, python, prefix = sleeper().pid, Path(sys.executable), "afd_triton_0123456789ab_"
    ports = triton.TritonPorts.free()
    return Triton(
        state_dir=tmp_path, fingerprint="another one", repository=tmp_path, python=python, prefix=prefix, ports=ports
    ).launched(pid)


def test_a_server_is_found_where_its_state_directory_was_moved_to(running_triton: Triton, tmp_path: Path) -> None:
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert Triton.find(moved) == replace(running_triton, state_dir=moved)
    assert TorchServe.find(moved) is None


def test_no_triton_takes_the_folder_of_a_torchserve(running_torchserve: TorchServe, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="is the folder of a TorchServe; stop that first"):
        serve_triton(tmp_path, triton.TritonPorts.free())
    assert TorchServe.find(tmp_path) == running_torchserve
    assert TorchServe.stop(tmp_path)
    assert Triton.predecessor(tmp_path, makes_way=False) is None


def test_no_torchserve_takes_the_folder_of_a_triton(running_triton: Triton, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="is the folder of a Triton; stop that first"):
        serve_torchserve(tmp_path, torchserve.Ports.free())
    assert Triton.find(tmp_path) == running_triton


def test_a_server_whose_kind_an_earlier_version_did_not_note_is_found(running_triton: Triton, tmp_path: Path) -> None:
    values = json.loads((tmp_path / "server.json").read_text())
    del values["kind"]
    (tmp_path / "server.json").write_text(json.dumps(values))
    assert Triton.find(tmp_path) == running_triton
    assert TorchServe.find(tmp_path) is None


def test_a_server_of_a_later_version_that_says_more_of_itself_is_found(running_triton: Triton, tmp_path: Path) -> None:
    values = json.loads((tmp_path / "server.json").read_text())
    (tmp_path / "server.json").write_text(json.dumps(values | {"later": 1}))
    assert Triton.find(tmp_path) == running_triton


@pytest.mark.parametrize("written", ["{", "[]", '{"kind": "Later"}', '{"kind": "Triton", "ports": {"later": 1}}'])
def test_what_does_not_tell_of_a_server_is_no_sign_that_none_runs(
    running_triton: Triton, tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str
) -> None:
    (tmp_path / "server.json").write_text(written)
    for words in (["stop"], ["health"], ["serve", "triton", "--python", sys.executable, "--port", "1"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--state-dir", str(tmp_path)])
        assert ended.value.code
        assert re.search(r"server\.json cannot be read, as where|is the folder of a Later", capsys.readouterr().err)
    assert running_triton.alive()
    assert (tmp_path / "server.json").read_text() == written


def test_files_that_cannot_be_removed_are_named_after_the_server_has_ended(
    running_triton: Triton, tmp_path: Path
) -> None:
    (tmp_path / "ready").mkdir()
    with pytest.raises(ServingError, match=r"the server has ended, but its files could not be removed: .*ready"):
        Triton.stop(tmp_path)
    assert not running_triton.alive()


@pytest.fixture
def staying(running_torchserve: TorchServe) -> Iterator[Future[None]]:
    with ThreadPoolExecutor() as pool:
        future = pool.submit(running_torchserve.stay)
        yield future
        running_torchserve.end()


def test_who_stays_with_a_server_returns_when_it_is_stopped(staying: Future[None], tmp_path: Path) -> None:
    with alone_in(tmp_path):
        assert not staying.done()
        assert TorchServe.stop(tmp_path)
        time.sleep(1)
        assert not staying.done(), "whoever stops it may have more to remove"
    staying.result(timeout=30)


def test_a_server_that_is_killed_is_an_error_for_who_stays_with_it(
    staying: Future[None], running_torchserve: TorchServe, tmp_path: Path
) -> None:
    os.kill(running_torchserve.pid, signal.SIGKILL)
    with pytest.raises(ServingError, match=f"ended of itself; its logs lie in {tmp_path / 'logs'}"):
        staying.result(timeout=30)
    assert TorchServe.load(tmp_path) is None


def test_who_stays_with_a_server_leaves_its_successor_alone(
    staying: Future[None], running_torchserve: TorchServe, sleeper: Sleeper, tmp_path: Path
) -> None:
    successor = replace(running_torchserve, scratch=tmp_path / "afd-ts-successor").launched(sleeper().pid)
    os.kill(running_torchserve.pid, signal.SIGKILL)
    staying.result(timeout=30)
    assert TorchServe.find(tmp_path) == successor


def test_a_torchserve_goes_on_where_the_new_one_would_have_no_java(
    monkeypatch: pytest.MonkeyPatch, running_torchserve: TorchServe, tmp_path: Path
) -> None:
    monkeypatch.setattr(torchserve, "find_java", find_java)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(DependencyError, match="JAVA_HOME"):
        serve_torchserve(tmp_path, running_torchserve.ports)
    assert TorchServe.find(tmp_path) == running_torchserve


def test_a_torchserve_goes_on_where_none_is_installed_any_more(
    monkeypatch: pytest.MonkeyPatch, running_torchserve: TorchServe, tmp_path: Path
) -> None:
    monkeypatch.setattr(torchserve, "check_installed", check_installed)
    monkeypatch.setitem(sys.modules, "ts", None)
    with pytest.raises(DependencyError, match="TorchServe is not installed"):
        serve_torchserve(tmp_path, running_torchserve.ports)
    assert TorchServe.find(tmp_path) == running_torchserve


def test_a_triton_goes_on_where_the_new_one_would_have_no_environment(
    monkeypatch: pytest.MonkeyPatch, running_triton: Triton, tmp_path: Path
) -> None:
    monkeypatch.setattr(triton, "find_environment", find_environment)
    with pytest.raises(DependencyError, match="cannot be started"):
        triton_quickstart.serve_triton("a model", tmp_path, python=tmp_path / "python", ports=running_triton.ports)
    assert Triton.find(tmp_path) == running_triton


def test_a_torchserve_goes_on_where_the_new_ones_ports_are_taken(
    running_torchserve: TorchServe, listener: socket.socket, tmp_path: Path
) -> None:
    taken = listener.getsockname()[1]
    with pytest.raises(ServingError, match=f"port {taken} "):
        serve_torchserve(tmp_path, replace(running_torchserve.ports, metrics=taken))
    assert TorchServe.find(tmp_path) == running_torchserve


def test_a_torchserve_goes_on_where_the_disk_is_too_full_for_the_new_ones_archive(
    monkeypatch: pytest.MonkeyPatch, running_torchserve: TorchServe, tmp_path: Path
) -> None:
    stored = tmp_path / "model_store" / "afd.mar"
    stored.parent.mkdir()
    stored.write_bytes(b"the running one's")
    (tmp_path / "afd.mar").write_bytes(bytes(100_000))
    monkeypatch.setattr(torchserve, "store_archive", store_archive)
    monkeypatch.setattr(quickstart, "_archive", lambda *_: tmp_path / "afd.mar")
    with largest_file(50_000), pytest.raises(ServingError, match=r"cannot be copied to .*model_store:"):
        serve_torchserve(tmp_path, running_torchserve.ports)
    assert TorchServe.find(tmp_path) == running_torchserve
    assert stored.read_bytes() == b"the running one's"


def test_a_triton_goes_on_where_the_new_ones_ports_are_taken(
    running_triton: Triton, listener: socket.socket, tmp_path: Path
) -> None:
    taken = listener.getsockname()[1]
    with pytest.raises(ServingError, match=f"port {taken} "):
        serve_triton(tmp_path, replace(running_triton.ports, metrics=taken))
    assert Triton.find(tmp_path) == running_triton


@pytest.mark.parametrize("name", ["two words", "büro", "a'b", "$HOME", "a;b"])
def test_a_triton_is_not_started_where_its_python_processes_would_not(
    running_triton: Triton, tmp_path: Path, name: str
) -> None:
    refused = f"Triton cannot work in .*{re.escape(name)}: .* --state-dir"
    with pytest.raises(ServingError, match=refused):
        triton.start(tmp_path / name, tmp_path, ports=running_triton.ports, takes_over=True)
    with pytest.raises(ServingError, match=refused):
        serve_triton(tmp_path / name, running_triton.ports)
    assert Triton.find(tmp_path) == running_triton
    assert not (tmp_path / name).exists()


def test_only_repositories_of_earlier_servers_are_removed(
    monkeypatch: pytest.MonkeyPatch, sleeper: Sleeper, tmp_path: Path
) -> None:
    monkeypatch.setattr(triton, "_launch", lambda server: server.launched(sleeper().pid))
    monkeypatch.setattr(triton, "_wait", lambda *_: None)
    monkeypatch.setattr(triton_quickstart, "package_triton", lambda _, repository, **__: repository.mkdir())
    kept = ["model_repository", "model_repository_mine", "model_repository-of-mine"]
    triton_quickstart.make_state_dir(tmp_path)
    for name in (*kept, "model_repository-0123456789ab"):
        (tmp_path / name).mkdir()
    server = serve_triton(tmp_path, triton.TritonPorts.free())
    assert sorted(path.name for path in tmp_path.glob("model_repository*")) == sorted([*kept, server.repository.name])


def test_state_directories_are_made_for_their_owner_alone(
    monkeypatch: pytest.MonkeyPatch, sleeper: Sleeper, tmp_path: Path
) -> None:
    monkeypatch.setattr(torchserve, "launch", lambda *_: sleeper().pid)
    monkeypatch.setattr(torchserve, "short_temporary_folder", lambda: tmp_path)  # of servers that nobody ends
    monkeypatch.setattr(triton, "_launch", lambda server: server.launched(sleeper().pid))
    monkeypatch.setattr(triton_quickstart, "package_triton", lambda _, repository, **__: repository.mkdir())
    for module in (torchserve, triton):
        monkeypatch.setattr(module, "_wait", lambda *_: None)
    made = [tmp_path / name for name in ("torchserve", "served by it", "triton", "served_by_it")]
    start_torchserve(made[0])
    serve_torchserve(made[1], torchserve.Ports.free())
    start_triton(made[2])
    server = serve_triton(made[3], triton.TritonPorts.free())
    folders = [*made, made[1] / "archives", server.repository, *(folder / "logs" for folder in made)]
    assert [oct(stat.S_IMODE(folder.stat().st_mode)) for folder in folders] == ["0o700"] * len(folders)
