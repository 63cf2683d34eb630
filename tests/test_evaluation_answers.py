"""Which answers of an earlier evaluation are still those of the pictures as they are now."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from afd_serve.evaluation.dataset import LabelledPicture
from afd_serve.evaluation.runner import RESULTS_FILE, Answer, Evaluation, Key, evaluate
from afd_serve.pipeline import Failure, Pipeline, Prediction
from tests.conftest import encoded, scene


class Recording:
    """The real pipeline, which also keeps what it was sent."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.sent = pipeline, list[bytes]()

    def predict(
        self, items: Sequence[bytes], *, top_k: int = 5, afd: bool | Sequence[bool] = True, crop: bool = True
    ) -> list[Prediction | Failure]:
        self.sent += items
        return self.pipeline.predict(items, top_k=top_k, afd=afd, crop=crop)


@pytest.fixture
def recording(tiny_run: Path) -> Recording:
    return Recording(Pipeline.load(tiny_run, threads=1))


@pytest.fixture
def pictures(tmp_path: Path) -> list[LabelledPicture]:
    found = [LabelledPicture(f"{index}.png", tmp_path / f"{index}.png", index) for index in range(3)]
    for picture in found:
        picture.path.write_bytes(encoded(scene(90, 80, seed=picture.label), "PNG"))
    return found


def answers_of(recording: Recording, pictures: list[LabelledPicture], tmp_path: Path) -> dict[Key, Answer]:
    preprocessing = recording.pipeline.signature.preprocessing
    return evaluate(recording, pictures, Evaluation("tiny", "made", preprocessing, ("clean",)), tmp_path / "out")


def test_a_picture_that_was_replaced_under_its_name_is_classified_again(
    recording: Recording, pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    before = answers_of(recording, pictures, tmp_path)
    other = encoded(scene(64, 70, seed=9), "PNG")
    pictures[1].path.write_bytes(other)
    recording.sent.clear()
    after = answers_of(recording, pictures, tmp_path)
    assert recording.sent == [other] * 2
    assert {key[0] for key, answer in after.items() if answer != before[key]} == {"1.png"}
    assert answers_of(recording, pictures, tmp_path) == after
    assert len(recording.sent) == 2


def test_a_picture_that_is_missing_fails_and_has_its_answers_once_it_is_back(
    recording: Recording, pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    before = answers_of(recording, pictures, tmp_path)
    recording.sent.clear()
    pictures[0].path.rename(tmp_path / "elsewhere.png")
    assert answers_of(recording, pictures, tmp_path)["0.png", "clean", True].failure
    (tmp_path / "elsewhere.png").rename(pictures[0].path)
    assert answers_of(recording, pictures, tmp_path) == before
    assert not recording.sent


def test_answers_of_versions_that_kept_no_sizes_are_kept(
    recording: Recording, pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    before, path = answers_of(recording, pictures, tmp_path), tmp_path / "out" / RESULTS_FILE
    head, *rows = map(json.loads, path.read_text().splitlines())
    assert {row["picture"]: row.pop("size") for row in rows} == {p.id: p.path.stat().st_size for p in pictures}
    path.write_text("".join(json.dumps(row) + "\n" for row in (head, *rows)))
    recording.sent.clear()
    assert answers_of(recording, pictures, tmp_path) == before
    assert not recording.sent


def test_a_pipe_among_the_pictures_is_left_out_without_waiting(
    recording: Recording, pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    pipe = LabelledPicture("pipe.jpg", tmp_path / "pipe.jpg", 0)
    os.mkfifo(pipe.path)
    answers = answers_of(recording, [*pictures, pipe], tmp_path)
    failures = {key[0]: answer.failure for key, answer in answers.items() if answer.failure}
    assert failures == {pipe.id: f"cannot be read: {str(pipe.path)!r} is no regular file"}


def test_a_name_that_no_file_can_have_is_a_picture_that_cannot_be_read(
    recording: Recording, pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    names = ("a\0b.jpg", "a" * 300 + ".jpg")
    answers = answers_of(recording, [*pictures, *(LabelledPicture(n, tmp_path / n, 0) for n in names)], tmp_path)
    assert {key[0] for key, answer in answers.items() if answer.failure} == set(names)
