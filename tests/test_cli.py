"""The command line as a user runs it: real models, real files, output and exit status."""

import fcntl
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

import pytest
import typer

from afd_serve import classification
from afd_serve.cli import app
from afd_serve.cli.fitting import _say_what_was_written
from afd_serve.config import PRESETS
from afd_serve.engines import ENGINES
from afd_serve.errors import ConfigError
from afd_serve.evaluation.compare import ROWS
from afd_serve.evaluation.protocols import PROTOCOLS
from afd_serve.export import export_classifier
from afd_serve.mode import Mode
from afd_serve.packaging.triton import Platform
from afd_serve.pipeline import Pipeline, Prediction
from afd_serve.request import Options
from afd_serve.results import Shadow
from afd_serve.runs import alone_in
from tests import tiny_backbone
from tests.conftest import Run, encoded, recompressed, scene

COMMANDS = sorted(typer.main.get_command(app).commands)


def test_help_is_quick_because_torch_stays_out() -> None:
    code = (
        "import sys, afd_serve.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("False")
    assert {"classify", "fit", "evaluate", "compare", "export", "package", "serve"} <= set(COMMANDS)
    for command in COMMANDS:
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    ("words", "option", "values"),
    [
        ("evaluate", "protocol", PROTOCOLS),
        ("compare", "rows", ROWS),
        ("fit", "preset", PRESETS),
        ("export", "engine", ENGINES),
        ("export", "precision", {precision for engine in ENGINES.values() for precision in engine.precisions}),
        ("package triton", "platform", get_args(Platform)),
    ],
)
def test_help_names_every_value_that_an_option_can_have(words: str, option: str, values: Iterable[str]) -> None:
    command = typer.main.get_command(app)
    for word in words.split():
        command = command.commands[word]
    (help_text,) = [parameter.help for parameter in command.params if parameter.name == option]
    assert set(values) <= set(re.findall(r"[\w-]+", help_text))


def test_the_installed_program_prints_one_line_instead_of_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "afd_serve", "export", "--model", str(tmp_path / "none"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_inspect(run: Run, picture: Path) -> None:
    status, out, _ = run("inspect", picture)
    assert status == 0
    for text in ("96 x 80 pixels", "ycbcr", "10 (from its table)", "(2, 2)", "12 x 10", "80    55    50"):
        assert text in out


def test_inspect_as_json(run: Run, picture: Path) -> None:
    status, out, _ = run("inspect", picture, "--json")
    values = json.loads(out)
    assert status == 0
    assert (values["width"], values["height"], values["estimated_quality"]) == (96, 80, 10)
    assert [component["width_in_blocks"] for component in values["components"]] == [12, 6, 6]
    assert values["components"][0]["quant_table"][0][0] == 80
    assert values["bytes"] == picture.stat().st_size


def test_inspect_sees_that_a_picture_was_saved_again(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "resaved.jpg"
    path.write_bytes(recompressed(scene(320, 240), 10, 95))
    values = json.loads(run("inspect", path, "--json")[1])
    assert values["resaved"] is True
    assert values["harmless_from"] > 4


def test_inspect_shows_what_is_left_of_a_damaged_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(scene(), quality=50)[:-200])
    status, out, _ = run("inspect", path)
    assert status == 0
    assert "warning" in out


@pytest.mark.parametrize("content", [b"", b"GIF89a and so on", encoded(scene(), "PNG")])
def test_inspect_of_what_is_no_jpeg(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    status, _, err = run("inspect", path)
    assert status == 1
    assert err.startswith("error: ")


def test_classify(run: Run, picture: Path, tiny_run: Path) -> None:
    status, out, _ = run("classify", picture, "--model", tiny_run, "--top-k", 3)
    (expected,) = Pipeline.load(tiny_run).predict([picture.read_bytes()], top_k=3)
    assert isinstance(expected, Prediction)
    assert status == 0
    assert "estimated quality 10" in out
    assert [line.split(maxsplit=1)[1] for line in out.splitlines()[1:]] == list(expected.labels)


def test_classify_as_json_is_the_wire_format(run: Run, picture: Path, damaged: Path, tiny_run: Path) -> None:
    one = json.loads(run("classify", picture, "--model", tiny_run, "--json", "--top-k", 2)[1])
    assert [set(item) for item in one["predictions"]] == [{"index", "label", "probability"}] * 2
    assert (one["estimated_quality"], one["protected"]) == (10, True)
    arguments = ("classify", picture, "--model", tiny_run, "--json", "--top-k", 2)
    bare = json.loads(run(*arguments, "--no-afd")[1])
    assert bare["protected"] is False
    assert bare["predictions"] != one["predictions"]
    for mode in ("off", "shadow"):
        assert json.loads(run(*arguments, "--mode", mode)[1]) == bare
    status, out, _ = run("classify", picture, damaged, "--model", tiny_run, "--json", "--top-k", 2)
    assert status == 1
    several = json.loads(out)
    assert several[0] == one
    assert several[1]["error"]["code"] == "truncated_jpeg"


def test_classify_in_shadow_mode_tells_what_afd_would_change(run: Run, picture: Path, tiny_run: Path) -> None:
    (expected,) = Pipeline.load(tiny_run).predict([picture.read_bytes()], afd=Mode.SHADOW)
    assert isinstance(expected, Prediction)
    assert isinstance(expected.shadow, Shadow)
    *_, last = run("classify", picture, "--model", tiny_run, "--mode", "shadow")[1].splitlines()
    assert ("another class" if expected.shadow.disagrees else "the same class") in last
    assert f"{expected.shadow.confidence_change:+.2%}" in last


def test_a_mode_and_its_shorthand_may_not_disagree(run: Run, picture: Path, tiny_run: Path) -> None:
    arguments = ("classify", picture, "--model", tiny_run)
    assert run(*arguments, "--mode", "off", "--no-afd")[0] == 0
    for contradiction in (("--mode", "shadow", "--no-afd"), ("--mode", "off", "--afd")):
        status, _, err = run(*arguments, *contradiction)
        assert (status, "--mode" in err) == (2, True)
    status, _, err = run(*arguments, "--mode", "dim")
    assert status == 2
    assert "shadow" in err


def test_a_model_is_chosen_by_path_here_and_by_name_on_a_server(run: Run, picture: Path, tiny_run: Path) -> None:
    status, _, err = run("classify", picture, "--server", "http://127.0.0.1:9", "--model", tiny_run)
    assert (status, "leave out --model" in err) == (2, True)
    for here in ((), ("--model", tiny_run)):
        status, _, err = run("classify", picture, *here, "--name", "pets")
        assert (status, "which server" in err) == (2, True)


def test_classify_without_crop(run: Run, picture: Path, tiny_run: Path) -> None:
    whole = json.loads(run("classify", picture, "--model", tiny_run, "--json", "--no-crop")[1])
    assert whole != json.loads(run("classify", picture, "--model", tiny_run, "--json")[1])


def test_classify_names_the_bad_picture_and_answers_for_the_good_one(
    run: Run, picture: Path, damaged: Path, tiny_run: Path
) -> None:
    status, out, err = run("classify", damaged, picture, "--model", tiny_run)
    assert status == 1
    assert f"{damaged}: truncated_jpeg" in err
    assert f"{picture}: estimated quality 10" in out


def test_classify_answers_for_many_pictures_as_it_goes(
    run: Run, picture: Path, damaged: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [tmp_path / f"{index:02}.jpg" for index in range(70)]
    for index, path in enumerate(names):
        path.write_bytes((damaged if index in (31, 69) else picture).read_bytes())
    arguments = ("classify", *names, "--model", tiny_run, "--top-k", 1)
    answers = json.loads(run(*arguments, "--json")[1])
    assert ["error" in answer for answer in answers] == [index in (31, 69) for index in range(70)]

    classify = classification.Here.classify

    def disturbed(self: classification.Here, pictures: Sequence[bytes], options: Options) -> object:
        names[40].unlink(missing_ok=True)
        return classify(self, pictures, options)

    monkeypatch.setattr(classification.Here, "classify", disturbed)
    status, out, err = run(*arguments)
    assert status == 2
    assert [line.partition(":")[0] for line in out.splitlines()[::2]] == list(map(str, names[:31]))
    assert [line.split(":")[0] for line in err.splitlines()] == [str(names[31]), "error"]


def test_wrong_settings_are_explained(run: Run, picture: Path, tiny_run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("classify", picture, "--model", tmp_path / "none"), "none"),
        (("classify", tmp_path / "missing.jpg"), "does not exist"),
        (("evaluate", "--model", tiny_run, "--images", tmp_path / "x", "--out", tmp_path / "o"), "neither a folder"),
        (("evaluate", "--model", tiny_run, "--images", tmp_path, "--out", tmp_path / "o", "--protocol", "Z"), "'Z'|Z"),
        (("fit", "--backbone", "nothing", "--images", tmp_path, "--out", tmp_path / "r"), "nothing|picture"),
    ):
        status, _, err = run(*arguments)
        assert status == 2, err
        assert any(part in err for part in message.split("|"))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    lines = ["file,label,split"]
    for index in range(6):
        encoded_file = encoded(scene(120, 90, seed=index), quality=95)
        (tmp_path / f"{index}.jpg").write_bytes(encoded_file)
        lines.append(f"{index}.jpg,class {index},{'dev' if index < 4 else 'fit'}")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_evaluate_and_evaluate_again(run: Run, labelled: Path, tiny_run: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", "--model", tiny_run, "--images", labelled, "--split", "dev", "--out", tmp_path / "report")
    status, out, _ = run(*arguments, "--protocol", "A,resave", "--limit", 3)
    assert status == 0
    assert "Recovered of the lost top-1" in out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["pictures"] == 3
    assert [protocol["name"] for protocol in report["protocols"]] == ["clean", "A", "resave"]
    rows = (tmp_path / "report" / "results.jsonl").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3 * 7
    assert run(*arguments, "--protocol", "A,resave", "--limit", 3)[0] == 0
    assert (tmp_path / "report" / "results.jsonl").read_text().splitlines() == rows
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.json", "report.md", "drift_maps.png", "reliability.png", "accuracy.png"} <= written
    assert run(*arguments, "--seed", 1)[0] == 2
    assert run(*arguments, "--seed", 1, "--fresh", "--protocol", "clean")[0] == 0


def test_evaluate_an_exported_model_and_its_latency(run: Run, labelled: Path, tiny_run: Path, tmp_path: Path) -> None:
    exported, out_dir = export_classifier(tiny_run, tmp_path / "exported").folder, tmp_path / "report"
    arguments = ("evaluate", "--images", labelled, "--limit", 2, "--protocol", "resave", "--out", out_dir)
    status, out, err = run(*arguments, "--model", exported, "--latency", 2)
    assert status == 0, err
    assert "Latency, times the bare backbone's" in " ".join(out.split())
    assert json.loads((out_dir / "report.json").read_text())["latency"]["rounds"] == 2
    assert (out_dir / "drift_maps.png").exists()


def test_two_runs_do_not_share_a_folder(run: Run, picture_folder: Callable[[int], Path], tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    fit = ("fit", "--backbone", f"file:{tiny_backbone.__file__}", "--images", picture_folder(4), "--out", tmp_path)
    status, out, err = run(*fit)
    os.close(handle)
    assert (status, out) == (2, "")
    assert err == f"error: another run is at work in {tmp_path}; wait for it or choose another folder\n"


def test_fit_then_export_then_package(run: Run, picture_folder: Callable[[int], Path], tmp_path: Path) -> None:
    fitted, exported = tmp_path / "run", tmp_path / "exported"
    pictures = picture_folder(6).rename(tmp_path / "spring, summer")
    fit = ("fit", "--backbone", f"file:{tiny_backbone.__file__}", "--images", pictures, "--out", fitted)
    status, out, err = run(*fit, "--preset", "lite", "--steps", 2, "--batch-size", 2, "--workers", 0)
    assert status == 0, err
    assert "fitting: 2 of 2, loss" in err
    assert str(fitted / "afd.safetensors") in out
    status, out, err = run("export", "--model", fitted, "--out", exported)
    assert status == 0, err
    assert Pipeline.load(exported).signature.preset == "lite"
    status, out, err = run("package", "torchserve", "--model", exported, "--out", tmp_path / "store", "--name", "tiny")
    assert status == 0, err
    with zipfile.ZipFile(tmp_path / "store" / "tiny.mar") as archive:
        assert {"model.pt", "signature.json", "afd_handler.py"} <= set(archive.namelist())


def test_export_offers_what_it_takes(run: Run) -> None:
    words = run("export", "--help")[1].replace("│", " ").split()
    assert "A shipped model's name or a fitted run's folder." in " ".join(words)


def test_names_of_extras_are_not_taken_for_markup(run: Run) -> None:
    words = run("serve", "triton", "--help")[1].replace("│", " ").split()
    assert "A Python with afd-serve[triton-server]; else" in " ".join(words)


def test_where_plots_are_missing_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _say_what_was_written([tmp_path])
    assert capsys.readouterr() == (f"wrote {tmp_path}\n", "")
    monkeypatch.setattr("afd_serve.cli.fitting.find_spec", lambda _: None)
    _say_what_was_written([tmp_path])
    assert "pip install 'afd-serve[plots]'" in capsys.readouterr().err


def test_stop_without_a_server(run: Run, tmp_path: Path) -> None:
    assert run("stop", "--state-dir", tmp_path)[:2] == (0, f"nothing runs in {tmp_path}\n")


@pytest.mark.parametrize(
    ("server", "options"),
    [
        ("torchserve", ["--port", "--management-port", "--metrics-port", "--grpc-port", "--grpc-management-port"]),
        ("triton", ["--port", "--grpc-port", "--metrics-port"]),
    ],
)
def test_what_is_no_port_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str, options: list[str]
) -> None:
    monkeypatch.setattr("afd_serve.servers.quickstart.serve_torchserve", None)
    monkeypatch.setattr("afd_serve.servers.triton_quickstart.serve_triton", None)
    for option in options:
        for port in (0, 65536):
            status, _, err = run("serve", server, "--state-dir", tmp_path, option, port)
            assert status == 2
            assert option in err


def test_stop_holds_the_state_directory(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(state_dir: Path) -> bool:
        with pytest.raises(ConfigError, match="another run"), alone_in(state_dir):
            pass
        return True

    monkeypatch.setattr("afd_serve.servers.torchserve.TorchServe.stop", stop)
    assert run("stop", "--state-dir", tmp_path)[:2] == (0, "stopped\n")
    missing = tmp_path / "missing"
    assert run("stop", "--state-dir", missing)[1] == f"nothing runs in {missing}\n"
    assert not missing.exists()


def test_doctor_has_a_line_for_everything(run: Run) -> None:
    status, out, _ = run("doctor")
    lines = out.splitlines()
    assert status == 0
    for name in ("Python", "torch", "JPEG extension", "backbone weights", "AFD weights", "java", "ports"):
        (line,) = [line for line in lines if line[8:].startswith(f"{name} ")]
        assert line.startswith(("ok", "missing"))
    (extension,) = [line for line in lines if "JPEG extension" in line]
    assert extension.startswith("ok")
    assert "libjpeg" in extension


@pytest.mark.parametrize(
    ("looked_for", "found", "name", "expected"),
    [
        ("afd_serve.checkpoint.shipped_models", (), "AFD weights", 2),
        ("afd_serve.servers.allocator.jemalloc", None, "jemalloc", 0),
    ],
    ids=["what every use needs", "what one feature needs"],
)
def test_doctor_fails_where_something_is_missing_that_every_use_needs(
    run: Run, monkeypatch: pytest.MonkeyPatch, looked_for: str, found: object, name: str, expected: int
) -> None:
    monkeypatch.setattr(looked_for, lambda: found)
    status, out, _ = run("doctor")
    assert status == expected
    assert any(line.split(maxsplit=1)[0] == "missing" and name in line for line in out.splitlines())


def test_names_that_the_output_has_no_letters_for_are_escaped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "afd_serve", "stop", "--state-dir", tmp_path / os.fsdecode(b"d\xe9")]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout == f"nothing runs in {tmp_path}/d\\udce9\n".encode()
