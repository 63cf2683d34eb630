import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from afd_serve.servers import triton_supervisor
from afd_serve.servers.processes import started_at
from afd_serve.servers.triton import Triton, TritonPorts
from afd_serve.servers.triton_environment import TritonEnvironment
from afd_serve.servers.triton_supervisor import Supervisor, _cut, _find_stopped, _find_stubs

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


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Supervisor:
    """One that looks and probes without a pause."""
    environment = TritonEnvironment(Path("bin"), Path("server"), "3.11", "")
    monkeypatch.setattr(triton_supervisor, "find_environment", lambda _: environment)
    monkeypatch.setattr(triton_supervisor, "_LOOK_EVERY", 0)
    monkeypatch.setattr(triton_supervisor, "_PROBE_EVERY", 0)
    python, prefix, ports = Path(sys.executable), "afd_triton_0123456789ab_", TritonPorts()
    return Supervisor(
        Triton(state_dir=tmp_path, fingerprint="", repository=tmp_path, python=python, prefix=prefix, ports=ports)
    )


def watched(
    supervisor: Supervisor, process: subprocess.Popen[bytes], said: Sequence[str | None], patch: pytest.MonkeyPatch
) -> str | None:
    """Why the supervisor gives the server up while its probes say this one after the other; None where it does not."""

    class AllSaidError(Exception):
        pass

    answers = iter(said)

    def probe(*_: object, **__: object) -> str | None:
        try:
            return next(answers)
        except StopIteration:
            raise AllSaidError from None

    patch.setattr(triton_supervisor, "probe", probe)
    try:
        return supervisor._watch(process)
    except AllSaidError:
        return None


def test_a_state_directory_that_became_read_only_is_no_reason_to_give_up(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ended_process() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["true"])
        process.wait()
        return process

    (tmp_path / "ready").mkdir()  # which cannot be unlinked, by root either
    reasons: list[str | None] = [None, "it ended", "it ended"]
    monkeypatch.setattr(supervisor, "_launch", ended_process)
    monkeypatch.setattr(supervisor, "_first_answer", lambda _: reasons.pop(0))
    monkeypatch.setattr(supervisor, "_watch", lambda _: "it is not well")
    monkeypatch.setattr(triton_supervisor.time, "sleep", lambda _: None)
    with pytest.raises(IndexError):  # there is always one more start
        supervisor.run()
    assert not reasons


SLOW, GONE, STOPPED = "no answer in time", "Connection refused", "its Python process 7 is stopped"
FIRST = """answered 500: {"error":"Stub process 'afd_classify_0_0' is not healthy."}"""
SECOND = """answered 500: {"error":"Stub process 'afd_classify_0_1' is not healthy."}"""
IN_ENSEMBLE = (
    """answered 500: {"error":"in ensemble 'afd_classify', Stub process 'afd_classifier_0_0' is not healthy."}"""
)
UNNAMED = """answered 500: {"error":"Failed to obtain the health mutex."}"""


@pytest.mark.parametrize("said", [FIRST, IN_ENSEMBLE, UNNAMED])
def test_a_python_process_that_triton_calls_unhealthy_twice_is_enough_whatever_is_between(
    supervisor: Supervisor, sleeping: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    answers = [None, said, None, None, SLOW, None, said]
    assert watched(supervisor, sleeping, answers, monkeypatch) == f"it cannot classify: {said}"


@pytest.mark.parametrize("said", [(SLOW, GONE), (FIRST, SECOND), (SLOW, FIRST), (FIRST, SLOW)])
def test_two_failed_probes_in_a_row_are_enough(
    supervisor: Supervisor,
    sleeping: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    said: tuple[str, str],
) -> None:
    assert watched(supervisor, sleeping, [None, *said], monkeypatch) == f"it cannot classify: {said[1]}"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([FIRST, None, SECOND, None, IN_ENSEMBLE, None, UNNAMED], id="each process only once"),
        pytest.param([SLOW, None] * 20, id="slow every other time"),
        pytest.param([STOPPED, None] * 20, id="stopped for a moment"),
        pytest.param([FIRST, *[None] * 100, FIRST], id="long apart"),
    ],
)
def test_single_failures_are_no_reason_to_replace_the_server(
    supervisor: Supervisor,
    sleeping: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    said: Sequence[str | None],
) -> None:
    assert watched(supervisor, sleeping, [*said, None], monkeypatch) is None


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_python_process_that_stays_stopped_is_found_though_others_answer(
    supervisor: Supervisor, sleeping: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["sleep", "600"]) as stub:
        supervisor._stubs = {(stub.pid, started_at(stub.pid))}
        stop(stub)
        reason = watched(supervisor, sleeping, [None] * 100, monkeypatch)
        stub.kill()
    assert reason == f"it cannot classify: its Python process {stub.pid} is stopped"


def test_a_python_process_that_has_just_ended_is_not_stopped(sleeping: subprocess.Popen[bytes]) -> None:
    ended = (sleeping.pid, started_at(sleeping.pid))
    assert _find_stopped({ended}) is None
    sleeping.kill()
    sleeping.wait()
    assert _find_stopped({ended}) is None
