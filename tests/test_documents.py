"""What the README and the documents show runs as it stands there."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import typer

from afd_serve.budget import MAX_OTHER_PIXELS_PER_REQUEST
from afd_serve.cli import app
from afd_serve.jpeg import JpegLimits
from afd_serve.quality import harmless_from
from afd_serve.request import DEFAULT_TOP_K, MAX_PICTURES, MAX_TOP_K
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


def test_commands_and_benchmarks_are_found_in_the_pages() -> None:
    """Of an empty list nothing would be tested, and nobody told."""
    assert len(commands()) >= 10
    assert len(NAMED_BENCHMARKS) >= 8


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_line_is_one_that_exists(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PICTURE.jpg").write_bytes(sample_picture())
    command, rest = typer.main.get_command(app), list(words)
    while isinstance(command, typer.core.TyperGroup):
        command = command.commands[rest.pop(0)]
    command.make_context(command.name, rest)


NAMED_BENCHMARKS = sorted({name for page in PAGES for name in re.findall(r"benchmarks/(\w+\.py)", page.read_text())})
SHARED = {"http_load.py", "machine.py", "pictures.py"}
"""What benchmarks import, and nobody runs."""


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_every_benchmark_finds_what_it_imports_and_tells_how_it_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    names = runpy.run_path(str(path))
    if path.name in SHARED:
        assert "main" not in names
        return
    with pytest.raises(SystemExit) as ended:
        names["main"]()
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMED_BENCHMARKS)
def test_every_benchmark_that_a_page_names_can_be_run(name: str) -> None:
    assert (ROOT / "benchmarks" / name).is_file()
    assert name not in SHARED


def page_says(page: str, pattern: str) -> list[tuple[int, ...]]:
    """The numbers in each place of a page where this stands, however its lines are broken."""
    found = re.findall(pattern, " ".join((ROOT / page).read_text().split()))
    return [tuple(map(int, [numbers] if isinstance(numbers, str) else numbers)) for numbers in found]


def test_the_limits_of_requests_are_those_that_the_page_on_serving_tells() -> None:
    assert page_says("docs/serving.md", r"`top_k` \| (\d+) to (\d+), (\d+) where left out") == [
        (1, MAX_TOP_K, DEFAULT_TOP_K)
    ]
    assert page_says("docs/serving.md", r"each under a name of its own, (\d+) at most") == [(MAX_PICTURES,)]
    assert page_says("docs/serving.md", r"up to (\d+) per request") == [(MAX_PICTURES,)]
    pixels = JpegLimits().max_pixels, JpegLimits().max_other_pixels, MAX_OTHER_PIXELS_PER_REQUEST
    in_words = r"(\d+) megapixels for a JPEG, (\d+) for any other picture, and (\d+) for all of a request's"
    assert page_says("docs/serving.md", in_words) == [tuple(count // 10**6 for count in pixels)]
    blocks = page_says("docs/serving.md", r"(\d+),000 blocks, .* limit for an arithmetic-coded JPEG")
    assert blocks == [(JpegLimits().max_arithmetic_blocks // 1000,)]


def test_the_gate_closes_from_the_qualities_on_that_the_pages_tell() -> None:
    own, twice, four_times = (
        next(quality for quality in range(1, 101) if harmless_from(quality) <= reduction) for reduction in (1, 2, 4)
    )
    thresholds = (
        r"below QF (\d+) at the model's own size, below QF (\d+) at twice, below QF (\d+) at four times that size"
    )
    assert page_says("README.md", thresholds) == [(own, twice, four_times)]
    assert page_says("docs/own_classifier.md", r"saved at a quality of (\d+) or more") == [(own,)]


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
