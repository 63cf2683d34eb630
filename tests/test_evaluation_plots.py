"""The plots, and the drift maps of examples: what is chosen, what is drawn, what the maps say."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afd_serve.evaluation.dataset import LabelledPicture
from afd_serve.evaluation.drift_maps import DriftExample, choose_examples, drift_example, example_condition
from afd_serve.evaluation.metrics import Interval, ReliabilityBin
from afd_serve.evaluation.protocols import Condition, conditions
from afd_serve.evaluation.runner import Answer, Evaluation, Key
from afd_serve.evaluation.summary import ClassGain, ConditionReport, ProtocolReport, Report, Scores
from afd_serve.explain import Explainer
from afd_serve.models.backbones import Backbone
from tests.conftest import encoded, scene

HALF = Interval(0.5, 0.4, 0.6)


def report_of(*protocols: str, classes: tuple[ClassGain, ...] = ()) -> Report:
    scores, bins = Scores(HALF, HALF, 0.7, 0.1), (ReliabilityBin(3, 0.4, 0.5), ReliabilityBin(9, 0.9, 0.8))
    return Report(
        "model",
        "made",
        0,
        12,
        tuple(
            ProtocolReport(
                name,
                tuple(ConditionReport(c, scores, scores, HALF, 0.5, 1.0, 12, 10.0) for c in conditions([name])),
                *(HALF, HALF, HALF, None if name == "clean" else HALF, bins, bins),
            )
            for name in protocols
        ),
        classes,
    )


def example(scale: float = 1.0) -> DriftExample:
    values = np.linspace(0, scale, 64, dtype=np.float32).reshape(8, 8)
    return DriftExample("a picture", np.zeros((64, 64, 3), np.uint8), values, values, values)


def plotted(report: Report, out: Path, examples: tuple[DriftExample, ...] = ()) -> set[str]:
    plots = pytest.importorskip("afd_serve.evaluation.plots")
    drawn = plots.draw_plots(report, out, examples)
    for plot in drawn:
        with Image.open(plot.path) as picture:
            assert np.ptp(np.asarray(picture.convert("L"))) > 100  # there is something on it
        assert plot.caption
        assert plot.note
    return {plot.path.name for plot in drawn}


def test_there_is_a_plot_for_all_that_was_found_and_for_nothing_else(tmp_path: Path) -> None:
    changed = (ClassGain("won", 1, 0.2, 0.8), ClassGain("lost", 2, 0.8, 0.2), ClassGain("same", 1, 1.0, 1.0))
    assert plotted(report_of("clean"), tmp_path) == {"reliability.png"}
    assert plotted(report_of("clean", "C", classes=changed[2:]), tmp_path) == {"reliability.png"}
    assert plotted(report_of("clean", "C", classes=changed[1:]), tmp_path) == {"reliability.png", "classes.png"}
    everything = report_of("clean", "A", "B", "C", "resave", "webp", "avif", classes=changed)
    assert plotted(everything, tmp_path, (example(), example(0.5))) == {
        "accuracy.png",
        "reliability.png",
        "classes.png",
        "drift_maps.png",
    }


def test_an_earlier_reports_plots_do_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    plotted(report_of("clean", "A"), tmp_path, (example(),))
    (tmp_path / "notes.png").touch()
    assert plotted(report_of("clean"), tmp_path) == {"reliability.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"reliability.png", "notes.png"}


def test_examples_without_any_drift_can_be_drawn(tmp_path: Path) -> None:
    assert "drift_maps.png" in plotted(report_of("clean"), tmp_path, (example(0.0),))


def test_many_classes_and_long_names_are_cut(tmp_path: Path) -> None:
    classes = tuple(ClassGain(f"a very long name of a class, number {k}", 3, 0.5, 0.4 + k / 100) for k in range(60))
    assert "classes.png" in plotted(report_of("clean", "C", classes=classes), tmp_path)
    with Image.open(tmp_path / "classes.png") as picture:
        assert picture.height < 1000


def test_dollars_in_names_are_no_formulas(tmp_path: Path) -> None:
    priced = ClassGain(r"$\nothing$ \$ $5", 1, 0.2, 0.8), ClassGain("50 $ note", 1, 0.8, 0.2)
    drift = replace(example(), title="$\\frac$\nwithout AFD: $_$\nwith AFD: $")
    assert "drift_maps.png" in plotted(report_of("clean", "A", classes=priced), tmp_path, (drift,))


def test_names_that_no_font_can_show_are_drawn_and_nobody_is_told(tmp_path: Path) -> None:
    foreign = ClassGain("\u9db4", 1, 0.2, 0.8), ClassGain("no utf-8: \udcff", 1, 0.8, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drift = replace(example(), title="\u9db4\n\udcff\nwith AFD: crow")
        assert "classes.png" in plotted(report_of("clean", "A", classes=foreign), tmp_path, (drift,))


def test_a_colour_bar_that_some_cell_is_beyond_ends_in_an_arrow() -> None:
    plots = pytest.importorskip("afd_serve.evaluation.plots")
    even = replace(example(), **dict.fromkeys(("found", "actual", "remaining"), np.full((8, 8), 0.5, np.float32)))
    bars = [plots._drift_maps([shown]).axes[-1] for shown in (even, example(), replace(even, found=2 * even.found))]
    assert [len(bar.patches) for bar in bars] == [0, 1, 1]


def test_ticks_of_neighbouring_panels_are_apart() -> None:
    plots = pytest.importorskip("afd_serve.evaluation.plots")
    figure = plots._reliability(report_of("clean", "A", "B", "C").protocols)
    figure.draw_without_rendering()
    first, second = (panel.get_xticklabels() for panel in figure.axes[:2])
    assert second[0].get_window_extent().x0 - first[-1].get_window_extent().x1 > 1.5 * first[-1].get_fontsize()


@pytest.mark.parametrize(
    ("protocols", "expected"),
    [
        (("clean",), None),
        (("clean", "A"), "A/10"),
        (("clean", "C", "B"), "B/10"),
        (("clean", "C"), "C/5"),
        (("clean", "resave"), "resave"),
    ],
)
def test_the_condition_that_is_shown(protocols: tuple[str, ...], expected: str | None) -> None:
    condition = example_condition(protocols)
    assert (condition.key if condition else None) == expected


def test_examples_are_mostly_won_and_one_is_lost() -> None:
    condition = Condition("A", 10)
    pictures = [LabelledPicture(str(index), Path(str(index)), 1) for index in range(30)]
    answers: dict[Key, Answer] = {}
    for index, picture in enumerate(pictures):
        bare, afd = (0, 1) if index < 10 else (1, 0) if index < 13 else (1, 1)  # won, lost, right all along
        answers |= {(picture.id, "A/10", on): Answer((first, 7)) for on, first in ((False, bare), (True, afd))}
    chosen = choose_examples(answers, pictures, condition)
    assert len({picture.id for picture in chosen}) == len(chosen) == 5
    assert [int(picture.id) < 10 for picture in chosen] == [True] * 4 + [False]
    assert chosen[4].id == "10"
    assert len(choose_examples(answers, pictures[13:], condition)) == 5
    assert len(choose_examples(answers, pictures[:2], condition)) == 2


def test_the_maps_of_an_example(tiny: Backbone, tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(scene(120, 90), "PNG"))
    picture, explainer = LabelledPicture("picture.png", path, 3), Explainer.load(tiny_run)
    evaluation = Evaluation("tiny", "made", tiny.preprocessing, ("clean", "A"))
    found = drift_example(explainer, picture, Condition("A", 10), evaluation, tiny.labels)
    assert found.title.startswith("class 3, QF 10")
    assert found.found.shape == found.actual.shape == found.remaining.shape == (8, 8)
    assert found.found.any()
    assert found.actual.any()
    clean = drift_example(explainer, picture, Condition("clean"), replace(evaluation), tiny.labels)
    assert not clean.found.any()
    assert not clean.actual.any()
    assert not clean.remaining.any()
    torn = drift_example(explainer, picture, Condition("clean"), evaluation, ["two\nlines"] * 10)
    assert torn.title.splitlines()[0] == r"two\nlines, as it is"
