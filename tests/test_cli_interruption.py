"""Commands that take long end in one line when they are told to end, and lose nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from torch.utils.data import DataLoader, Dataset

from afd_serve.cli.interruption import interruptible
from tests import tiny_backbone
from tests.conftest import Run


@pytest.fixture
def _terminal() -> Iterator[None]:
    """Signals as a terminal's processes have them: the tests may run under nohup, which ignores one."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_terminal")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_fit_that_is_told_to_end_saves_its_state(
    picture_folder: Callable[[int], Path], tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "run"
    settings = ("--images", picture_folder(4), "--out", out, "--steps", 10**6, "--batch-size", 2, "--workers", 0)
    command = [sys.executable, "-m", "afd_serve", "fit", "--backbone", f"file:{tiny_backbone.__file__}", *settings]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as fit:
        try:
            while fit.poll() is None and not (out / "log.jsonl").exists():
                time.sleep(0.1)
            fit.send_signal(how)
            fit.send_signal(how)  # as a terminal that is closed does: for its shell, and for itself
            _, err = fit.communicate(timeout=60)
        finally:
            fit.kill()
    last = err.splitlines()[-1]
    assert (fit.returncode, last) == (130, "interrupted; the same command goes on from the last step")
    assert (out / "state.safetensors").exists()


@pytest.mark.usefixtures("_terminal")
def test_what_nohup_lets_ignore_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible("interrupted"):
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


class Dropping:
    """Its destructor is interrupted, whose exceptions Python drops: as it does with the callbacks around a fork."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_an_interruption_that_python_drops_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        Dropping()
        for _ in range(6_000):
            time.sleep(0.01)

    with pytest.raises(typer.Exit), interruptible("interrupted"):
        work()
    assert capsys.readouterr().err == "interrupted\n"


class Ended(Dataset[int]):
    """Ends the process that reads from it, as systemd does to all of a service's, or Linux where memory runs out."""

    def __getitem__(self, _index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def __len__(self) -> int:
        return 1


def test_the_end_of_a_process_that_loads_pictures_is_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exit_info, interruptible("interrupted; it goes on"):
        next(iter(DataLoader(Ended(), num_workers=1)))
    assert exit_info.value.exit_code == 130
    assert capsys.readouterr().err.startswith("interrupted; it goes on (DataLoader worker")


@pytest.mark.usefixtures("_terminal")
@pytest.mark.parametrize("server", ["torchserve", "triton"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_start_can_be_interrupted_by_a_signal(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str, how: signal.Signals
) -> None:
    ended = []

    def start(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(how)
        finally:
            ended.append(server)

    module = {"torchserve": "quickstart", "triton": "triton_quickstart"}[server]
    monkeypatch.setattr(f"afd_serve.servers.{module}.serve_{server}", start)
    status, out, err = run("serve", server, "--state-dir", tmp_path)
    assert (status, out, err) == (130, "", "interrupted; what was being started has ended\n")
    assert ended == [server]
