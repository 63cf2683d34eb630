"""A disk that is full when a model is exported or packaged."""

import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_scenarios.bench import Bench, Outcome
from fault_scenarios.traffic import Tally

__all__ = ["full_disk"]

ROOM = 8 << 20
"""Bytes that are free beside what lies there already: too few for a second one."""

TYPED = 2
"""The exit status of the command line for errors with a message of their own."""


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
