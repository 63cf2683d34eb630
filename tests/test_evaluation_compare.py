"""A whole comparison on the tiny backbone, and figures of known answers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from afd_serve.errors import CheckpointError, ConfigError
from afd_serve.evaluation import compare as compare_module
from afd_serve.evaluation.baselines import BaselineClassifier
from afd_serve.evaluation.compare import CONDITIONS, GATED_CLEAN, ROWS, CompareConfig, Row, compare, macs
from afd_serve.evaluation.compare_report import print_comparison, summarize_rows, write_comparison
from afd_serve.evaluation.contents import Contents
from afd_serve.models.backbones import Backbone
from afd_serve.runs import alone_in
from tests import foreign, tiny_backbone
from tests.conftest import scene

SOME = ("direct", "ddp", "batchnorm", "lite")


@pytest.fixture
def config(picture_folder: Callable[[int], Path], tmp_path: Path) -> CompareConfig:
    folder = picture_folder(4)
    for index in range(3):
        scene(90, 100, seed=20 + index).save(folder / f"labelled{index}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    rows = [f"labelled{index}.png,{index}" for index in range(3)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows, "broken.png,4"]))
    return CompareConfig(
        backbone=f"file:{tiny_backbone.__file__}",
        images=(folder,),
        labelled=folder / "labels.csv",
        out=tmp_path / "out",
        steps=2,
        batch_size=2,
        size=64,
        workers=0,
        bf16=False,
    )


def test_a_comparison_and_its_continuation(
    config: CompareConfig, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = compare(config, SOME)
    assert [row.name for row in rows] == list(SOME)
    direct, ddp, norms, lite = rows
    assert direct.parameters == 0
    assert direct.macs[0] == direct.macs[1] == ddp.macs[1]
    assert ddp.macs[0] > ddp.macs[1]
    assert (norms.parameters, norms.macs[0]) == (5 * 2 * (8 + 12 + 16 + 16), norms.macs[1])
    assert lite.parameters > 0
    for row in rows:
        assert set(row.hits) == {c.key for c in CONDITIONS} | ({GATED_CLEAN} if row.name == "lite" else set())
        assert all(column[0] == -1 and set(column[1:]) <= {0, 1} for column in row.hits.values())  # broken.png
    assert lite.hits[GATED_CLEAN] == direct.hits["clean"]  # the gate is closed for PNG files of photographs
    exclude = json.loads((config.out / "fits" / "lite" / "config.json").read_text())["exclude"]
    assert [Path(path).name for path in exclude] == [
        "broken.png",
        *(f"labelled{index}.png" for index in range(3)),
    ]

    def refuse(*_: object) -> None:
        raise AssertionError("a row that is done was computed again")

    monkeypatch.setattr(compare_module._Comparison, "_build", refuse)
    assert compare(config, SOME) == rows
    assert compare(replace(config, workers=1), ["lite"]) == [direct, lite]
    with pytest.raises(ConfigError, match=r"another comparison \(steps, seed"):
        compare(replace(config, steps=3, seed=1))
    with pytest.raises(AssertionError):
        compare(config, ["full"], ours=[str(tiny_run)])


def test_rows_of_other_weights_of_the_backbone_are_not_joined(config: CompareConfig, tmp_path: Path) -> None:
    source, text = tmp_path / "network.py", Path(tiny_backbone.__file__).read_text()
    config = replace(config, backbone=f"file:{source}")
    source.write_text(text)
    compare(config, ["direct"])
    source.write_text(text.replace("manual_seed(5)", "manual_seed(17)"))
    with pytest.raises(ConfigError, match=r"another comparison \(fingerprint"):
        compare(config, ["direct"])


def test_a_model_of_ours_stands_for_its_presets_row(config: CompareConfig, tiny_run: Path) -> None:
    row = compare(replace(config, rounds=2), ["full"], ours=[str(tiny_run)])[1]
    assert row.name == "full"
    assert row.weights.startswith(f"{tiny_run} (")
    assert not (config.out / "fits").exists()
    assert row.latency is not None
    assert row.latency.opened.value > 0
    assert Row.from_json(row.to_json()) == row


@pytest.mark.parametrize("function", foreign.NOT_FOR_THE_COMPILER)
def test_a_classifier_that_the_compiler_refuses_is_timed_as_it_is_deployed(
    config: CompareConfig, function: str
) -> None:
    config = replace(config, backbone=f"file:{foreign.__file__}:{function}", rounds=2)
    assert [row.latency is not None for row in compare(config, ("direct", "ddp", "lite"))] == [True] * 3


def comparison_of(config: CompareConfig) -> compare_module._Comparison:
    config.out.mkdir()
    return compare_module._Comparison(config, ())


def test_nothing_is_fitted_on_labelled_pictures_not_even_on_those_that_a_limit_leaves_out(
    config: CompareConfig,
) -> None:
    comparison = comparison_of(replace(config, limit=1))
    assert len(comparison.pictures) == 1
    assert sorted(path.name for path in comparison.unlabelled) == ["0.png", "1.png", "2.png", "3.png"]


def test_every_fit_is_as_the_comparison_says(config: CompareConfig) -> None:
    chosen = replace(config, steps=7, batch_size=5, size=96, seed=3, workers=2, bf16=True)
    fitting = comparison_of(chosen).fitting
    found = (fitting.steps, fitting.batch_size, fitting.sizes, fitting.seed, fitting.workers, fitting.bf16)
    assert found == (7, 5, (96,), 3, 2, True)


def test_a_method_is_applied_to_every_picture_and_gated_for_clean_ones_once_more(config: CompareConfig) -> None:
    def engine(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        gate = inputs[-1]
        return torch.stack((1 - gate, gate), dim=1), gate  # class 1 where the gate is open

    comparison = comparison_of(config)
    picture = next(picture for picture in comparison.pictures if picture.label == 1)
    expected = dict.fromkeys((condition.key for condition in CONDITIONS), 1) | {GATED_CLEAN: 0}
    assert comparison._answers(engine, picture) == expected


def test_a_row_is_timed_later_without_being_computed_again(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = compare(config, ["direct"])
    timed = replace(config, rounds=1)
    monkeypatch.setattr(compare_module._Comparison, "_hits", None)
    (later,) = compare(timed, ["direct"])
    assert later.latency is not None
    assert replace(later, latency=None) == row
    monkeypatch.setattr(compare_module._Comparison, "_build", None)
    assert compare(timed, ["direct"]) == compare(config, ["direct"]) == [later]


def test_two_comparisons_do_not_work_in_one_folder(config: CompareConfig) -> None:
    with alone_in(config.out), pytest.raises(ConfigError, match="another run is at work"):
        compare(config)


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"bf16": True}, ["bf16"]),
        ({"labelled": Path("other.csv"), "limit": 2, "split": "dev"}, ["labelled", "split", "limit"]),
        ({"images": (Path("moved"),), "workers": 3, "rounds": 5, "out": Path("elsewhere")}, []),
    ],
)
def test_rows_are_joined_where_nothing_that_they_depend_on_differs(
    config: CompareConfig, change: dict[str, Any], keys: list[str]
) -> None:
    contents = Contents("fingerprint", "fitted on", "measured on")
    saved = json.loads(config.to_json(contents))
    assert replace(config, **change).differs(saved, contents) == keys


def test_a_comparison_goes_on_where_its_folder_of_pictures_has_moved(
    config: CompareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = config.images
    labelled = config.labelled.rename(tmp_path / "labels.csv")
    labelled.write_text(
        labelled.read_text().replace("\nlabelled", "\nlabelled/labelled").replace("\nbroken", "\nlabelled/broken")
    )
    (tmp_path / "labelled").mkdir()
    for path in (*folder.glob("labelled*.png"), folder / "broken.png"):
        path.rename(tmp_path / "labelled" / path.name)
    (folder / "deeper").mkdir()
    (folder / "3.png").rename(folder / "deeper" / "3.png")
    config = replace(config, labelled=labelled)
    rows = compare(config, ["direct"])
    monkeypatch.setattr(compare_module._Comparison, "_build", None)
    moved = folder.rename(tmp_path / "elsewhere")
    assert compare(replace(config, images=(moved,)), ["direct"]) == rows


def add(folder: Path) -> None:
    scene(90, 100, seed=30).save(folder / "4.png")


def remove(folder: Path) -> None:
    (folder / "3.png").unlink()


def replace_one(folder: Path) -> None:
    scene(40, 40, seed=30).save(folder / "3.png")


@pytest.mark.parametrize("change", [add, remove, replace_one])
def test_rows_fitted_on_other_pictures_are_not_joined(config: CompareConfig, change: Callable[[Path], None]) -> None:
    (folder,) = config.images
    compare(config, ["direct"])
    record = (config.out / "config.json").read_text()
    change(folder)
    with pytest.raises(ConfigError, match=r"^the unlabelled pictures in .*pictures are not .* choose another folder$"):
        compare(config, ["direct"])
    assert (config.out / "config.json").read_text() == record


def another_labelled_picture(folder: Path) -> None:
    scene(90, 100, seed=31).save(folder / "labelled3.png")
    with (folder / "labels.csv").open("a") as file:
        file.write("\nlabelled3.png,3")


def another_class(folder: Path) -> None:
    labels = folder / "labels.csv"
    labels.write_text(labels.read_text().replace("labelled1.png,1", "labelled1.png,2"))


def another_in_its_place(folder: Path) -> None:
    scene(40, 40, seed=31).save(folder / "labelled1.png")


@pytest.mark.parametrize("change", [another_labelled_picture, another_class, another_in_its_place])
def test_rows_measured_on_other_pictures_are_not_paired(config: CompareConfig, change: Callable[[Path], None]) -> None:
    (folder,) = config.images
    compare(config, ["direct"])
    change(folder)
    with pytest.raises(ConfigError, match=r"^the labelled pictures of .*labels\.csv are not .* choose another folder$"):
        compare(config, ["direct", "batchnorm"])


def test_rows_of_a_version_that_recorded_no_pictures_are_not_joined(config: CompareConfig) -> None:
    compare(config, ["direct"])
    record = json.loads((config.out / "config.json").read_text())
    del record["fitting_pictures"], record["labelled_pictures"]
    (config.out / "config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="did not record its pictures; choose another folder"):
        compare(config, ["direct"])


@pytest.mark.parametrize("place", ["out", "."])
def test_results_among_the_pictures_are_no_pictures_to_fit_on(config: CompareConfig, place: str) -> None:
    (folder,) = config.images
    config = replace(config, out=folder / place)
    rows = compare(config, ["direct"])
    scene().save(config.out / "comparison.png")
    assert compare(config, ["direct"]) == rows


def test_a_classifier_without_batchnorm_has_no_row_of_it(config: CompareConfig, tmp_path: Path) -> None:
    source = tmp_path / "plain.py"
    text = Path(tiny_backbone.__file__).read_text()
    source.write_text(text.replace("self.norm = nn.BatchNorm2d(outputs)", "self.norm = nn.Identity()"))
    rows = compare(replace(config, backbone=f"file:{source}", limit=1), ["batchnorm"])
    assert [row.name for row in rows] == ["direct"]


def test_a_fitted_baseline_is_taken_up_again_and_a_foreign_one_is_refused(config: CompareConfig) -> None:
    comparison = comparison_of(config)
    fitted, again = comparison._baseline("ddp"), comparison._baseline("ddp")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in fitted.state_dict().items())
    assert not again.training
    (config.out / "fits" / "arcnn").mkdir()
    (config.out / "fits" / "ddp" / "restorer.safetensors").rename(
        config.out / "fits" / "arcnn" / "restorer.safetensors"
    )
    with pytest.raises(CheckpointError, match="holds another network"):
        comparison._baseline("arcnn")


@pytest.mark.parametrize("damage", [b"", b"[3]", b"\xff"])
def test_damaged_files_of_a_comparison_are_named(config: CompareConfig, damage: bytes) -> None:
    config = replace(config, limit=1)
    compare(config, ["direct"])
    (config.out / "rows" / "direct.json").write_bytes(damage)
    with pytest.raises(ConfigError, match=r"rows/direct\.json: this is no row .*; delete it to compute it again"):
        compare(config, ["direct"])
    (config.out / "config.json").write_bytes(damage)
    with pytest.raises(ConfigError, match=r"out/config\.json is damaged"):
        compare(config, ["direct"])


def test_an_unknown_row_names_the_known(config: CompareConfig) -> None:
    with pytest.raises(ConfigError, match="magic; there are direct, arcnn"):
        compare(config, ["magic"])
    with pytest.raises(ConfigError, match="unknown row ''; there are direct, arcnn"):
        compare(config, [])
    with pytest.raises(ConfigError, match="no row"):
        Row.from_json("{}")


def test_multiply_accumulates_are_those_of_the_convolutions(tiny: Backbone) -> None:
    convolutions = 32 * 32 * 8 * 27 + 16 * 16 * 12 * 72 + 8 * 8 * 16 * 108 + 8 * 8 * 16 * 144
    assert macs(BaselineClassifier(tiny), tiny_backbone.SIZE) == convolutions + 16 * 10


def known_rows() -> list[Row]:
    """Four pictures and a broken one: compression loses two, `lite` wins one of them back, `ddp` loses one more."""

    def row(name: str, compressed: list[int], **more: list[int]) -> Row:
        hits = {c.key: [1, 1, 1, 1, -1] if c.key == "clean" else [*compressed, -1] for c in CONDITIONS}
        return Row(name, "fitted here", 10, (150, 100), hits | more)

    gated = {GATED_CLEAN: [1, 1, 1, 1, -1]}
    return [row("direct", [1, 1, 0, 0]), row("ddp", [1, 0, 0, 0]), row("lite", [1, 1, 1, 0], **gated)]


def test_figures_of_known_answers(config: CompareConfig) -> None:
    comparison = summarize_rows(known_rows(), config)
    direct, ddp, lite = comparison.methods
    assert (comparison.pictures, comparison.left_out, comparison.backbone_macs) == (4, 1, 100)
    assert [method.mean.value for method in (direct, ddp, lite)] == [0.5, 0.25, 0.75]
    assert (ddp.recovered.value, lite.recovered.value) == (-0.5, 0.5)
    assert lite.recovered.low <= 0.5 <= lite.recovered.high
    assert (lite.clean.value, lite.extra_macs, set(lite.top1)) == (1.0, 50, {25, 18, 15, 10, 7})
    assert ddp.clean_gated is None
    assert lite.clean_gated is not None
    assert lite.clean_gated.value == 1.0


def test_the_report_is_written_and_printed(config: CompareConfig, tmp_path: Path) -> None:
    comparison = summarize_rows(known_rows(), config)
    files = {path.name for path in write_comparison(comparison, tmp_path)}
    assert {"report.json", "report.md"} <= files
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["methods"][0]["recovered"]["value"] is None
    markdown = (tmp_path / "report.md").read_text()
    assert ROWS["lite"] in markdown
    assert "re-implementation" in markdown
    with (tmp_path / "console.txt").open("w") as file:
        print_comparison(comparison, Console(width=100, file=file))
    assert "50.0" in (tmp_path / "console.txt").read_text()


def test_a_comparison_of_one_row_leaves_no_plot_of_an_earlier_one(config: CompareConfig, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_comparison(summarize_rows(known_rows(), config), tmp_path)
    assert (tmp_path / "comparison.png").is_file()
    write_comparison(summarize_rows(known_rows()[:1], config), tmp_path)
    assert not (tmp_path / "comparison.png").exists()
    assert "comparison.png" not in (tmp_path / "report.md").read_text()


def test_shares_that_are_not_defined_are_said_so_and_not_drawn(config: CompareConfig, tmp_path: Path) -> None:
    write_comparison(summarize_rows(known_rows(), config), tmp_path)
    direct, _, lite = known_rows()
    nothing_lost = [replace(row, hits=dict.fromkeys(row.hits, direct.hits["clean"])) for row in (direct, lite)]
    comparison = summarize_rows(nothing_lost, config)
    assert {path.name for path in write_comparison(comparison, tmp_path)} == {"report.json", "report.md"}
    assert not (tmp_path / "comparison.png").exists()
    text = (tmp_path / "report.md").read_text()
    rows = {name: next(line for line in text.splitlines() if ROWS[name] in line) for name in ("direct", "lite")}
    assert {name: "not defined" in row for name, row in rows.items()} == {"direct": False, "lite": True}


def test_a_plot_that_fails_takes_no_figures_with_it(
    config: CompareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", None)
    with pytest.raises(TypeError):
        write_comparison(summarize_rows(known_rows(), config), tmp_path)
    assert ROWS["lite"] in (tmp_path / "report.md").read_text()
    assert "comparison.png" not in (tmp_path / "report.md").read_text()


def test_no_readable_picture_is_an_error(config: CompareConfig) -> None:
    rows = [replace(row, hits={key: [-1] for key in row.hits}) for row in known_rows()]
    with pytest.raises(ConfigError, match="could be classified"):
        summarize_rows(rows, config)
