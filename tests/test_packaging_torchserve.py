"""The model archive: what is in it, and that it is the same every time."""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from afd_serve.errors import CheckpointError, DependencyError, ExportError, PackagingError
from afd_serve.export import export_classifier
from afd_serve.mode import Mode
from afd_serve.packaging import torchserve as packaging
from afd_serve.packaging.handlers import handlers_dir
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.request import read_mode
from afd_serve.response import MAX_ANSWER_BYTES
from afd_serve.servers import torchserve
from afd_serve.telemetry import METRICS
from tests.conftest import largest_file


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_classifier(tiny_run, tmp_path_factory.mktemp("source") / "exported").folder


def test_what_is_in_the_archive(exported: Path, tmp_path: Path) -> None:
    archive = package_torchserve(exported, tmp_path / "new" / "store", name="clocks", version="2.1")
    assert archive == tmp_path / "new" / "store" / "clocks.mar"
    with zipfile.ZipFile(archive) as content:
        assert content.namelist() == [
            "MAR-INF/MANIFEST.json",
            "afd_handler.py",
            "features.pt",
            "files.json",
            "model-config.yaml",
            "model.pt",
            "signature.json",
        ]
        assert content.read("model.pt") == (exported / "model.pt").read_bytes()
        manifest = json.loads(content.read("MAR-INF/MANIFEST.json"))
        seal = json.loads(content.read("files.json"))
        assert sorted([*seal, "files.json"]) == content.namelist()
        assert {entry.date_time[:3] for entry in content.infolist()} == {(1980, 1, 1)}
    assert "createdOn" not in manifest, "or no two archives would be the same"
    assert manifest["model"] == {
        "modelName": "clocks",
        "modelVersion": "2.1",
        "handler": "afd_handler.py",
        "serializedFile": "model.pt",
        "configFile": "model-config.yaml",
    }


@pytest.mark.parametrize("mode", Mode)
def test_the_models_mode_is_in_its_settings(exported: Path, tmp_path: Path, mode: Mode) -> None:
    with zipfile.ZipFile(package_torchserve(exported, tmp_path / "store", mode=mode)) as content:
        settings = content.read("model-config.yaml").decode()
    assert read_mode(yaml.safe_load(settings)["afd"]["mode"]) is mode
    template = (handlers_dir() / "model-config.yaml").read_text()
    assert settings.replace(f'"{mode.value}"', '"protect"') == template


def test_settings_whose_mode_was_edited_are_refused_instead_of_packaged_with_another(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = shutil.copytree(handlers_dir(), tmp_path / "handlers")
    settings = handlers / "model-config.yaml"
    settings.write_text(settings.read_text().replace('mode: "protect"', 'mode: "shadow"'))
    monkeypatch.setattr(packaging, "handlers_dir", lambda: handlers)
    with pytest.raises(PackagingError, match=r'model-config\.yaml has no line mode: "protect"'):
        package_torchserve(exported, tmp_path / "store")


def test_the_same_exported_model_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    first = package_torchserve(exported, tmp_path / "a").read_bytes()
    (exported / "model.pt").touch()
    assert package_torchserve(exported, tmp_path / "b").read_bytes() == first


def test_the_same_weights_give_the_same_bytes(tiny_run: Path, tmp_path: Path) -> None:
    export_classifier(tiny_run, tmp_path / "before")  # what this process compiles must not show
    first = package_torchserve(tiny_run, tmp_path / "a").read_bytes()
    assert package_torchserve(tiny_run, tmp_path / "b").read_bytes() == first


def test_what_cannot_be_exported_is_not_packaged(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a shipped model"):
        package_torchserve(tmp_path / "none", tmp_path / "store")
    broken = tmp_path / "afd.safetensors"
    broken.write_bytes((tiny_run / "afd.safetensors").read_bytes()[:-8])
    with pytest.raises(ExportError, match=r"cannot be exported: error: .*checkpoint"):
        package_torchserve(broken, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_archive_is_replaced(exported: Path, tmp_path: Path) -> None:
    package_torchserve(exported, tmp_path)
    with zipfile.ZipFile(package_torchserve(exported, tmp_path, version="2.0")) as content:
        assert json.loads(content.read("MAR-INF/MANIFEST.json"))["model"]["modelVersion"] == "2.0"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["afd.mar"]


def test_a_model_exported_without_features_is_packaged_as_it_is(exported: Path, tmp_path: Path) -> None:
    earlier = shutil.copytree(exported, tmp_path / "earlier")
    (earlier / "features.pt").unlink()
    signature = json.loads((earlier / "signature.json").read_text())
    del signature["signature_sha256"]
    (earlier / "signature.json").write_text(json.dumps(signature | {"features_sha256": ""}))
    with zipfile.ZipFile(package_torchserve(earlier, tmp_path / "store")) as content:
        assert "features.pt" not in content.namelist()


def test_the_archivers_refusal_is_passed_on(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(PackagingError, match=r"^torch-model-archiver failed: Model name contains special characters"):
        package_torchserve(exported, tmp_path, name="no/slash")


def test_of_an_error_in_the_archiver_its_words_are_passed_on_without_a_traceback(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_archiver").mkdir()
    (tmp_path / "model_archiver" / "__init__.py").touch()  # comes before the one that is installed
    (tmp_path / "model_archiver" / "model_packaging.py").write_text(
        "try:\n    int('x')\nexcept ValueError:\n    raise OSError(28, 'No space left on device', 'model.pt')\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with pytest.raises(PackagingError) as caught:
        package_torchserve(exported, tmp_path)
    assert str(caught.value) == "torch-model-archiver failed: OSError: [Errno 28] No space left on device: 'model.pt'"


def test_where_the_archiver_is_not_installed_that_is_said(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_archiver").mkdir()
    (tmp_path / "model_archiver" / "__init__.py").touch()  # comes before the one that is installed, with nothing in it
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with pytest.raises(DependencyError, match=r"afd-serve\[torchserve\]"):
        package_torchserve(exported, tmp_path / "store")


def test_a_model_that_is_not_the_exported_one_is_not_packaged(exported: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(exported, tmp_path / "changed")
    (changed / "model.pt").write_bytes((exported / "features.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.pt in .* not the files that were exported"):
        package_torchserve(changed, tmp_path / "store")


@pytest.mark.parametrize(
    ("step", "words"),
    [("copying", "cannot be copied"), ("archiving", "File too large"), ("sealing", "cannot be written")],
)
def test_a_full_disk_leaves_the_archive_as_it_was(exported: Path, tmp_path: Path, step: str, words: str) -> None:
    before = package_torchserve(exported, tmp_path).read_bytes()
    model = (exported / "model.pt").stat().st_size
    limit = {"copying": model // 2, "archiving": model, "sealing": len(before) - 1}[step]
    with largest_file(limit), pytest.raises(PackagingError, match=words):
        package_torchserve(exported, tmp_path, version="2.0")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["afd.mar"]
    assert (tmp_path / "afd.mar").read_bytes() == before


def test_a_folder_of_the_models_name_beside_other_temporary_files_stays(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clocks").mkdir()
    (tmp_path / "clocks" / "kept").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    package_torchserve(exported, tmp_path / "store", name="clocks")
    assert (tmp_path / "clocks" / "kept").exists()


def test_a_folder_that_takes_no_file_is_a_packaging_error(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "afd.mar.partial").mkdir()  # root may write in every folder, but no more than another into this
    with pytest.raises(PackagingError, match=r"the archive cannot be written to .*afd\.mar: "):
        package_torchserve(exported, tmp_path)


@pytest.mark.parametrize("name", ["exported", "built"])
def test_no_name_collides_with_the_folders_of_packaging(exported: Path, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(package_torchserve(exported, tmp_path / "store", name=name)) as content:
        assert content.read("model.pt") == (exported / "model.pt").read_bytes()


def test_a_source_with_a_comma_in_its_path(exported: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(exported, tmp_path / "a,b [1]*")
    with zipfile.ZipFile(package_torchserve(moved, tmp_path / "store")) as content:
        assert "signature.json" in content.namelist()


def test_metrics_yaml_declares_every_metric() -> None:
    declared = yaml.safe_load((handlers_dir() / "metrics.yaml").read_text())["model_metrics"]
    assert set(declared) == {"counter", "gauge"}
    assert len(declared["counter"]) == sum(len(metric.series) for metric in METRICS)
    for metric in METRICS:
        for name in metric.series:
            (found,) = [item for item in declared["counter"] if item["name"] == name]
            unit = "count" if name.endswith("_count") else metric.unit
            assert found == {"name": name, "unit": unit, "dimensions": ["ModelName", *metric.labels]}


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    lines = (handlers_dir() / "config.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_no_answer_comes_near_the_size_that_would_cost_the_worker_its_connection(settings: dict[str, str]) -> None:
    assert int(settings["max_response_size"]) >= 2 * MAX_ANSWER_BYTES


def test_the_settings_stay_on_loopback(settings: dict[str, str]) -> None:
    addresses = {name: value for name, value in settings.items() if name.endswith("_address")}
    assert len(addresses) == 5
    assert all(value.removeprefix("http://").partition(":")[0] == "127.0.0.1" for value in addresses.values())
    assert settings["enable_model_api"] == "false"
    assert settings["disable_token_authorization"] == "false"
    assert settings["enable_envvars_config"] == "false"


def test_free_ports_differ() -> None:
    ports = torchserve.Ports.free()
    assert len({ports.inference, ports.management, ports.metrics, ports.grpc_inference, ports.grpc_management}) == 5


def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    assert torchserve.TorchServe.find(tmp_path) is None
    assert torchserve.TorchServe.stop(tmp_path) is False


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"pid": 1}'])
def test_a_damaged_state_file_is_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    assert torchserve.TorchServe.find(tmp_path) is None
