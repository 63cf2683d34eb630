import subprocess
import sys
from pathlib import Path

import pytest

from afd_serve.servers.processes import started_at
from afd_serve.servers.triton_supervisor import _cut, _find_stubs

_SERVER = """
import os, subprocess, sys, time
ended = subprocess.Popen([sys.executable, "-c", ""])
os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
stub = subprocess.Popen(["triton_python_backend_stub", "600"], executable="/bin/sleep")
while not open(f"/proc/{stub.pid}/cmdline", "rb").read():  # for a moment Linux has started it, but not yet named it
    time.sleep(0.001)
print(stub.pid, flush=True)
time.sleep(600)
"""


def test_a_child_that_has_just_ended_does_not_end_the_supervisor() -> None:
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        stub = int(server.stdout.readline())
        try:
            assert _find_stubs(server) == {(stub, started_at(stub))}
        finally:
            subprocess.run(["kill", str(stub)], check=True)
            server.kill()


_ON_A_FULL_DISK = """
import sys
from afd_serve.servers.triton_supervisor import _say
_say("not well")
_say("well again")
print("goes on", file=sys.stderr)
"""


def test_a_log_without_room_does_not_end_the_supervisor() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", _ON_A_FULL_DISK], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr.startswith("goes on")


def test_a_long_log_begins_anew_and_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afd_serve.servers.triton_supervisor._LONGEST_LOG", 10)
    log = tmp_path / "triton.log"
    with log.open("ab", buffering=0) as server:
        for text in (b"0123456789", b"a", b"later"):
            server.write(text)
            _cut(log)
    assert log.read_bytes() == b"later"
    assert (tmp_path / "triton.log.1").read_bytes() == b"0123456789a"


def test_a_log_that_somebody_removed_is_none_to_cut(tmp_path: Path) -> None:
    _cut(tmp_path / "triton.log")
    assert not any(tmp_path.iterdir())
