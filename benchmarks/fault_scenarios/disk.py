"""A disk that is full when a model is exported or packaged, and one that fills up under a server."""

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from afd_serve.servers import torchserve
from fault_scenarios.bench import Bench, Outcome
from fault_scenarios.questions import Endpoint
from fault_scenarios.traffic import Tally, ready_workers, recovered, under_load

__all__ = ["full_disk", "full_logs"]

ROOM = 8 << 20
"""Bytes that are free beside what lies there already: too few for a second one."""

TYPED = 2
"""The exit status of the command line for errors with a message of their own."""


IN_HAND = 2
"""Requests that a worker may have, and lose, when it is killed."""


async def full_logs(bench: Bench) -> Outcome:
    """A server whose logs' disk fills up, where a worker is killed meanwhile; then there is room again."""
    size = ROOM + 2 * bench.archive.stat().st_size
    with _small_disk(Path(tempfile.mkdtemp(dir=bench.scratch)), size) as (folder, limited):
        if limited:
            return Outcome(Tally(), 0.0, {"left out": "only root may mount a small disk"}, shared=False)
        try:
            return await _fill_and_free(bench, await bench.start(bench.archive, folder), folder)
        finally:
            await asyncio.to_thread(torchserve.TorchServe.stop, folder)


async def _fill_and_free(bench: Bench, endpoint: Endpoint, folder: Path) -> Outcome:
    log, rest = folder / "logs" / "access_log.log", folder / "rest"
    async with under_load(endpoint, bad_share=0.05) as traffic:
        await bench.wait(2, "load")
        _fill(rest)
        await bench.wait(bench.seconds / 3, "no room for logs")
        full = log.stat().st_size
        killed = min(await ready_workers(endpoint.server))
        os.kill(killed, signal.SIGKILL)
        await bench.wait(bench.seconds / 3, "no room for logs, and a worker killed")
        recovery = await recovered(endpoint, bench.workers, [killed])
        blocked = log.stat().st_size
        rest.unlink()
        await bench.wait(bench.seconds / 3, "room again")
    written = log.stat().st_size - blocked
    figures = {"access log while full, bytes": blocked - full, "access log with room again, bytes": written}
    complaints = [f"{traffic.tally.failed.total()} failed"] if traffic.tally.failed.total() > IN_HAND else []
    complaints += [] if written else ["nothing was logged when there was room again"]
    return Outcome(traffic.tally, recovery, figures, complaints, shared=False)


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


async def full_disk(bench: Bench) -> Outcome:
    """`afd-serve export` and `package torchserve` onto a full disk, without and with an earlier result there."""
    tally, figures, complaints = Tally(), dict[str, float | int | str](), list[str]()
    commands = {
        "package": (["package", "torchserve", "--model", str(bench.exported)], [bench.archive]),
        "export": (["export", "--model", "efficientnet-lite0"], list(bench.exported.iterdir())),
    }
    for name, (command, results) in commands.items():
        for earlier in ([], results):
            title = f"{name} {'over an earlier result' if earlier else 'into an empty folder'}"
            bench.say(title)
            said, found = await asyncio.to_thread(_run, bench.scratch, command, earlier)
            figures[title] = said
            complaints += [f"{title}: {problem}" for problem in found]
    return Outcome(tally, 0.0, figures, complaints, shared=False)


def _run(scratch: Path, command: list[str], earlier: list[Path]) -> tuple[str, list[str]]:
    """What the command said on the full disk, and what is wrong with what it did."""
    size = sum(file.stat().st_size for file in earlier)
    with _small_disk(Path(tempfile.mkdtemp(dir=scratch)), ROOM + size) as (folder, limited):
        for file in earlier:
            shutil.copyfile(file, folder / file.name)
        # Without a mount, no file may grow to the size of a model.
        limit = _limit_files if limited else None
        words = [sys.executable, "-c", "from afd_serve.cli import main; main()", *command, "--out", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=limit)
        lines = done.stderr.strip().splitlines()
        problems = [] if done.returncode == TYPED else [f"exit status {done.returncode}"]
        if len(lines) != 1:
            problems.append(f"the message has {len(lines)} lines")
        if _content(folder) != {file.name: file.read_bytes() for file in earlier}:
            problems.append(f"the folder changed: {sorted(_content(folder))}")
    said = lines[-1].replace(str(folder), "OUT") if lines else ""
    return f"{done.returncode}: {said}", problems


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[tuple[Path, bool]]:
    """A file system with so many bytes where root may mount one, else a folder and True: limit the files instead."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield folder, not mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
