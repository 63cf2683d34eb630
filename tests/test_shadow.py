"""The second pass in shadow mode: how it compares, and that it harms nobody."""

import logging

import pytest
import torch
from torch import Tensor

from afd_serve.results import Failure, Shadow
from afd_serve.shadow import look

GIVEN = torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log()


def test_first_classes_and_their_confidence_are_compared() -> None:
    changed, agreed = look(GIVEN, lambda: torch.tensor([[0.375, 0.625], [0.875, 0.125]]).log())
    assert isinstance(changed, Shadow)
    assert isinstance(agreed, Shadow)
    assert (changed.disagrees, agreed.disagrees) == (True, False)
    assert changed.confidence_change == pytest.approx(0.625 - 0.75)
    assert agreed.confidence_change == pytest.approx(0.875 - 0.75)


def test_a_pass_that_fails_is_told_in_the_log_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Tensor:
        raise RuntimeError("out of memory\nand more")

    first, second = look(GIVEN, fail)
    assert isinstance(first, Failure)
    assert first == second
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "out of memory" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_pass_for_other_pictures_than_those_given_has_failed() -> None:
    assert [type(shadow) for shadow in look(GIVEN, lambda: GIVEN[:1])] == [Failure, Failure]


def test_what_is_no_number_is_no_comparison() -> None:
    bad, good = look(GIVEN, lambda: torch.tensor([[float("nan"), 0.0], [0.0, 0.0]]))
    assert isinstance(bad, Failure)
    assert isinstance(good, Shadow)


def test_no_pictures_cost_no_pass() -> None:
    assert look(GIVEN[:0], lambda: pytest.fail("a pass for nobody")) == []
