"""fit and compare as a user runs them: what they refuse, and what they say beside their result."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny_backbone
from tests.conftest import Run, scene

TINY = ("--backbone", f"file:{tiny_backbone.__file__}", "--workers", 0)
SHORT = (*TINY, "--preset", "lite", "--steps", 1, "--batch-size", 2)


def test_a_seed_below_zero_is_refused(run: Run, tmp_path: Path) -> None:
    for command in (("fit",), ("compare", "--labelled", tmp_path)):
        status, _, err = run(*command, *TINY, "--images", tmp_path, "--out", tmp_path / "out", "--seed", -1)
        assert (status, "--seed" in err) == (2, True)


def test_pictures_that_cannot_be_read_are_counted_and_one_is_named(
    run: Run, picture_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = picture_folder(4)
    for name in ("4.jpg", "5.jpg"):
        (folder / name).write_bytes(b"not a picture")
    status, out, err = run("fit", *SHORT, "--images", folder, "--out", tmp_path / "run")
    assert status == 0, err
    assert f"2 of 6 pictures could not be read, as '{folder / '4.jpg'}'" in out.splitlines()
    assert out.splitlines()[-1].startswith(str(tmp_path / "run" / "afd.safetensors"))


def test_a_finished_fit_says_that_other_pictures_taught_it_nothing(
    run: Run, picture_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out_dir = picture_folder(4), tmp_path / "run"
    said = "all 1 steps were done before: "
    assert said not in run("fit", *SHORT, "--images", folder, "--out", out_dir)[1]
    (folder / "0.png").unlink()
    status, out, _ = run("fit", *SHORT, "--images", folder, "--out", out_dir)
    assert status == 0
    assert said in out


@pytest.fixture
def comparison(picture_folder: Callable[[int], Path], tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "labelled" / "0").mkdir(parents=True)
    scene().save(tmp_path / "labelled" / "0" / "picture.png")
    pictures = ("--images", picture_folder(2), "--labelled", tmp_path / "labelled")
    return ("compare", *TINY, *pictures, "--out", tmp_path / "out")


def test_a_comma_too_many_after_a_row_is_forgiven(run: Run, comparison: tuple[object, ...], tmp_path: Path) -> None:
    status, _, err = run(*comparison, "--rows", "direct, ,")
    assert status == 0, err
    assert [path.name for path in (tmp_path / "out" / "rows").iterdir()] == ["direct.json"]


def test_commas_alone_are_no_rows(run: Run, comparison: tuple[object, ...]) -> None:
    for none in (",", ""):
        status, _, err = run(*comparison, "--rows", none)
        assert (status, err.startswith("error: unknown row ''; there are direct,")) == (2, True)
