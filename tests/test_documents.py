"""What the README and the documents show runs as it stands there."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from afd_serve.cli import app
from afd_serve.sample import sample_picture

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SELF_CONTAINED = [page for page in PAGES if page.name != "own_classifier.md"]
"""Pages whose Python needs no files; tests/test_own_classifier.py runs the other one."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    text = "".join(block for page in PAGES for block in blocks(page, "sh")).replace("\\\n", "")
    lines = text.splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0].endswith("afd-serve")]


def test_the_python_examples_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "PICTURE.jpg").write_bytes(sample_picture())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for page in SELF_CONTAINED:
        for block in blocks(page, "python"):
            exec(compile(block, page.name, "exec"), names)
    assert "wall clock" in capsys.readouterr().out


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_line_is_one_that_exists(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PICTURE.jpg").write_bytes(sample_picture())
    command = typer.main.get_command(app)
    context = command.make_context("afd-serve", list(words), resilient_parsing=False)
    while hasattr(context.command, "resolve_command"):
        _, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(command.name, rest, parent=context)


BENCHMARKS = sorted({name for page in PAGES for name in re.findall(r"benchmarks/\w+\.py", page.read_text())})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_finds_what_it_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert "main" in runpy.run_path(str(ROOT / name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_file_and_section_exists(page: Path) -> None:
    for target, section in re.findall(r"\]\(([^)#]*)(#[^)]+)?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not section or section in anchors(linked), f"{target}{section}"


def anchors(page: Path) -> set[str]:
    """The addresses that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
