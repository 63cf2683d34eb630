import re

import pytest

from afd_serve.progress import Step, task


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def work(step: Step, first: int = 1) -> None:
    for done in range(first, 5):
        step(done, 4, f"loss {0.5 / done:.3f}")


def test_where_there_is_no_terminal_a_line_comes_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with task("fitting", between_lines=0) as step:
        work(step)
    output, lines = capsys.readouterr()
    assert not output
    first, second, *_, last = lines.splitlines()
    assert first == "fitting: 1 of 4, loss 0.500"  # nothing to tell yet how long a step takes
    assert re.fullmatch(r"fitting: 2 of 4, loss 0\.250, 0:00:00 left", second)
    assert last == "fitting: 4 of 4, loss 0.125"


def test_between_two_lines_nothing_is_written_but_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with task("fitting", between_lines=3600) as step:
        work(step)
    assert capsys.readouterr().err.splitlines() == ["fitting: 4 of 4, loss 0.125"]


def test_what_was_done_before_tells_nothing_of_how_long_a_step_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with task("classifying", between_lines=0) as step:
        work(step, first=3)
    assert capsys.readouterr().err.splitlines()[0] == "classifying: 3 of 4, loss 0.167"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with task("fitting") as step:
        work(step)
    output, bar = capsys.readouterr()
    assert not output
    assert re.search(r"fitting .*━.*4/4.*loss 0\.125", bar)
