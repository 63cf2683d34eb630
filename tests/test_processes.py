"""Which process is meant, whatever the clock does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("psutil")

import psutil

from afd_serve.errors import ServingError
from afd_serve.servers import processes
from afd_serve.servers.processes import end, runs, started_at


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_a_process_stays_the_same_when_the_clock_is_set(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, started = psutil.Process(child.pid).create_time(), started_at(child.pid)
    clock = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: clock + 1)
    assert psutil.Process(child.pid).create_time() == before + 1
    assert runs(child.pid, started)


def test_a_process_of_another_start_or_boot_is_another(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = started_at(child.pid)
    assert not runs(child.pid, started_at(1))
    (tmp_path / "boot_id").write_text("the next boot\n")
    monkeypatch.setattr(processes, "_BOOT_ID", tmp_path / "boot_id")
    assert not runs(child.pid, started)


def test_a_process_that_has_ended_does_not_run(child: subprocess.Popen[bytes]) -> None:
    started = started_at(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays, as a zombie
    assert not runs(child.pid, started)
    child.wait()
    assert not runs(child.pid, started)
    with pytest.raises(ServingError, match="ended"):
        started_at(child.pid)


def test_ending_another_users_server_is_refused_in_words(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "terminate", refuse)
    with pytest.raises(ServingError, match=f"process {child.pid}, is another user's"):
        end(child.pid, timeout=20)
