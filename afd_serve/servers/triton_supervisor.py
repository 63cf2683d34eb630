"""Keeps one ``tritonserver`` alive: ``python -m afd_serve.servers.triton_supervisor STATE_DIR PREFIX``.

PREFIX, that of the server's shared memory, is there for `Triton.clean_up` to know the process by.

The server is replaced as a whole when it has ended, when one of the Python processes that it had when it became ready
has died, or when it fails two probes, which are 5 s apart. The first two show within half a second.

A probe lets it classify the sample picture. One failure is not enough, two in a row are: a picture may wait behind
others. Where one of several Python processes hangs, failures are rarely in a row, because the others answer most
pictures. So a process that is stopped fails a probe before it is sent. Of one that hangs in another way, Triton says
that it is not healthy: it has shown no sign of life for a second, which can happen to any process once where a machine
is short of time. Two such answers about the same process are enough, whatever is between them.

A first start that fails ends the supervisor, whose caller waits for it and tells the reason; one that crashes is tried
once more.

A full disk is nobody's end: what cannot be written to the log is left out. Nor does the log fill one: it is cut.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import psutil

from afd_serve.errors import ServingError
from afd_serve.servers.processes import runs, started_at
from afd_serve.servers.triton import Triton, probe
from afd_serve.servers.triton_environment import find_environment, link_backend, server_command

_STUB: Final = "triton_python_backend_stub"
_LOOK_EVERY: Final = 0.25
_PROBE_EVERY: Final = 5.0
_PROBE_TIMEOUT: Final = 15.0
_PROBES_KEPT: Final = 60
"""What the last five minutes' probes said; of many processes, it may take long until one gets a probe again."""
_NOT_HEALTHY: Final = re.compile(r"Stub process .*is not healthy|health mutex")
"""Triton 2.51's words for a Python process without a sign of life, the second where that holds a lock meanwhile."""
_START_TIMEOUT: Final = 120.0
_LONGEST_PAUSE: Final = 30.0
_LONGEST_LOG: Final = 20 << 20
"""Bytes; as many again are kept of what was before."""
_PR_SET_PDEATHSIG: Final = 1

Process = tuple[int, str]  # id, and since when it runs


class Supervisor:
    """One server after the other, on the same ports."""

    def __init__(self, server: Triton) -> None:
        environment = find_environment(server.python)
        backends = link_backend(environment, server.state_dir / "backends")
        self._server = server
        self._command = server_command(
            environment,
            server.repository,
            backends,
            server.ports,
            server.prefix,
            shared_memory=server.shared_memory,
        )
        self._variables = environment.variables
        self._process: subprocess.Popen[bytes] | None = None
        self._stubs: set[Process] = set()

    def run(self) -> None:
        """Start the server and replace it whenever it is not well; returns where it cannot be started at first."""
        failed_starts = 0
        first = True
        while True:
            process = self._process = self._launch()
            reason = self._first_answer(process)
            if reason is None:
                first, failed_starts = False, 0
                reason = self._watch(process)
            else:
                failed_starts += 1
            with suppress(OSError):  # a file system that became read-only is no reason to give up
                self._server.ready_file.unlink(missing_ok=True)
            _say(f"tritonserver is not well: {reason}")
            # On a machine that is short of time, its backend's locks run out while it starts, and it aborts.
            crashed = (process.poll() or 0) < 0
            self._kill()
            if first and (failed_starts > 1 or not crashed):
                return
            time.sleep(min(_LONGEST_PAUSE, 2.0**failed_starts - 1))

    def stop(self) -> None:
        """Let the server end by itself, and see to it that it does."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self._kill()

    def _launch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            cwd=self._server.state_dir,  # its Python processes look for modules where they are
            env=self._variables,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  # this process has one thread
        )

    def _first_answer(self, process: subprocess.Popen[bytes]) -> str | None:
        """Wait for the server; None once it has classified a picture, or else why not."""
        start = time.monotonic()
        reason: str | None = "no answer yet"
        while time.monotonic() - start < _START_TIMEOUT:
            status = process.poll()
            if status is not None:
                return f"it ended with status {status} while it started"
            self._server.hide_memory()  # its Python processes take seconds from there to the first picture
            reason = probe(self._server, timeout=5)
            if reason is None:
                self._stubs = _find_stubs(process)
                with suppress(OSError):  # a full disk; only the caller of the first start needs it
                    self._server.ready_file.touch()
                _say(f"tritonserver answers after {time.monotonic() - start:.1f} s")
                return None
            time.sleep(0.1)
        return reason

    def _watch(self, process: subprocess.Popen[bytes]) -> str:
        """Look after the server until it is not well; the reason."""
        probes: deque[str | None] = deque(maxlen=_PROBES_KEPT)
        next_probe = time.monotonic() + _PROBE_EVERY
        while True:
            time.sleep(_LOOK_EVERY)
            status = process.poll()
            if status is not None:
                return f"it has ended with status {status}"
            dead = [pid for pid, started in self._stubs if not runs(pid, started)]
            if dead:
                return f"its Python process {dead[0]} has died"
            if time.monotonic() < next_probe:
                continue
            _cut(self._server.log)
            probes.append(_find_stopped(self._stubs) or probe(self._server, timeout=_PROBE_TIMEOUT))
            if _is_enough(probes):
                return f"it cannot classify: {probes[-1]}"
            next_probe = time.monotonic() + _PROBE_EVERY

    def _kill(self) -> None:
        """End what is left of the server: nothing in it is worth waiting for any more."""
        self._server.clean_up()
        if self._process is not None:
            self._process.wait()
        self._process, self._stubs = None, set()


def _find_stubs(process: subprocess.Popen[bytes]) -> set[Process]:
    stubs: set[Process] = set()
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, ServingError):  # one that ends right now is found out by the probes
            if _STUB in " ".join(child.cmdline()[:1]):
                stubs.add((child.pid, started_at(child.pid)))
    return stubs


def _find_stopped(stubs: Iterable[Process]) -> str | None:
    """Say which one is stopped, as by SIGSTOP: it does nothing any more, whoever of the others answers."""
    for pid, _ in stubs:
        with suppress(psutil.NoSuchProcess):  # one that ends right now is found dead at the next look
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                return f"its Python process {pid} is stopped"
    return None


def _is_enough(probes: Iterable[str | None]) -> bool:
    """Whether the last of these probes, each with its reason to fail or None, shows that the server is not well."""
    *before, last = probes
    if last is None:
        return False
    in_a_row = bool(before) and before[-1] is not None
    return in_a_row or (_NOT_HEALTHY.search(last) is not None and last in before)


def _die_with_parent() -> None:
    """In the server's process before it becomes the server: no supervisor, no server."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _say(text: str) -> None:
    # Standard output is the server's log. What a full disk has no room for may follow later.
    with suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor: {text}", flush=True)


def _cut(log: Path) -> None:
    """Begin a log that has grown long anew; its writers append, so that they need not know."""
    with suppress(OSError):  # somebody may have removed it
        if log.stat().st_size > _LONGEST_LOG:
            with suppress(OSError):  # rather no earlier log than a full disk
                shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


def _exit(*_: object) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    """Go to the background, print the process's id, and supervise the server of a state directory until SIGTERM."""
    pid = os.fork()
    if pid:
        print(pid)
        return
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the log; whoever started this waits for the end of the other
    server = Triton.load(Path(sys.argv[1]))
    if server is None:
        sys.exit(f"{sys.argv[1]} describes no server")
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)
    supervisor = Supervisor(server)
    try:
        supervisor.run()
    finally:
        supervisor.stop()
    sys.exit(1)


if __name__ == "__main__":
    main()
