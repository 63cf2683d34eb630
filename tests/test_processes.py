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


def test_what_does_not_end_when_asked_to_is_killed_with_all_that_it_started() -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = f"{stubborn}print(flush=True); import time; time.sleep(600)"
    parent = f"{stubborn}import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # both ignore the signal now
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        end(process.pid, timeout=0.2)
        left = [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        for each in left:
            each.kill()
    assert len(family) == 2
    assert not left


def test_ending_another_users_server_is_refused_in_words(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "terminate", refuse)
    with pytest.raises(ServingError, match=f"process {child.pid}, is another user's"):
        end(child.pid, timeout=20)
