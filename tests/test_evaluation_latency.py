"""Timing: what is measured, not how fast it is."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afd_serve.engines import ENGINES
from afd_serve.errors import ConfigError
from afd_serve.evaluation.latency import Forms, deployed_forms, exported_forms, measure, time_forms
from afd_serve.export import eager_classifier, example_inputs, export_classifier
from afd_serve.models.precision import with_trunks_in
from tests.tiny_backbone import SIZE

CHOICES = [
    (engine, precision)
    for engine, facts in ENGINES.items()
    for precision in facts.precisions
    if precision != "float16"  # which is for a GPU
]


class Clock:
    """A clock that every call of a form sets forward by the seconds it takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def form(self, name: str, seconds: Iterator[float]) -> None:
        self.order.append(name)
        self.now += next(seconds)

    def forms(self, bare: list[float], closed: list[float], opened: list[float]) -> Forms:
        seconds = {name: itertools.cycle(values) for name, values in (("b", bare), ("c", closed), ("o", opened))}
        return Forms(*(lambda name=name: self.form(name, seconds[name]) for name in "bco"))

    def __call__(self) -> float:
        return self.now


def test_forms_take_turns() -> None:
    clock = Clock()
    seconds = time_forms(clock.forms([1.0], [2.0], [3.0]), 4, clock)
    assert seconds.tolist() == [[1.0, 2.0, 3.0]] * 4
    assert "".join(clock.order).endswith("bco" * 4)


def test_the_first_rounds_warm_up_and_do_not_count() -> None:
    clock, cold_then_warm = Clock(), [9.0] * 5 + [1.0] * 4
    assert time_forms(clock.forms(cold_then_warm, cold_then_warm, cold_then_warm), 4, clock).tolist() == [[1.0] * 3] * 4


def test_ratios_are_of_medians_and_have_intervals() -> None:
    clock = Clock()
    found = measure(clock.forms([0.01], [0.011, 0.011, 0.02], [0.012, 0.012, 0.012, 0.5]), 60, clock)
    assert found.bare_ms == pytest.approx(10.0)
    assert found.closed.value == pytest.approx(1.1)
    assert found.opened.value == pytest.approx(1.2)
    assert found.closed.low <= found.closed.value <= found.closed.high < 3
    assert found.opened.low <= found.opened.value <= found.opened.high < 10
    assert (found.rounds, found.batch) == (60, 1)


def test_milliseconds_are_those_of_one_picture() -> None:
    clock = Clock()
    found = measure(replace(clock.forms([0.04], [0.06], [0.08]), batch=4), 3, clock)
    assert (found.bare_ms, found.batch) == (pytest.approx(10.0), 4)
    assert (found.closed.value, found.opened.value) == (pytest.approx(1.5), pytest.approx(2.0))


def test_one_thread_while_it_measures_and_as_before_afterwards() -> None:
    seen: list[int] = []
    call = lambda: seen.append(torch.get_num_threads())  # noqa: E731
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure(Forms(call, call, call), 1)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="round"):
        measure(Forms(int, int, int), 0)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_forms_are_the_deployed_classifier_and_its_backbone(tiny_run: Path, tmp_path: Path, batch: int) -> None:
    for source in (tiny_run, export_classifier(tiny_run, tmp_path).folder):
        check(deployed_forms(source, batch), batch)


@pytest.mark.parametrize(("engine", "precision"), CHOICES)
def test_the_bare_backbone_runs_in_the_engine_and_precision_of_the_classifier(
    tiny_run: Path, engine: str, precision: str
) -> None:
    check(exported_forms(tiny_run, engine, precision, batch=2), 2)


def check(forms: Forms, batch: int) -> None:
    """A closed gate gives the backbone's own logits, which another engine or precision would only come near."""
    (closed, _), (opened, _) = forms.closed(), forms.opened()
    bare = torch.as_tensor(forms.bare())
    assert bare.shape == (batch, 10)
    assert torch.equal(bare, closed)
    assert not torch.allclose(bare, opened)


def test_in_bfloat16_both_trunks_are_and_nothing_else(tiny_run: Path) -> None:
    classifier = eager_classifier(tiny_run)
    cast = with_trunks_in(classifier, torch.bfloat16)
    for trunk in (cast.bare, cast.protected):
        assert {parameter.dtype for parameter in trunk.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in cast.afd.fde.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in classifier.parameters()} == {torch.float32}
    inputs = example_inputs(SIZE)
    logits, drift = cast(*inputs)
    expected, expected_drift = classifier(*inputs)
    assert logits.dtype == torch.float32
    assert torch.equal(drift, expected_drift)
    torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.1)
