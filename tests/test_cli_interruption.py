"""Commands that take long end in one line when they are told to end, and lose nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from afd_serve.checkpoint import save_afd
from afd_serve.models.backbones import Backbone
from tests import tiny_backbone
from tests.conftest import awakened, in_a_process_of_its_own

# Signals as a terminal's processes have them: the tests may run under nohup, which ignores one.
_IN_A_TERMINAL = """
import signal
from afd_serve.cli import main

signal.signal(signal.SIGHUP, signal.SIG_DFL)
main()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_fit_that_is_told_to_end_can_go_on(
    picture_folder: Callable[[int], Path], tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "run"
    state = out / "state.safetensors"  # within a step there is nothing to save but what was saved before
    settings = ("--images", picture_folder(4), "--out", out, "--steps", 10**6, "--batch-size", 2, "--workers", 0)
    command = [sys.executable, "-c", _IN_A_TERMINAL, "fit", "--backbone", f"file:{tiny_backbone.__file__}", *settings]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as fit:
        try:
            while fit.poll() is None and not state.exists():
                time.sleep(0.1)
            fit.send_signal(how)
            fit.send_signal(how)  # as a terminal that is closed does: for its shell, and for itself
            _, err = fit.communicate(timeout=60)
        finally:
            fit.kill()
    last = err.splitlines()[-1]
    assert (fit.returncode, last) == (130, "interrupted; the same command goes on from the last saved step")
    with safe_open(state, framework="pt") as saved:
        assert json.loads(saved.metadata()["done"])["step"] >= 200


_NOHUP = """
import signal
from afd_serve.cli.interruption import interruptible

signal.signal(signal.SIGHUP, signal.SIG_IGN)
with interruptible("interrupted"):
    signal.raise_signal(signal.SIGHUP)
print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
"""


def test_what_nohup_lets_ignore_is_ignored() -> None:
    assert in_a_process_of_its_own(_NOHUP) == (0, "True\n", "")


# Python drops what destructors raise, as it does with the callbacks around a fork.
_DROPPED = """
import signal, time, typer
from afd_serve.cli.interruption import interruptible

class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

def work():
    Dropping()
    print("goes on")
    time.sleep(600)

try:
    with interruptible("interrupted"):
        work()
except typer.Exit as end:
    print(end.exit_code)
"""


def test_an_interruption_that_python_drops_comes_again() -> None:
    assert in_a_process_of_its_own(_DROPPED) == (0, "goes on\n130\n", "interrupted\n")


# As systemd ends all of a service's processes, or Linux one of them where memory runs out.
_LOADER_ENDED = """
import os, signal, typer
from torch.utils.data import DataLoader, Dataset
from afd_serve.cli.interruption import interruptible

class Ended(Dataset):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)

    def __len__(self):
        return 1

try:
    with interruptible("interrupted; it goes on"):
        next(iter(DataLoader(Ended(), num_workers=1)))
except typer.Exit as end:
    print(end.exit_code)
"""


def test_the_end_of_a_process_that_loads_pictures_is_an_interruption() -> None:
    status, out, err = in_a_process_of_its_own(_LOADER_ENDED)
    assert (status, out) == (0, "130\n")
    assert err.startswith("interrupted; it goes on (DataLoader worker")


# What a set raises in a loader's process comes out of PyTorch as an error of the same kind that names the process.
_LOADER_FAILED = """
from torch.utils.data import DataLoader, Dataset
from afd_serve.cli.interruption import interruptible

class Failing(Dataset):
    def __getitem__(self, index):
        raise RuntimeError("out of pictures")

    def __len__(self):
        return 1

try:
    with interruptible("interrupted; it goes on"):
        next(iter(DataLoader(Failing(), num_workers=1)))
except RuntimeError as error:
    print(str(error).splitlines()[-1])
"""


def test_an_error_in_a_process_that_loads_pictures_is_no_interruption() -> None:
    assert in_a_process_of_its_own(_LOADER_FAILED) == (0, "RuntimeError: out of pictures\n", "")


# Ctrl-C while a module is imported, where Python drops what is raised, as in the callbacks of the import's own locks.
_IMPORTING = """
import signal, sys, time
from afd_serve.cli import main

class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

class Finder:
    def find_spec(name, path=None, target=None):
        if name == sys.argv[1]:
            Dropping()
            time.sleep(60)

sys.meta_path.insert(0, Finder)
# Where a shell has started Python in the background, SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("module", "command", "goes_on"),
    [
        ("afd_serve.training.fit", ("fit", "--backbone", "efficientnet-lite0", "--images"), "from the last saved step"),
        ("afd_serve.evaluation.report", ("evaluate", "--images"), "from here"),
        ("afd_serve.evaluation.compare", ("compare", "--labelled", ".", "--images"), "from the row that is not done"),
    ],
)
def test_an_interruption_while_modules_are_imported_is_not_lost(
    tmp_path: Path, module: str, command: tuple[str, ...], goes_on: str
) -> None:
    ended = in_a_process_of_its_own(_IMPORTING, module, *command, str(tmp_path), "--out", str(tmp_path / "out"))
    assert ended == (130, "", f"interrupted; the same command goes on {goes_on}\n")


_STARTED = """
import signal, sys
from pathlib import Path
from afd_serve.cli import main
from afd_serve.servers import quickstart, triton_quickstart

def start(*_, **__):
    try:
        signal.raise_signal(int(sys.argv[2]))
    finally:
        print("ended")

quickstart.serve_torchserve = triton_quickstart.serve_triton = start
signal.signal(signal.SIGHUP, signal.SIG_DFL)
main(["serve", sys.argv[1], "--state-dir", sys.argv[3]])
"""


@pytest.mark.parametrize("server", ["torchserve", "triton"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_start_can_be_interrupted_by_a_signal(tmp_path: Path, server: str, how: signal.Signals) -> None:
    ended = in_a_process_of_its_own(_STARTED, server, str(int(how)), str(tmp_path))
    assert ended == (130, "ended\n", "interrupted; what was being started has ended\n")


_SLOW_BACKBONE = """
import os, signal, time
from pathlib import Path

def backbone():
    Path(__file__).with_name("exporting").write_text(str(os.getpid()))
    os.kill(int(os.environ["TO_BE_TOLD"]), signal.SIGTERM)
    time.sleep(60)
"""

_TOLD_TO_END = """
import os, sys
from afd_serve.cli import main

os.environ["TO_BE_TOLD"] = str(os.getpid())
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", [["export"], ["package", "torchserve"], ["package", "triton"]], ids=" ".join)
def test_an_export_that_is_told_to_end_leaves_nothing_behind(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    slow, temporary = tmp_path / "slow.py", tmp_path / "temporary"
    slow.write_text(_SLOW_BACKBONE)
    save_afd(awakened(replace(tiny, name=f"file:{slow}")), tmp_path / "afd.safetensors")
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = sorted(tmp_path.iterdir())
    ended = in_a_process_of_its_own(_TOLD_TO_END, *command, "--model", str(tmp_path), "--out", str(tmp_path / "out"))
    assert ended == (130, "", "interrupted; the same command starts over\n")
    exporting = tmp_path / "exporting"
    with pytest.raises(ProcessLookupError):
        os.kill(int(exporting.read_text()), 0)
    assert sorted(tmp_path.iterdir()) == sorted([*before, exporting])
    assert not list(temporary.iterdir())
