"""Starting, finding, refusing to start and stopping, each with servers of its own."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import psutil
import pytest

from afd_serve.errors import CheckpointError, ServingError
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.sample import sample_picture
from afd_serve.servers import torchserve
from afd_serve.servers.launch import launch
from afd_serve.servers.quickstart import serve_torchserve
from afd_serve.signature import SIGNATURE_NAME, Signature

pytestmark = pytest.mark.serving


def processes_of(server: torchserve.TorchServe) -> list[psutil.Process]:
    frontend = psutil.Process(server.pid)
    return [frontend, *frontend.children(recursive=True)]


def wait_until_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 20
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.1)


def test_serving_twice_starts_once_and_a_crash_is_cleaned_up(exported: Path, damaged: Path, tmp_path: Path) -> None:
    ports = torchserve.Ports.free()

    def serve(_: int) -> torchserve.TorchServe:
        return serve_torchserve(exported, tmp_path, ports=ports, workers=1)

    try:
        with ThreadPoolExecutor() as pool:
            first, same = pool.map(serve, range(2))  # at the same time
        assert first == same
        archive = tmp_path / "archives" / "afd.mar"
        built = archive.stat().st_mtime_ns
        assert serve_torchserve(exported, tmp_path, ports=ports, workers=1) == first
        assert archive.stat().st_mtime_ns == built
        (described,) = first.get("management", f"/models/{first.model}").json()
        # TorchServe takes some values, such as a delay of 0, for its own defaults without a word.
        assert (described["batchSize"], described["maxBatchDelay"]) == (2, 1)

        for model, reason in (("misspelt", "misspelt"), (damaged, "not the files that were exported")):
            with pytest.raises(CheckpointError, match=reason):
                serve_torchserve(model, tmp_path, ports=ports, workers=1)
        assert first.post(sample_picture()).status == 200

        family = processes_of(first)
        os.kill(first.pid, signal.SIGKILL)
        wait_until_gone(family)
        assert torchserve.TorchServe.find(tmp_path) is None

        second = serve_torchserve(exported, tmp_path, ports=ports, workers=1)
        assert second.pid != first.pid
        assert archive.stat().st_mtime_ns == built
        assert second.post(sample_picture()).status == 200
        assert not first.scratch.exists()
        family = processes_of(second)
    finally:
        stopped = torchserve.TorchServe.stop(tmp_path)
    assert stopped
    assert not second.scratch.exists()
    assert not (tmp_path / "key_file.json").exists()
    wait_until_gone(family)
    with pytest.raises(ServingError):
        second.post(sample_picture())


@pytest.fixture
def stay(exported: Path, booby_trapped: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start ``serve torchserve --foreground``, which has answered when this returns."""
    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            ports = chain(*zip(_PORTS, asdict(torchserve.Ports.free()).values(), strict=True))
            words = ["--model", exported, "--state-dir", tmp_path, "--workers", 1, "--foreground", *ports]
            staying = subprocess.Popen(
                [sys.executable, "-P", "-m", "afd_serve", "serve", "torchserve", *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=booby_trapped,
                env=os.environ | {"NOTIFY_SOCKET": str(tmp_path.with_suffix(".notify"))},
            )
            stack.enter_context(staying)
            stack.callback(staying.kill)
            assert staying.stdout is not None
            assert any("bare classifier" in line for line in staying.stdout), "it ended before it answered"
            return staying

        yield start
    torchserve.TorchServe.stop(tmp_path)


_PORTS = ("--port", "--management-port", "--metrics-port", "--grpc-port", "--grpc-management-port")


def test_a_server_in_the_foreground_ends_with_its_command_and_the_command_with_it(
    stay: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path.with_suffix(".notify")))
        systemd.settimeout(30)
        staying = stay()
        assert systemd.recv(100) == b"READY=1"
    (tmp_path.with_suffix(".notify")).unlink()
    server = torchserve.TorchServe.find(tmp_path)
    assert server is not None
    family = processes_of(server)
    staying.send_signal(signal.SIGTERM)
    out, err = staying.communicate(timeout=60)
    assert (staying.returncode, out.splitlines(), err) == (0, ["stopping", "stopped"], "")
    wait_until_gone(family)
    assert torchserve.TorchServe.load(tmp_path) is None

    staying = stay()
    server = torchserve.TorchServe.find(tmp_path)
    assert server is not None
    family = processes_of(server)
    os.kill(server.pid, signal.SIGKILL)
    out, err = staying.communicate(timeout=60)
    assert (staying.returncode, out) == (2, "")
    assert err == f"error: the server has ended of itself; its logs lie in {tmp_path / 'logs'}\n"
    wait_until_gone(family)


def test_an_interrupted_start_leaves_no_process(
    exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = []

    def interrupted(*arguments: Path) -> int:
        started.append(psutil.Process(launch(*arguments)))
        raise KeyboardInterrupt

    monkeypatch.setattr(torchserve, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        serve_torchserve(exported, tmp_path, ports=torchserve.Ports.free(), workers=1)
    assert started
    wait_until_gone(started)


_CUT_SHORT = """
import os, signal, sys
from pathlib import Path
from afd_serve.servers import state, torchserve
from afd_serve.servers.quickstart import serve_torchserve

state.started_at = lambda pid: os.kill(os.getpid(), signal.SIGKILL)
serve_torchserve(sys.argv[1], Path(sys.argv[2]), ports=torchserve.Ports(*map(int, sys.argv[3:])), workers=1)
"""


def test_a_frontend_whose_start_was_killed_makes_way_for_the_next(exported: Path, tmp_path: Path) -> None:
    ports = torchserve.Ports.free()
    words = [exported, tmp_path, *asdict(ports).values()]
    assert subprocess.run([sys.executable, "-c", _CUT_SHORT, *map(str, words)], check=False).returncode == -9
    scratch = json.loads((tmp_path / "server.json").read_text())["scratch"]
    try:
        processes = list(psutil.process_iter(["cmdline"]))  # which asks no zombie
        left = [process for process in processes if any(scratch in word for word in process.info["cmdline"] or ())]
        assert left
        assert serve_torchserve(exported, tmp_path, ports=ports, workers=1).post(sample_picture()).status == 200
        wait_until_gone(left)
        assert not Path(scratch).exists()
    finally:
        torchserve.TorchServe.stop(tmp_path)


def test_a_model_that_cannot_be_loaded_is_reported_with_the_workers_words(exported: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(exported, tmp_path / "broken")
    (broken / "model.pt").write_bytes(b"no model")
    signature = Signature.from_json((broken / SIGNATURE_NAME).read_text())
    signature = replace(signature, sha256=hashlib.sha256(b"no model").hexdigest())
    (broken / SIGNATURE_NAME).write_text(signature.to_json())
    archive = package_torchserve(broken, tmp_path / "store")
    with pytest.raises(ServingError, match=r"a worker died[\s\S]*CheckpointError: .*cannot be read as TorchScript"):
        torchserve.start(archive, tmp_path / "state", probe=sample_picture(), ports=torchserve.Ports.free(), workers=1)
    assert torchserve.TorchServe.find(tmp_path / "state") is None
