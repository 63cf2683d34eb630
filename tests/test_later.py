"""Work that is left for later: none is lost at the end, and no fault ends it."""

import logging
import threading

import pytest

from afd_serve import later
from afd_serve.later import Later


def test_what_comes_while_the_action_runs_is_not_lost_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "_EVERY", 0.01)
    recorded, passed_on = [1], list[int]()
    running, go_on = threading.Event(), threading.Event()

    def action() -> None:
        passed_on.extend(recorded)
        recorded.clear()
        running.set()
        go_on.wait(20)

    work = Later(action)
    work.ask()
    assert running.wait(20)
    recorded.append(2)
    closing = threading.Thread(target=work.close)
    closing.start()
    while not work._closed.is_set():
        closing.join(0.01)
    go_on.set()
    closing.join(20)
    assert not closing.is_alive()
    assert passed_on == [1, 2]


def test_a_fault_is_logged_and_the_next_call_is_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(later, "_EVERY", 0.01)
    runs, failed, served = list[int](), threading.Event(), threading.Event()

    def action() -> None:
        runs.append(1)
        if len(runs) == 1:
            failed.set()
            raise OSError("no space left")
        served.set()

    work = Later(action)
    with caplog.at_level(logging.ERROR):
        work.ask()
        assert failed.wait(20)
        work.ask()
        assert served.wait(20)
        work.close()
    assert "no space left" in caplog.text


def test_closing_runs_the_action_though_nobody_asked() -> None:
    runs: list[int] = []
    Later(lambda: runs.append(1)).close()
    assert runs == [1]
