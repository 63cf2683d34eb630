"""``classify --explain``: one picture, read once, answered and drawn."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Run


def test_classify_draws_where_the_picture_has_drifted(run: Run, picture: Path, tiny_run: Path, tmp_path: Path) -> None:
    drawing = tmp_path / "heat.png"
    status, out, err = run("classify", picture, "--model", tiny_run, "--explain", drawing)
    assert status == 0, err
    for text in ("estimated quality 10; no earlier compression found", "gate open", f"wrote {drawing}"):
        assert text in out
    with Image.open(drawing) as drawn:
        assert drawn.format == "PNG"
    drawing.unlink()
    status, out, _ = run("classify", picture, "--model", tiny_run, "--explain", drawing, "--json")
    assert json.loads(out)["protected"] is True
    assert drawing.exists()


def test_classify_explains_one_readable_picture(
    run: Run, picture: Path, damaged: Path, tiny_run: Path, tmp_path: Path
) -> None:
    drawing = tmp_path / "heat.png"
    for wrong in ((picture, picture), (picture, "--no-afd"), (picture, "--mode", "shadow")):
        status, _, err = run("classify", *wrong, "--model", tiny_run, "--explain", drawing)
        assert (status, "--explain draws one picture" in err) == (2, True)
    status, _, err = run("classify", damaged, "--model", tiny_run, "--explain", drawing)
    assert status == 1
    assert err.startswith(f"{damaged}: truncated_jpeg")
    assert not drawing.exists()


def test_a_picture_that_comes_through_a_pipe_is_read_once(
    run: Run, picture: Path, tiny_run: Path, tmp_path: Path
) -> None:
    drawing = tmp_path / "heat.png"
    reading, writing = os.pipe()
    os.write(writing, picture.read_bytes())
    os.close(writing)
    status, out, err = run("classify", f"/dev/fd/{reading}", "--model", tiny_run, "--explain", drawing)
    os.close(reading)
    assert (status, err) == (0, "")
    assert f"wrote {drawing}" in out


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_answer_is_not_lost_where_the_drawing_cannot_be_written(
    run: Run, picture: Path, tiny_run: Path, options: tuple[str, ...]
) -> None:
    status, out, err = run("classify", picture, "--model", tiny_run, "--explain", picture / "heat.png", *options)
    assert (status, err.startswith("error: ")) == (2, True)
    assert "class " in out


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_drawing_does_not_replace_its_picture(
    run: Run, picture: Path, tiny_run: Path, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    before, alias = picture.read_bytes(), tmp_path / "alias.png"
    link(alias, picture)
    for drawing in (picture, alias):
        status, out, err = run("classify", picture, "--model", tiny_run, "--explain", drawing)
        assert (status, out) == (2, "")
        assert err == f"error: --explain would write over the picture {picture}: name another file\n"
    assert picture.read_bytes() == before


def test_a_drawing_replaces_another_in_one_step_or_goes_where_a_link_leads(
    run: Run, picture: Path, tiny_run: Path, tmp_path: Path
) -> None:
    drawing, link = tmp_path / "heat.png", tmp_path / "link.png"
    drawing.write_bytes(b"earlier")
    link.symlink_to(drawing)
    with drawing.open("rb") as earlier:
        assert run("classify", picture, "--model", tiny_run, "--explain", drawing)[0] == 0
        assert earlier.read() == b"earlier"
    drawn = drawing.read_bytes()
    drawing.write_bytes(b"earlier")
    assert run("classify", picture, "--model", tiny_run, "--explain", link)[0] == 0
    assert link.is_symlink()
    assert drawing.read_bytes() == drawn
    assert sorted(tmp_path.iterdir()) == [drawing, link, picture]
