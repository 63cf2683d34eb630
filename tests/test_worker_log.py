"""Log lines that wait for one another, and those that do not."""

import io
import logging
import time
from collections.abc import Iterator

import pytest

from afd_serve import later, worker_log
from afd_serve.worker_log import hold_back

WAIT = 30.0
"""Seconds; nothing here should take any of them."""


class Log:
    """A logger of its own that writes to a stream, held back."""

    def __init__(self, name: str) -> None:
        self.stream = io.StringIO()
        self.logger = logging.Logger(name)
        self.logger.addHandler(logging.StreamHandler(self.stream))
        hold_back(self.logger, self.stream)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def wait_for(self, count: int) -> list[str]:
        deadline = time.monotonic() + WAIT
        while len(self.lines) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.lines


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    made = Log(request.node.name)
    yield made
    for handler in made.logger.handlers:
        handler.close()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines wait longer than any test."""
    monkeypatch.setattr(later, "_EVERY", 10 * WAIT)


@pytest.mark.usefixtures("patience")
def test_lines_wait(log: Log) -> None:
    log.logger.info("one")
    log.logger.info("two")
    assert log.lines == []


def test_lines_arrive_a_moment_later_in_their_order(log: Log) -> None:
    for number in range(5):
        log.logger.info("line %d", number)
    assert log.wait_for(5) == [f"line {number}" for number in range(5)]
    log.logger.info("and another moment's")
    assert log.wait_for(6)[5:] == ["and another moment's"]


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_a_warning_takes_what_waits_along(log: Log, level: int) -> None:
    log.logger.info("before")
    log.logger.log(level, "now")
    log.logger.info("after")
    assert log.lines == ["before", "now"]


@pytest.mark.usefixtures("patience")
def test_no_more_lines_wait_than_memory_should_hold(log: Log) -> None:
    for number in range(worker_log._MOST):
        log.logger.info("line %d", number)
    assert len(log.lines) == worker_log._MOST


@pytest.mark.usefixtures("patience")
def test_what_waits_is_written_when_the_process_ends_by_itself(log: Log) -> None:
    log.logger.info("last words")
    for handler in log.logger.handlers:
        handler.close()  # as logging.shutdown does at exit
    assert log.lines == ["last words"]


@pytest.mark.usefixtures("patience")
def test_other_streams_are_left_alone() -> None:
    stream, other = io.StringIO(), io.StringIO()
    logger = logging.Logger("other")
    logger.addHandler(logging.StreamHandler(other))
    hold_back(logger, stream)
    logger.info("at once")
    assert other.getvalue() == "at once\n"
