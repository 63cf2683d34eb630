"""The model repository: what is in it, and that its configuration fits the classifier."""

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from afd_serve.cli import main
from afd_serve.engines.torchscript import quiet
from afd_serve.errors import CheckpointError, PackagingError
from afd_serve.export import export_classifier, load_deployed
from afd_serve.mode import Mode
from afd_serve.packaging import triton as packaging
from afd_serve.packaging.triton import TritonLimits, check_repository, package_triton
from afd_serve.pipeline import Pipeline
from afd_serve.request import MAX_PICTURES
from afd_serve.sample import sample_picture
from afd_serve.servers.triton_environment import SHARED_MEMORY
from afd_serve.signature import Signature
from tests.conftest import in_a_process_of_its_own, largest_file
from tests.tiny_backbone import CLASSES

text_format = pytest.importorskip("google.protobuf.text_format")
model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")

PLATFORMS = ("python", "pytorch_libtorch")
MODELS = {
    "python_cpu": {"afd_classify"},
    "python": {"afd_classify", "afd_classifier", "jpeg_coefficients"},
    "pytorch_libtorch": {"afd_answer", "afd_classify", "afd_classifier", "jpeg_coefficients"},
}
TORCH = {
    "TYPE_UINT8": torch.uint8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_FP32": torch.float32,
}


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    export_classifier(tiny_run, out)
    return out


@pytest.fixture(scope="module", params=PLATFORMS)
def repository(request: pytest.FixtureRequest, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    limits = TritonLimits(decoders=2, classifiers=3, max_queue_size=7, queue_timeout=0.25)
    return package_triton(exported, tmp_path_factory.mktemp(request.param), platform=request.param, limits=limits)


def config_of(repository: Path, model: str) -> Any:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config.ModelConfig())


def is_libtorch(repository: Path) -> bool:
    return (repository / "afd_answer").is_dir()


def test_what_is_in_the_repository(repository: Path, exported: Path) -> None:
    platform = "pytorch_libtorch" if is_libtorch(repository) else "python"
    assert {path.name for path in repository.iterdir()} == MODELS[platform]
    for model in MODELS[platform]:
        config = config_of(repository, model)
        assert config.name == model
        assert config.max_batch_size == MAX_PICTURES
        assert config.version_policy.latest.num_versions == 1
        assert (repository / model / "1").is_dir()
        assert (config.backend == "python") is (repository / model / "1" / "model.py").is_file()
        for warm_up in config.model_warmup:
            files = {tensor.input_data_file for tensor in warm_up.inputs.values()}
            assert files <= {path.name for path in (repository / model / "warmup").iterdir()}
        for output in config.output:
            if output.label_filename:
                labels = (repository / model / output.label_filename).read_text().splitlines()
                assert labels == [f"class {index}" for index in range(CLASSES)]
    assert (repository / "afd_classifier" / "1" / "model.pt").read_bytes() == (exported / "model.pt").read_bytes()


def test_a_cpus_repository_has_one_model_with_everything_in_it(exported: Path, tmp_path: Path) -> None:
    package_triton(exported, tmp_path)
    limits = TritonLimits(decoders=2, classifiers=3, max_queue_size=7)
    package_triton(exported, tmp_path, platform="python_cpu", limits=limits)
    assert {path.name for path in tmp_path.iterdir()} == MODELS["python_cpu"]
    version = tmp_path / "afd_classify" / "1"
    assert {path.name for path in version.iterdir()} == {"model.py", "model.pt", "signature.json"}
    assert (tmp_path / "afd_classify" / "warmup" / "picture").read_bytes()[4:] == sample_picture()
    config = config_of(tmp_path, "afd_classify")
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (
        3,
        model_config.ModelInstanceGroup.KIND_CPU,
    )
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    ensemble = package_triton(exported, tmp_path / "steps")
    assert config.input == config_of(ensemble, "afd_classify").input
    assert config.output == config_of(ensemble, "afd_classify").output
    path = tmp_path / "afd_classify" / "config.pbtxt"
    path.write_text(path.read_text().replace(f"dims: [ {CLASSES} ]", "dims: [ 3 ]"))
    with pytest.raises(PackagingError, match="classes"):
        check_repository(tmp_path, Signature.from_json((exported / "signature.json").read_text()))


def test_labels_are_in_the_order_of_the_classes(exported: Path, tmp_path: Path) -> None:
    other = shutil.copytree(exported, tmp_path / "other")
    signature = Signature.from_json((other / "signature.json").read_text())
    labels = [f"class {(index + 3) % CLASSES}" for index in range(CLASSES)]
    (other / "signature.json").write_text(replace(signature, labels=tuple(labels)).to_json())
    package_triton(other, tmp_path / "models")
    assert (tmp_path / "models" / "afd_classify" / "labels.txt").read_text().splitlines() == labels


@pytest.mark.parametrize(
    "label", ["two\nlines", "two\r\nlines\r", "two\u2028\x85lines", "", "Zürich 時計", "not UTF-8: \udcff"]
)
def test_a_label_is_one_line_whatever_is_in_it(exported: Path, tmp_path: Path, label: str) -> None:
    other = shutil.copytree(exported, tmp_path / "other")
    signature = Signature.from_json((other / "signature.json").read_bytes())
    (other / "signature.json").write_text(replace(signature, labels=(label, *signature.labels[1:])).to_json())
    package_triton(other, tmp_path / "models")
    first, *others = (tmp_path / "models" / "afd_classify" / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert first == " ".join(label.split()).replace("\udcff", "?")
    assert tuple(others) == signature.labels[1:]


_PACKAGE = """
import sys
from pathlib import Path
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.packaging.triton import package_triton

source, out = map(Path, sys.argv[1:])
package_torchserve(source, out)
package_triton(source, out)
"""


def test_a_locale_without_utf_8_is_no_hindrance(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(exported, tmp_path / "other")
    signature = Signature.from_json((other / "signature.json").read_bytes())
    (other / "signature.json").write_text(replace(signature, labels=("Zürich", *signature.labels[1:])).to_json())
    for name, value in (("LC_ALL", "POSIX"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
        monkeypatch.setenv(name, value)
    assert in_a_process_of_its_own(_PACKAGE, str(other), str(tmp_path / "out")) == (0, "", "")
    labels = (tmp_path / "out" / "afd_classify" / "labels.txt").read_bytes()
    assert labels.startswith("Zürich\n".encode())


def test_limits_go_into_the_configuration(repository: Path) -> None:
    assert config_of(repository, "jpeg_coefficients").instance_group[0].count == 2
    classifier = config_of(repository, "afd_classifier")
    assert classifier.instance_group[0].count == 3
    assert classifier.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_AUTO
    policy = classifier.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 250_000)
    assert policy.timeout_action == model_config.ModelQueuePolicy.REJECT


@pytest.mark.parametrize(
    ("platform", "mode", "modes"),
    [
        ("python_cpu", Mode.PROTECT, "protect off shadow"),
        ("python_cpu", Mode.SHADOW, "protect off shadow"),
        ("python", Mode.SHADOW, "protect off shadow"),
        ("pytorch_libtorch", Mode.OFF, "protect off"),
    ],
)
def test_the_models_mode_is_in_its_parameters(
    exported: Path, tmp_path: Path, platform: str, mode: Mode, modes: str
) -> None:
    package_triton(exported, tmp_path, platform=platform, mode=mode)
    model = "afd_classify" if platform == "python_cpu" else "jpeg_coefficients"
    parameters = config_of(tmp_path, model).parameters
    assert {name: value.string_value for name, value in parameters.items()} == {"afd": mode.value, "afd_modes": modes}


def test_tritons_own_backend_has_no_shadow_mode(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(PackagingError, match="one of protect, off, not shadow"):
        package_triton(exported, tmp_path, platform="pytorch_libtorch", mode=Mode.SHADOW)


def tensors_of(repository: Path, batch: int) -> list[torch.Tensor]:
    """What Triton would pass to the classifier, by its configuration and its warm-up data."""
    config = config_of(repository, "afd_classifier")
    (warm_up,) = config.model_warmup
    tensors = []
    for tensor in config.input:
        kind = model_config.DataType.Name(tensor.data_type)
        if kind == "TYPE_STRING":
            continue
        data = (repository / "afd_classifier" / "warmup" / warm_up.inputs[tensor.name].input_data_file).read_bytes()
        assert list(warm_up.inputs[tensor.name].dims) == list(tensor.dims)
        shape = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        one = torch.frombuffer(bytearray(data), dtype=TORCH[kind]).reshape(1, *shape)
        tensors.append(one.repeat(batch, *(1 for _ in shape)))
    return tensors


@pytest.mark.parametrize("batch", [1, 3])
def test_the_file_takes_and_gives_what_the_configuration_says(repository: Path, batch: int) -> None:
    with quiet():  # the file itself, as Triton's own backend loads it
        module = torch.jit.load(repository / "afd_classifier" / "1" / "model.pt")
    inputs = config_of(repository, "afd_classifier").input
    arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
    tensors = tensors_of(repository, batch)
    names = [tensor.name for tensor in inputs][: len(tensors)]
    if is_libtorch(repository):
        assert names == [f"{name}__{index}" for index, name in enumerate(arguments)]
    else:
        assert names == arguments
    with torch.inference_mode():
        logits, drift = module(*tensors)
    assert (logits.shape, drift.shape) == ((batch, CLASSES), (batch,))
    if is_libtorch(repository):
        outputs = config_of(repository, "afd_classifier").output
        assert [tensor.name for tensor in outputs] == ["logits__0", "drift__1"]
        assert list(outputs[0].dims) == [CLASSES]


def test_the_warm_up_is_the_sample_picture(repository: Path, exported: Path) -> None:
    data = (repository / "jpeg_coefficients" / "warmup" / "picture").read_bytes()
    assert data == len(sample_picture()).to_bytes(4, "little") + sample_picture()
    prepared = Pipeline.load(exported).prepare(sample_picture())
    tables = tensors_of(repository, 1)[2]
    assert torch.equal(tables[0], torch.from_numpy(prepared.quant_tables))


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        ("afd_classifier", "TYPE_INT16", "TYPE_INT32"),
        ("afd_classifier", "dims: [ 3, 64 ]", "dims: [ 64, 3 ]"),
        ("afd_classifier", 'name: "geometry', 'name: "geometrie'),
        ("afd_classifier", "reshape: { shape: [ ] }", ""),
        ("afd_classify", 'output_map { key: "geometry" value: "geometry" }', ""),
        ("afd_classify", 'name: "status" data_type: TYPE_STRING', 'name: "status" data_type: TYPE_INT32'),
        ("jpeg_coefficients", "TYPE_UINT8", "TYPE_INT8"),
        ("jpeg_coefficients", "max_batch_size", "no_such_field"),
    ],
)
def test_what_does_not_fit_is_found(repository: Path, exported: Path, model: str, old: str, new: str) -> None:
    signature = Signature.from_json((exported / "signature.json").read_text())
    check_repository(repository, signature)
    config = repository / model / "config.pbtxt"
    original = config.read_text()
    assert old in original
    config.write_text(original.replace(old, new))
    try:
        with pytest.raises(PackagingError):
            check_repository(repository, signature)
    finally:
        config.write_text(original)


def test_tritons_own_backend_must_give_the_shapes_that_the_classifier_gives(exported: Path, tmp_path: Path) -> None:
    config = package_triton(exported, tmp_path, platform="pytorch_libtorch") / "afd_classifier" / "config.pbtxt"
    drift = '"drift__1" data_type: TYPE_FP32 dims: [ 1 ]'
    assert f"{drift} reshape: {{ shape: [ ] }}" in config.read_text()
    config.write_text(config.read_text().replace(f"{drift} reshape: {{ shape: [ ] }}", drift))
    with pytest.raises(PackagingError, match="the classifier has drift__1 as"):
        check_repository(tmp_path, Signature.from_json((exported / "signature.json").read_text()))


def test_a_template_that_does_not_fit_the_classifier_leaves_the_repository_as_it_was(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = shutil.copytree(packaging.repository_templates(), tmp_path / "templates")
    config = templates / "python" / "afd_classifier" / "config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_INT16", "TYPE_INT32"))
    monkeypatch.setattr(packaging, "repository_templates", lambda: templates)
    with pytest.raises(PackagingError, match="the classifier has dequantized as"):
        package_triton(exported, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_what_is_not_exported_yet_is_exported_first(tiny_run: Path, tmp_path: Path) -> None:
    version = package_triton(tiny_run, tmp_path, platform="python_cpu") / "afd_classify" / "1"
    assert load_deployed(version).signature.name == tiny_run.name


def test_a_model_that_is_not_the_exported_one_is_not_packaged(exported: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(exported, tmp_path / "changed")
    (changed / "model.pt").write_bytes((exported / "features.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.pt in .* not the files that were exported"):
        package_triton(changed, tmp_path / "models")


def test_a_full_temporary_folder_leaves_the_repository_as_it_was(exported: Path, tmp_path: Path) -> None:
    package_triton(exported, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    size = (exported / "model.pt").stat().st_size
    with largest_file(size // 2), pytest.raises(PackagingError, match=f"cannot be written to {tmp_path}"):
        package_triton(exported, tmp_path, mode=Mode.OFF)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_repository_where_there_is_a_file_is_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(PackagingError, match="cannot be written to"):
        package_triton(exported, tmp_path / "models")


def test_a_repository_may_lie_on_another_disk_than_temporary_files(exported: Path) -> None:
    with TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        for _ in range(2):
            assert {path.name for path in package_triton(exported, Path(folder)).iterdir()} == MODELS["python"]


def test_a_repository_is_replaced_and_its_neighbours_stay(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "other_model").mkdir()
    package_triton(exported, tmp_path, platform="pytorch_libtorch")
    (tmp_path / "afd_classifier" / "1" / "leftover").touch()
    package_triton(exported, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == MODELS["python"] | {"other_model"}
    assert not (tmp_path / "afd_classifier" / "1" / "leftover").exists()


def test_a_disk_that_fills_up_leaves_the_repository_as_it_was(
    exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = shutil.copytree

    def fails_at_the_last_model(source: Path | str, *arguments: Any, **named: Any) -> Any:
        if Path(source).name == "jpeg_coefficients":
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        return copy(source, *arguments, **named)

    package_triton(exported, tmp_path, platform="pytorch_libtorch")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(shutil, "copytree", fails_at_the_last_model)
    with pytest.raises(PackagingError, match=r"cannot be written to [^:]*: .Errno 28. No space [^:]*: [^:]*$"):
        package_triton(exported, tmp_path, platform="python", mode=Mode.OFF)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == MODELS["pytorch_libtorch"]


@pytest.mark.parametrize("renames", range(4))
def test_an_interruption_while_models_are_replaced_leaves_the_earlier_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, renames: int
) -> None:
    built, out = tmp_path / "built", tmp_path / "out"
    for folder, names in ((built, ("afd_answer", "afd_classify")), (out, ("afd_classify", "jpeg_coefficients"))):
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / "config.pbtxt").write_text(str(folder))
    left, rename = [renames], Path.rename

    def interrupted(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packaging._put_in_place(built, out)
    found = {path.name: (path / "config.pbtxt").read_text() for path in out.iterdir()}
    assert found == {"afd_classify": str(out), "jpeg_coefficients": str(out)}


def test_the_command_line_packages_and_refuses(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for platform, status in (("python", 0), ("python_cpu", 0), ("pytorch_libtorch", 0), ("tensorrt", 2)):
        with pytest.raises(SystemExit) as ended:
            main(["package", "triton", "--model", str(exported), "--out", str(tmp_path), "--platform", platform])
        assert (ended.value.code or 0) == status
    captured = capsys.readouterr()
    assert captured.out.split() == [str(tmp_path)] * 3
    assert captured.err.startswith("error: the platform is one of python, python_cpu, pytorch_libtorch")


def test_an_unknown_platform_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(PackagingError, match="pytorch_libtorch"):
        package_triton(exported, tmp_path, platform="tensorrt")
