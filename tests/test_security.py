"""Attacks on files and on the package's own code; docs/security.md says what each one stands for."""

import ast
import hashlib
import io
import json
import pickle
import re
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from safetensors.torch import save_file

from afd_serve.checkpoint import CONFIG_KEY, load_afd, read_config
from afd_serve.errors import AfdError, CheckpointError
from afd_serve.explain import Explainer
from afd_serve.export import export_classifier, load_deployed
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.presets import preset_config
from afd_serve.packaging.seal import (
    HANDLER_NAME,
    MANIFEST_NAME,
    SEAL_NAME,
    check_archive,
    check_seal,
    make_seal,
)
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.servers.launch import store_archive
from afd_serve.training.state import load_state

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("afd_serve", "handlers", "model_repository") for path in (ROOT / folder).rglob("*.py")]

READERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
"""Modules whose readers run what a file tells them to."""


def dangers(source: str) -> Iterator[str]:
    """What in a module could run code out of a data file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in READERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in READERS:
            yield str(node.module)
        elif isinstance(node, ast.Call) and _is_danger(ast.unparse(node.func), node.keywords):
            yield ast.unparse(node)


def _is_danger(function: str, keywords: list[ast.keyword]) -> bool:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
    if function == "torch.load":
        return given.get("weights_only") != "True"
    if function in {"np.load", "numpy.load"}:
        return given.get("allow_pickle", "False") != "False"
    return function in {"eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.package.PackageImporter"}


def test_files_in_the_folder_that_one_works_in_are_not_executed(
    tiny_run: Path, booby_trapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(booby_trapped)
    assert package_torchserve(tiny_run, booby_trapped / "store").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_package_reads_pickles(path: Path) -> None:
    assert not list(dangers(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "eval(text)",
    ],
)
def test_the_search_for_dangers_finds_them(source: str) -> None:
    assert list(dangers(source))


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture(params=["pickle", "torch.save", "zip"])
def attack(request: pytest.FixtureRequest, marker: Path) -> bytes:
    """A file that runs code in a reader of pickles; as TorchScript has them in the third form."""
    out = io.BytesIO()
    if request.param == "pickle":
        return pickle.dumps(Payload(marker))
    if request.param == "torch.save":
        torch.save({"weight": Payload(marker)}, out)
        return out.getvalue()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Payload(marker)))
        archive.writestr("model/constants.pkl", pickle.dumps(Payload(marker)))
        archive.writestr("model/version", "3\n")
    return out.getvalue()


def test_the_payload_works(marker: Path) -> None:
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def assert_refused(read: Callable[[], object], marker: Path) -> None:
    with pytest.raises(AfdError):
        read()
    assert not marker.exists()


def test_a_pickle_in_the_place_of_fitted_weights(tmp_path: Path, tiny: Backbone, attack: bytes, marker: Path) -> None:
    weights = tmp_path / "afd.safetensors"
    weights.write_bytes(attack)
    assert_refused(lambda: load_afd(weights, tiny), marker)
    assert_refused(lambda: load_deployed(tmp_path), marker)


def test_a_pickle_in_the_place_of_a_fits_state(tmp_path: Path, tiny: Backbone, attack: bytes, marker: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(attack)
    afd, average = (AfdNet(preset_config("lite", tiny)) for _ in range(2))
    assert_refused(lambda: load_state(path, afd, average, torch.optim.AdamW(afd.parameters())), marker)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_pickle_in_the_place_of_a_backbones_weights(tmp_path: Path, attack: bytes, marker: Path, name: str) -> None:
    (tmp_path / name).write_bytes(attack)
    assert_refused(lambda: load_backbone(f"torchvision:mobilenet_v3_small@{tmp_path / name}"), marker)


@pytest.mark.parametrize(
    ("name", "digest", "load"),
    [("model.pt", "sha256", load_deployed), ("features.pt", "features_sha256", Explainer.load)],
)
def test_a_pickle_in_the_place_of_an_exported_file(
    tiny_run: Path, tmp_path: Path, attack: bytes, marker: Path, name: str, digest: str, load: Callable[[Path], object]
) -> None:
    folder = export_classifier(tiny_run, tmp_path / "exported").folder
    (folder / name).write_bytes(attack)
    with pytest.raises(CheckpointError, match="not the files that were exported"):
        load(folder)
    # And where the attacker has changed the signature as well:
    signature = json.loads((folder / "signature.json").read_text())
    del signature["signature_sha256"]
    signature[digest] = hashlib.sha256(attack).hexdigest()
    (folder / "signature.json").write_text(json.dumps(signature))
    assert_refused(lambda: load(folder), marker)


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_classifier(tiny_run, tmp_path_factory.mktemp("exported")).folder


@pytest.fixture
def unpacked(exported: Path, tmp_path: Path) -> Path:
    """An archive as TorchServe unpacks it."""
    with zipfile.ZipFile(package_torchserve(exported, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


@pytest.mark.parametrize(
    "name",
    ["MAR-INF/MANIFEST.json", "afd_handler.py", "features.pt", "model-config.yaml", "model.pt", "signature.json"],
)
def test_a_changed_file_of_an_archive_is_refused(unpacked: Path, name: str) -> None:
    check_seal(unpacked)
    content = bytearray((unpacked / name).read_bytes())
    content[-1] ^= 1
    (unpacked / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        check_seal(unpacked)
    (unpacked / name).unlink()
    with pytest.raises(CheckpointError, match=re.escape(name)):
        check_seal(unpacked)


def test_a_file_that_was_added_to_an_archive_is_refused(unpacked: Path) -> None:
    (unpacked / "__pycache__").mkdir()
    (unpacked / "__pycache__" / "afd_handler.cpython-311.pyc").write_bytes(b"which Python has written")
    check_seal(unpacked)
    (unpacked / "more").mkdir()
    (unpacked / "more" / "sitecustomize.py").touch()
    with pytest.raises(CheckpointError, match=r"more/sitecustomize\.py is not among"):
        check_seal(unpacked)


Files = dict[str, bytes]


def sealed(files: Files) -> Files:
    """The files with a seal of the attacker's."""
    return files | {SEAL_NAME: make_seal({name: data for name, data in files.items() if name != SEAL_NAME})}


def _other_handler(files: Files) -> Files:
    return sealed(files | {HANDLER_NAME: files[HANDLER_NAME].replace(b"        check_seal(model_dir)\n", b"")})


def _another_files_handler(files: Files) -> Files:
    manifest = json.loads(files[MANIFEST_NAME])
    manifest["model"]["handler"] = "other.py"
    return sealed(files | {MANIFEST_NAME: json.dumps(manifest).encode(), "other.py": b""})


TAMPERINGS: dict[str, tuple[Callable[[Files], Files], str]] = {
    "added": (lambda files: files | {"sitecustomize.py": b"print()"}, "sitecustomize.py is not among"),
    "missing": (lambda files: {name: files[name] for name in files if name != "features.pt"}, "lacks features.pt"),
    "changed": (lambda files: files | {"model.pt": files["model.pt"][:-1] + b"?"}, "model.pt is not the file"),
    "unsealed": (lambda files: {name: files[name] for name in files if name != SEAL_NAME}, "no files.json"),
    "handler changed": (lambda files: files | {HANDLER_NAME: b""}, f"{HANDLER_NAME} is not the file"),
    "handler changed and sealed": (_other_handler, "its handler is not the one"),
    "another file's handler": (_another_files_handler, "its handler is not the one"),
    "no manifest": (lambda files: sealed({name: files[name] for name in files if name != MANIFEST_NAME}), "MANIFEST"),
    "manifest without a model": (lambda files: sealed(files | {MANIFEST_NAME: b"[]"}), "cannot be served"),
}


def write_archive(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def archived(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What an archive holds."""
    with zipfile.ZipFile(package_torchserve(exported, tmp_path_factory.mktemp("store"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_an_archive_that_was_tampered_with_is_not_handed_to_a_server(
    archived: Files, tmp_path: Path, kind: str
) -> None:
    tamper, reason = TAMPERINGS[kind]
    store_archive(write_archive(tmp_path / "afd.mar", archived), tmp_path / "state", sealed=True)
    stored = tmp_path / "state" / "model_store" / "afd.mar"
    before = stored.read_bytes()
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        store_archive(write_archive(tmp_path / "afd.mar", tamper(archived)), tmp_path / "state", sealed=True)
    assert [path.name for path in stored.parent.iterdir()] == ["afd.mar"]
    assert stored.read_bytes() == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_files_of_one_name_is_refused(archived: Files, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "afd.mar", archived)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(HANDLER_NAME, archived[HANDLER_NAME])
    with pytest.raises(CheckpointError, match="two files of one name"):
        check_archive(path)


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_what_is_no_archive_is_refused(archived: Files, tmp_path: Path, damage: bytes | None) -> None:
    path = write_archive(tmp_path / "afd.mar", archived)
    content = path.read_bytes() if damage is None else damage
    path.write_bytes(content.replace(b"MAR-INF", b"\xff\xff\xff\xff\xff\xff\xff", 1))
    with pytest.raises(CheckpointError, match="cannot be served"):
        check_archive(path)


def test_what_weights_would_run_can_be_read_without_running_it(tmp_path: Path, tiny_run: Path, marker: Path) -> None:
    code = tmp_path / "evil.py"
    code.write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    weights = tmp_path / "run" / "afd.safetensors"
    config = replace(read_config(tiny_run / "afd.safetensors"), backbone=f"file:{code}")
    weights.parent.mkdir()
    save_file({}, weights, {CONFIG_KEY: config.to_json()})
    assert read_config(weights).backbone == f"file:{code}"
    assert not marker.exists()
    with pytest.raises(AfdError):
        load_deployed(weights.parent)
    assert marker.exists(), "docs/security.md says so"


@pytest.mark.parametrize("seal", [None, "", "[]", '["model.pt"]', "{}", "no json"])
def test_an_archive_without_a_seal_is_refused(unpacked: Path, seal: str | None) -> None:
    (unpacked / SEAL_NAME).unlink()
    if seal is not None:
        (unpacked / SEAL_NAME).write_text(seal)
    with pytest.raises(CheckpointError, match=re.escape(SEAL_NAME)):
        check_seal(unpacked)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> set[str]:
    """The packages that serving and asking need, by the names that pyproject.toml gives them."""
    extras = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(extras[name] for name in ("torchserve", "client", "triton-server"))]
    return {canonicalize_name(Requirement(text).name) for part in lists for text in part}


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_every_package_that_serving_needs_is_pinned() -> None:
    assert len(requirements()) > 15
    assert requirements() - set(pins()) == {"numpy"}


def test_the_oldest_python_can_install_what_is_pinned() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    installed = {canonicalize_name(found.name): found for found in distributions()}
    checked = [installed[name] for name in pins() if name in installed]
    assert len(checked) > 15
    for found in checked:
        assert SpecifierSet(found.metadata.get("Requires-Python", "")).contains(oldest), found.name


def test_the_document_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 10
    for file, test in named:
        assert re.search(rf"def {test}\b", (ROOT / file).read_text()), (file, test)
