"""Processes and logs of the servers that we start: finding them, seeing them end, reading what they say."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from afd_serve.errors import DependencyError, ServingError

try:
    import psutil
except ModuleNotFoundError as error:
    raise DependencyError(
        "psutil is not installed: pip install 'afd-serve[torchserve]' or 'afd-serve[triton]'"
    ) from error

__all__ = ["end", "kill_marked", "listener", "read_log", "runs", "started_at"]

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def read_log(state_dir: Path, name: str = "model_log.log") -> str:
    """The text of one of a server's logs, the workers' by default; empty where there is none yet."""
    path = state_dir / "logs" / name
    return path.read_text(errors="replace") if path.is_file() else ""


def started_at(pid: int) -> str:
    """Since which moment a process runs, as words to compare: together with its id, they name it for good.

    Raises:
        ServingError: It has ended already.
    """
    try:
        return _start(pid)
    except psutil.NoSuchProcess as error:
        raise ServingError("the server ended as soon as it had started") from error


def runs(pid: int, started: str) -> bool:
    """Whether the process with this id of which `started_at` said ``started`` still runs."""
    try:
        return _start(pid) == started and not _ended(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def end(pid: int, timeout: float) -> None:
    """End a process and all that it started; what has not ended after ``timeout`` seconds is killed.

    Raises:
        ServingError: It is another user's.
    """
    try:
        first = psutil.Process(pid)
        # The children come into the list first: once their parent is gone, nothing tells whose they were.
        family = [*first.children(recursive=True), first]
        first.terminate()
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise ServingError(
            f"the server, process {pid}, is another user's: only that user or root can stop it"
        ) from error
    for process in _wait_for_end(family, timeout):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_for_end(family, 5)


def kill_marked(mark: str) -> None:
    """Kill every process but this one whose command line has a word that contains ``mark``."""
    for pid in psutil.pids():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)  # process_iter keeps earlier ones, and kills no other that has their id now
            if pid != os.getpid() and any(mark in word for word in process.cmdline()):
                process.kill()


def listener(port: int) -> str:
    """Who listens on a TCP port, as the end of a clause; empty where the system does not tell this account."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def _start(pid: int) -> str:
    """What `started_at` says; NoSuchProcess where the process has ended."""
    if sys.platform != "linux":
        return str(psutil.Process(pid).create_time())
    # psutil's time follows every correction of the system's clock. The kernel counts ticks from each boot on.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return f"{fields[19]} ticks after boot {_BOOT_ID.read_text().strip()}"


def _wait_for_end(family: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those that have not ended in time."""
    deadline = time.monotonic() + timeout
    while True:
        family = [process for process in family if not _ended(process)]
        if not family or time.monotonic() > deadline:
            return family
        time.sleep(0.05)


def _ended(process: psutil.Process) -> bool:
    try:
        # A zombie has ended: in a container, nobody may ever collect it.
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
