"""What a report says of few pictures, of what is not defined, and of names that Markdown cannot take."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from afd_serve.evaluation.metrics import Interval
from afd_serve.evaluation.protocols import conditions
from afd_serve.evaluation.report import print_report, write_report
from afd_serve.evaluation.summary import ConditionReport, ProtocolReport, Report, Scores
from afd_serve.evaluation.wording import printable

HALF, UNDEFINED = Interval(0.5, 0.4, 0.6), Interval(math.nan, math.nan, math.nan)


def protocol(name: str, recovered: Interval | None = None) -> ProtocolReport:
    scores = Scores(HALF, HALF, 0.5, 0.1)
    found = tuple(ConditionReport(c, scores, scores, HALF, 0.5, 1.0, 1, 10.0) for c in conditions([name]))
    return ProtocolReport(name, found, HALF, HALF, HALF, recovered, (), ())


@pytest.fixture
def report() -> Report:
    return Report("model", "made", 0, 1, (protocol("clean"), protocol("resave", UNDEFINED)), resave_gap=UNDEFINED)


def text_of(report: Report) -> str:
    console = Console(width=300, record=True, file=io.StringIO())
    print_report(report, console)
    return console.export_text()


def test_one_picture_is_one_picture(report: Report) -> None:
    text = text_of(replace(report, failures={"gone.jpg": "cannot be read"}))
    assert "the gate opened for 1 of 1 picture\n" in text
    assert "1 picture of made; 1 could not be read and is left out. Per cent" in text
    many = text_of(replace(report, pictures=2, failures={"a.jpg": "", "b.jpg": ""}))
    assert "2 pictures of made; 2 could not be read and are left out. Per cent" in many


def test_what_is_not_defined_is_no_number_of_points(report: Report, tmp_path: Path) -> None:
    told = "Recovered of the lost top-1: not defined; how that compares with QF 10 alone is not defined\n"
    assert told in text_of(report)
    write_report(report, tmp_path)
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["resave_gap"] == {"value": None, "low": None, "high": None}


def test_names_in_brackets_are_no_markup(report: Report) -> None:
    assert "1 picture of /some/[bold]/[/] set." in text_of(replace(report, dataset="/some/[bold]/[/] set"))


def test_what_is_left_out_has_one_line_each_whatever_its_name(report: Report, tmp_path: Path) -> None:
    failures = {"cat/two\nlines.jpg": "cannot be read:\r\nno picture", "cat/`.jpg": "is empty"}
    write_report(replace(report, failures=failures), tmp_path)
    assert (tmp_path / "report.md").read_text().splitlines()[-2:] == [
        r"- `cat/two\nlines.jpg`: cannot be read:\r\nno picture",
        "- `` cat/`.jpg ``: is empty",
    ]


def test_letters_of_every_script_stay_as_they_are() -> None:
    assert printable("Krähe, 鶴, 👩\u200d🌾, a\u00a0b") == "Krähe, 鶴, 👩\u200d🌾, a\u00a0b"
    assert printable("a\u2028b\x00\udcff") == r"a\u2028b\x00\udcff"


def test_a_plot_that_fails_takes_no_figures_with_it(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", None)
    with pytest.raises(TypeError):
        write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["pictures"] == 1
    assert "how that compares with QF 10 alone is not defined" in (tmp_path / "report.md").read_text()
