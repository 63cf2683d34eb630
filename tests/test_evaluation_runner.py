"""Evaluating a real, small classifier: files in, figures out, interruptions survived."""

import io
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from afd_serve.errors import ConfigError
from afd_serve.evaluation.dataset import LabelledPicture, load_labelled
from afd_serve.evaluation.latency import Latency
from afd_serve.evaluation.metrics import Interval
from afd_serve.evaluation.protocols import compress, conditions
from afd_serve.evaluation.report import print_report, write_report
from afd_serve.evaluation.runner import RESULTS_FILE, Answer, Evaluation, evaluate
from afd_serve.evaluation.summary import Report, summarize
from afd_serve.models.backbones import Preprocessing
from afd_serve.pipeline import Failure, Pipeline, Prediction

PROTOCOLS = ("clean", "A", "C")


class CountingPipeline:
    """The real pipeline, which also counts its items and can be interrupted."""

    def __init__(self, pipeline: Pipeline, stop_after: int | None = None) -> None:
        self.pipeline, self.stop_after, self.items = pipeline, stop_after, 0

    def predict(
        self, items: Sequence[bytes], *, top_k: int = 5, afd: bool | Sequence[bool] = True, crop: bool = True
    ) -> list[Prediction | Failure]:
        if self.stop_after is not None and self.items >= self.stop_after:
            raise KeyboardInterrupt
        self.items += len(items)
        return self.pipeline.predict(items, top_k=top_k, afd=afd, crop=crop)


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> Pipeline:
    return Pipeline.load(tiny_run, threads=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledPicture]:
    root = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    for label in ("cat", "dog", "owl"):
        (root / label).mkdir()
        for index in range(2):
            pixels = random.integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).resize((120, 90)).save(root / label / f"{index}.png")
    return load_labelled(root, ("cat", "dog", "owl"))


@pytest.fixture
def evaluation(pipeline: Pipeline) -> Evaluation:
    return Evaluation("tiny", "made", pipeline.signature.preprocessing, PROTOCOLS, seed=3, top_k=3, batch_size=4)


def test_answers_are_the_pipelines_own(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []

    def told(done: int, total: int) -> None:
        seen.append((done, total))
        assert len((tmp_path / RESULTS_FILE).read_text().splitlines()) == 1 + done, "each answer is kept as it comes"

    answers = evaluate(pipeline, pictures, evaluation, tmp_path, told)
    wanted = conditions(PROTOCOLS)
    assert len(answers) == len(pictures) * len(wanted) * 2
    assert seen[-1] == (len(answers), len(answers))
    picture, data = pictures[3], pictures[3].path.read_bytes()
    for condition, afd in itertools.product((wanted[2], wanted[-1]), (True, False)):  # the last one's draws are seeded
        file = compress(data, condition, evaluation.preprocessing, picture_id=picture.id, seed=3)
        (expected,) = pipeline.predict([file], top_k=3, afd=afd, crop=condition.crop)
        assert isinstance(expected, Prediction)
        answer = answers[picture.id, condition.key, afd]
        assert answer.indices == expected.indices
        assert answer.confidence == expected.probabilities[0]
        assert (answer.quality, answer.drift) == (expected.estimated_quality, expected.drift)
        assert answer.protected is expected.protected is afd


def test_an_interrupted_run_goes_on_where_it_stopped(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path
) -> None:
    first = CountingPipeline(pipeline, stop_after=20)
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, pictures, evaluation, tmp_path)
    with (tmp_path / RESULTS_FILE).open("a") as file:
        file.write('{"picture": "cat/0.png", "cond')  # torn by the interruption
    second = CountingPipeline(pipeline)
    resumed = evaluate(second, pictures, evaluation, tmp_path)
    assert first.items + second.items == len(resumed) == len(pictures) * 2 * len(conditions(PROTOCOLS))
    assert resumed == evaluate(pipeline, pictures, evaluation, tmp_path / "at once")
    third = CountingPipeline(pipeline)
    assert evaluate(third, pictures, evaluation, tmp_path) == resumed
    assert third.items == 0


@pytest.mark.parametrize("kept", [True, False])
def test_a_picture_whose_answers_were_written_by_half_is_classified_again_and_counted_once(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path, kept: bool
) -> None:
    clean, path = replace(evaluation, protocols=("clean",)), tmp_path / RESULTS_FILE
    answers = evaluate(pipeline, pictures, clean, tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "".join(row for row in lines[1:] if json.loads(row)["afd"] is kept))
    seen: list[tuple[int, int]] = []
    assert evaluate(pipeline, pictures, clean, tmp_path, lambda done, total: seen.append((done, total))) == answers
    assert seen[-1] == (len(answers), len(answers))
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines)


@pytest.mark.parametrize("left", ["", '{"evaluation": "4'])
def test_a_run_that_could_not_even_begin_its_file_is_begun_anew(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path, left: str
) -> None:
    (tmp_path / RESULTS_FILE).write_text(left)  # as a full disk leaves it
    clean = replace(evaluation, protocols=("clean",))
    answers = evaluate(pipeline, pictures, clean, tmp_path)
    counting = CountingPipeline(pipeline)
    assert evaluate(counting, pictures, clean, tmp_path) == answers
    assert counting.items == 0


def test_a_damaged_file_of_answers_is_explained(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path
) -> None:
    clean = replace(evaluation, protocols=("clean",))
    evaluate(pipeline, pictures, clean, tmp_path)
    with (tmp_path / RESULTS_FILE).open("ab") as file:
        file.write(bytes(100) + b"\n")
    with pytest.raises(ConfigError, match="damaged"):
        evaluate(pipeline, pictures, clean, tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        "[]",
        "3",
        "null",
        "{}",
        '{"picture": "cat/0.png", "condition": "clean", "afd": true}',
        '{"picture": "cat/0.png", "condition": "clean", "afd": true, "indices": 3}',
        '{"picture": "cat/0.png", "condition": "clean", "afd": true, "indices": [], "more": 1}',
        '{"picture": [], "condition": "clean", "afd": true, "indices": []}',
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_row_that_is_no_answer_is_explained(
    pipeline: Pipeline,
    pictures: list[LabelledPicture],
    evaluation: Evaluation,
    tmp_path: Path,
    row: str,
    first: bool,
) -> None:
    clean, path = replace(evaluation, protocols=("clean",)), tmp_path / RESULTS_FILE
    evaluate(pipeline, [], clean, tmp_path)
    path.write_text(f"{row}\n{path.read_text()}" if first else f"{path.read_text()}{row}\n")
    with pytest.raises(
        ConfigError, match=rf"{RESULTS_FILE} is damaged \(.*\); choose another folder or delete the file"
    ):
        evaluate(pipeline, pictures, clean, tmp_path)


def test_a_picture_that_can_be_read_meanwhile_is_classified(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path
) -> None:
    clean = replace(evaluation, protocols=("clean",))
    moved = replace(pictures[0], path=tmp_path / "moved.png")
    failed = evaluate(pipeline, [moved, *pictures[1:]], clean, tmp_path)
    assert failed[moved.id, "clean", True].failure
    moved.path.write_bytes(pictures[0].path.read_bytes())
    counting = CountingPipeline(pipeline)
    answers = evaluate(counting, [moved, *pictures[1:]], clean, tmp_path)
    assert counting.items == 2
    assert not any(answer.failure for answer in answers.values())


def test_more_protocols_reuse_the_answers(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluate(pipeline, pictures, replace(evaluation, protocols=("clean",)), tmp_path)
    counting, told = CountingPipeline(pipeline), list[int]()
    more = replace(evaluation, protocols=("clean", "resave"), batch_size=5)
    evaluate(counting, pictures, more, tmp_path, lambda done, _: told.append(done))
    assert counting.items == 2 * len(pictures)
    assert told == [2 * len(pictures) + 10, 4 * len(pictures)], "what was known counts as done"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"dataset": "other"},
        {"seed": 1},
        {"top_k": 2},
        {"preprocessing": Preprocessing(64, 0.5, "bilinear", (120.0, 115.0, 105.0), (60.0, 58.0, 57.0))},
    ],
)
def test_answers_of_another_evaluation_are_refused(
    pipeline: Pipeline,
    pictures: list[LabelledPicture],
    evaluation: Evaluation,
    tmp_path: Path,
    change: dict[str, Any],
) -> None:
    evaluate(pipeline, pictures[:1], replace(evaluation, protocols=("clean",)), tmp_path)
    with pytest.raises(ConfigError, match="another evaluation"):
        evaluate(pipeline, pictures, replace(evaluation, **change), tmp_path)


def test_unreadable_pictures_are_left_out_and_named(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation = replace(evaluation, batch_size=3)  # so that of one lot there is nothing to classify
    noise, truncated = tmp_path / "noise.png", tmp_path / "truncated.jpg"
    noise.write_bytes(b"no picture at all")
    Image.open(pictures[0].path).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:-300])
    depth = tmp_path / "depth.tif"
    Image.fromarray(np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)).save(depth)
    bad = [LabelledPicture(path.name, path, 0) for path in (noise, truncated, depth, tmp_path / "gone.jpg")]
    answers = evaluate(pipeline, [*bad, *pictures], evaluation, tmp_path / "out")
    report = summarize(answers, [*bad, *pictures], evaluation)
    assert report.pictures == len(pictures)
    assert set(report.failures) == {"noise.png", "truncated.jpg", "depth.tif", "gone.jpg"}
    with pytest.raises(ConfigError, match="no picture could be classified"):
        summarize(answers, bad, evaluation)


def test_the_report_is_written_and_printed(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path
) -> None:
    answers = evaluate(pipeline, pictures, evaluation, tmp_path)
    report = summarize(answers, pictures, evaluation)
    files = {path.name for path in write_report(report, tmp_path)}
    assert {"report.json", "report.md"} <= files
    assert all((tmp_path / name).stat().st_size for name in files)
    text = (tmp_path / "report.md").read_text()
    assert all(f"]({name})" in text for name in files if name.endswith(".png"))
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["pictures"] == 6
    assert [protocol["name"] for protocol in values["protocols"]] == list(PROTOCOLS)
    console = Console(width=80, record=True, quiet=False, file=(tmp_path / "console.txt").open("w"))
    with console.file:
        print_report(report, console)
    text = (tmp_path / "console.txt").read_text()
    assert "Recovered of the lost top-1" in text
    assert "QF 25" in text
    assert "QF 25" in (tmp_path / "report.md").read_text()


def test_a_file_name_that_is_no_utf_8_is_classified_and_reported(
    pipeline: Pipeline, pictures: list[LabelledPicture], evaluation: Evaluation, tmp_path: Path
) -> None:
    for name, data in ((b"good\xff.png", pictures[0].path.read_bytes()), (b"bad\xff.png", b"no picture")):
        (tmp_path / "cat" / os.fsdecode(name)).parent.mkdir(exist_ok=True)
        (tmp_path / "cat" / os.fsdecode(name)).write_bytes(data)
    named = load_labelled(tmp_path, ("cat", "dog", "owl"))
    report = summarize(evaluate(pipeline, named, evaluation, tmp_path), named, evaluation)
    assert (report.pictures, [os.fsencode(name) for name in report.failures]) == (1, [b"cat/bad\xff.png"])
    write_report(report, tmp_path)
    assert "- `cat/bad\\udcff.png`: " in (tmp_path / "report.md").read_text(encoding="utf-8")


def made_answers(pictures: Sequence[LabelledPicture]) -> dict[tuple[str, str, bool], Answer]:
    """Clean: all right. Compressed: the first picture wrong without AFD and right with it, the second always wrong."""
    answers = {}
    for condition in conditions(("clean", "A")):
        for afd in (True, False):
            for index, picture in enumerate(pictures):
                right = condition.protocol == "clean" or index > 1 or (index == 0 and afd)
                first = picture.label if right else (picture.label + 1) % 3
                rest = [label for label in range(3) if label != first]
                opened = afd and condition.protocol == "A"
                answers[picture.id, condition.key, afd] = Answer((first, *rest), 0.75, 10, 0.5, opened)
    return answers


def test_summary_of_known_answers(pictures: list[LabelledPicture], evaluation: Evaluation) -> None:
    known = replace(evaluation, protocols=("clean", "A"))
    clean, compressed = summarize(made_answers(pictures), pictures, known).protocols
    assert (clean.bare.value, clean.gain.value, clean.recovered) == (1.0, 0.0, None)
    assert compressed.bare.value == pytest.approx(4 / 6)
    assert compressed.afd.value == pytest.approx(5 / 6)
    assert compressed.recovered is not None
    assert compressed.recovered.value == pytest.approx(0.5)
    assert compressed.recovered.low <= 0.5 <= compressed.recovered.high
    report = compressed.conditions[3]
    assert report.condition.level == 10
    assert report.gain.value == pytest.approx(1 / 6)
    assert report.gain.low == 0.0
    assert report.p_value == 1.0
    assert (report.gate_open, report.gates_opened, report.median_quality) == (1.0, 6, 10.0)
    assert clean.conditions[0].gates_opened == 0
    assert report.bare.top5.value == 1.0
    assert report.bare.calibration_error == pytest.approx(0.75 - 4 / 6)
    assert [b.pictures for b in compressed.bare_reliability] == [6 * len(conditions(("A",)))]
    assert compressed.bare_reliability[0].accuracy == pytest.approx(4 / 6)
    assert compressed.afd_reliability[0].accuracy == pytest.approx(5 / 6)


def test_agreement_is_with_the_clean_answer_whether_that_is_right_or_wrong(
    pictures: list[LabelledPicture], evaluation: Evaluation
) -> None:
    answers = made_answers(pictures)
    answers[pictures[1].id, "clean", False] = answers[pictures[1].id, "A/10", False]  # wrong
    known = replace(evaluation, protocols=("clean", "A"))
    clean, compressed = summarize(answers, pictures, known).protocols
    scores = compressed.conditions[3]
    assert scores.bare.agreement == pytest.approx(5 / 6)
    assert (scores.bare.top1.value, scores.afd.top1.value) == (pytest.approx(4 / 6), pytest.approx(5 / 6))
    assert scores.afd.agreement == 1.0
    assert (clean.conditions[0].bare.agreement, clean.conditions[0].afd.agreement) == (1.0, pytest.approx(5 / 6))


def test_gains_of_classes(pictures: list[LabelledPicture], evaluation: Evaluation) -> None:
    known = replace(evaluation, protocols=("clean", "A"))
    cat, dog, owl = summarize(made_answers(pictures), pictures, known, labels=("cat", "dog", "owl")).classes
    assert (cat.label, cat.pictures, cat.bare, cat.afd, cat.gain) == ("cat", 2, 0.0, 0.5, 0.5)
    assert (dog.gain, owl.gain) == (0.0, 0.0)
    assert summarize(made_answers(pictures), pictures, known).classes[0].label == "0"


def test_a_class_that_is_right_as_often_has_no_gain(pictures: list[LabelledPicture], evaluation: Evaluation) -> None:
    """Nine hits each, of other pictures: as means of means they differ in the last bit."""
    few, known = [replace(picture, label=0) for picture in pictures[:3]], replace(evaluation, protocols=("clean", "A"))
    hits = {False: (1, 4, 4), True: (2, 4, 3)}
    answers = {
        (picture.id, condition.key, afd): Answer((0 if column <= count else 1,))
        for column, condition in enumerate(conditions(known.protocols))
        for afd, counts in hits.items()
        for picture, count in zip(few, counts, strict=True)
    }
    (gained,) = summarize(answers, few, known).classes
    assert (gained.bare, gained.gain) == (9 / 15, 0.0)


def test_saved_again_is_compared_with_saved_once(pictures: list[LabelledPicture], evaluation: Evaluation) -> None:
    answers = made_answers(pictures)
    without = replace(evaluation, protocols=("clean", "A"))
    assert summarize(answers, pictures, without).resave_gap is None
    for picture in pictures:
        for afd in (True, False):
            answers[picture.id, "resave", afd] = answers[picture.id, "A/10", False]  # AFD changes nothing
    report = summarize(answers, pictures, replace(evaluation, protocols=("clean", "A", "resave")))
    assert report.resave_gap is not None
    assert report.resave_gap.value == pytest.approx(-0.5)
    assert report.resave_gap.low < -0.5 < report.resave_gap.high
    told = "Recovered of the lost top-1: 0.0 [0.0, 0.0]; beside QF 10 alone -50.0 [-100.0, +0.0] points"
    assert told in text_of(report)
    assert summarize(answers, pictures, replace(evaluation, protocols=("clean", "resave"))).resave_gap is None


def text_of(report: Report) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(report, console)
    return console.export_text()


def test_the_clean_cost_and_the_latency_are_told(pictures: list[LabelledPicture], evaluation: Evaluation) -> None:
    answers = made_answers(pictures)
    answers[pictures[0].id, "clean", True] = Answer((1, 0, 2), 0.75, 80, 0.5, True)
    known = replace(evaluation, protocols=("clean", "A"))
    latency = Latency(20.0, Interval(1.01, 1.0, 1.02), Interval(1.08, 1.07, 1.09), 1, 50)
    text = text_of(summarize(answers, pictures, known, latency=latency))
    assert "Clean cost: top-1 changes by -16.7 [" in text
    assert "the gate opened for 1 of 6 pictures" in text
    assert "gate open 1.080 [1.070, 1.090], gate closed 1.010 [1.000, 1.020]" in text
    assert "Latency" not in text_of(summarize(answers, pictures, known))
