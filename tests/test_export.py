"""Deployment: TorchScript, its signature, and the checks around both."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afd_serve.checkpoint import load_afd, save_afd, shipped_models
from afd_serve.config import PRESETS, SERVED_PRESET
from afd_serve.engines import Engine
from afd_serve.errors import AfdError, CheckpointError, ConfigError, ExportError
from afd_serve.evaluation.latency import deployed_forms
from afd_serve.export import (
    _TOLERANCE,
    MODEL_NAME,
    _check_parity,
    _check_pictures,
    deploy,
    eager_classifier,
    example_inputs,
    export_classifier,
    load_deployed,
    load_features,
)
from afd_serve.exported import FEATURES_NAME, exported_files
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.classifier import AfdClassifier
from afd_serve.models.repconv import RepConv
from afd_serve.runs import alone_in
from afd_serve.signature import SIGNATURE_NAME, Signature
from tests import foreign
from tests.conftest import awakened, largest_file
from tests.test_classifier import batch
from tests.tiny_backbone import SIZE


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("gate", [[1.0], [0.0], [1.0, 0.0, 1.0]])
def test_scripted_equals_eager(tiny: Backbone, tmp_path: Path, preset: str, gate: list[float]) -> None:
    save_afd(awakened(tiny, preset), tmp_path / "afd.safetensors")
    afd = load_afd(tmp_path / "afd.safetensors", tiny)
    with torch.inference_mode():
        eager = AfdClassifier(tiny, afd).eval()(*batch(gate))
        scripted = deploy(tmp_path).module(*batch(gate))
    for ours, theirs in zip(scripted, eager, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_closed_gate_is_the_scripted_bare_backbone_bit_for_bit(tiny_run: Path) -> None:
    module = deploy(tiny_run).module
    closed = batch([0.0])
    with torch.inference_mode():
        reference = module(*closed)[0]
        others = closed._replace(dequantized=-closed.dequantized, quant_tables=closed.quant_tables + 3)
        assert torch.equal(module(*others)[0], reference)


def test_an_exported_folder_says_everything_a_server_needs(tiny_run: Path, tmp_path: Path) -> None:
    exported = export_classifier(tiny_run, tmp_path / "models" / "out")
    assert sorted(path.name for path in exported.folder.iterdir()) == [FEATURES_NAME, MODEL_NAME, SIGNATURE_NAME]
    signature = Signature.from_json((exported.folder / SIGNATURE_NAME).read_text())
    assert signature == exported.signature
    assert [(spec.name, spec.dtype, spec.shape) for spec in signature.inputs] == [
        ("rgb", "uint8", (-1, 3, SIZE, SIZE)),
        ("dequantized", "int16", (-1, 8, 8, 192)),
        ("quant_tables", "int32", (-1, 3, 64)),
        ("geometry", "float32", (-1, 3)),
        ("gate", "float32", (-1,)),
    ]
    deployed = load_deployed(exported.folder)
    for spec, tensor in zip(signature.inputs, batch([1.0, 0.0]), strict=True):
        assert str(tensor.dtype) == f"torch.{spec.dtype}"
        assert tuple(tensor.shape[1:]) == spec.shape[1:]
    for spec, tensor in zip(signature.outputs, deployed.module(*batch([1.0, 0.0])), strict=True):
        assert str(tensor.dtype) == f"torch.{spec.dtype}"
        assert tuple(tensor.shape) == (2, *spec.shape[1:])


def test_weights_load_for_a_device_as_an_exported_folder_does(tiny_run: Path, tmp_path: Path) -> None:
    device = torch.device("cpu")
    folder = export_classifier(tiny_run, tmp_path).folder
    with torch.inference_mode():
        expected = load_deployed(folder).module(*batch([1.0, 0.0]))
        for source in (folder, tiny_run):
            loaded = load_deployed(source, device).module(*batch([1.0, 0.0]))
            for ours, theirs in zip(loaded, expected, strict=True):
                torch.testing.assert_close(ours, theirs)


def test_a_changed_model_file_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    folder = export_classifier(tiny_run, tmp_path).folder
    data = bytearray((folder / MODEL_NAME).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / MODEL_NAME).write_bytes(data)
    with pytest.raises(CheckpointError, match="not the files that were exported"):
        load_deployed(folder)
    (folder / MODEL_NAME).unlink()
    with pytest.raises(CheckpointError, match="a file is missing"):
        load_deployed(folder)


def test_an_unknown_source_names_what_there_is() -> None:
    with pytest.raises(CheckpointError, match="efficientnet-lite0"):
        deploy("no-such-model")


def test_the_package_ships_the_default_model_in_under_a_megabyte_and_all_in_under_six() -> None:
    shipped = shipped_models()
    assert shipped["efficientnet-lite0"] == shipped[f"efficientnet-lite0/{SERVED_PRESET}"]
    assert shipped["efficientnet-lite0"].stat().st_size < 1_000_000
    assert sum(path.stat().st_size for path in set(shipped.values())) < 6_000_000


@pytest.mark.parametrize("name", [name for name in shipped_models() if "/" in name])
def test_every_shipped_model_runs_and_is_what_its_name_says(name: str) -> None:
    deployed = deploy(name)  # compares it with the eager classifier
    backbone, preset = name.split("/")
    assert (deployed.signature.backbone, deployed.signature.preset) == (backbone, preset)
    inputs = example_inputs(deployed.signature.preprocessing.size)  # the first gate is open, the second is closed
    with torch.inference_mode():
        protected = deployed.module(*inputs)[0]
        bare = deployed.module(*inputs._replace(gate=torch.zeros(2)))[0]
    assert not torch.allclose(protected[0], bare[0], atol=1e-2)
    torch.testing.assert_close(protected[1], bare[1])


def test_the_shipped_model_deploys_and_agrees_with_eager() -> None:
    backbone = load_backbone("efficientnet-lite0")
    afd = load_afd(shipped_models()["efficientnet-lite0"], backbone)
    afd.reparameterize()
    module = deploy("efficientnet-lite0").module
    torch.manual_seed(4)
    for n in (1, 3):
        inputs = (
            torch.randint(0, 256, (n, 3, 224, 224), dtype=torch.uint8),
            torch.randint(-50, 50, (n, 28, 28, 192), dtype=torch.int16),
            torch.randint(1, 99, (n, 3, 64), dtype=torch.int32),
            torch.zeros(n, 3),
            torch.ones(n),
        )
        with torch.inference_mode():
            eager = AfdClassifier(backbone, afd).eval()(*inputs)
            for ours, theirs in zip(module(*inputs), eager, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "full"])
def test_what_is_deployed_has_no_branches(tiny: Backbone, tmp_path: Path, preset: str) -> None:
    save_afd(awakened(tiny, preset), tmp_path / "afd.safetensors")
    blocks = [
        module for module in eager_classifier(tmp_path / "afd.safetensors").modules() if isinstance(module, RepConv)
    ]
    assert blocks
    assert all(isinstance(block.body, nn.Conv2d) for block in blocks)


@pytest.mark.parametrize("function", foreign.NOT_FOR_THE_COMPILER)
def test_a_trunk_that_cannot_be_scripted_is_traced_with_its_gates_alive(tmp_path: Path, function: str) -> None:
    third_party = load_backbone(f"file:{foreign.__file__}:{function}")
    afd = awakened(third_party)
    save_afd(afd, tmp_path / "afd.safetensors")
    module = deploy(tmp_path / "afd.safetensors").module
    for gate in ([0.0], [1.0], [0.0, 1.0]):
        with torch.inference_mode():
            eager = AfdClassifier(third_party, afd).eval()(*batch(gate))
            scripted = module(*batch(gate))
        torch.testing.assert_close(scripted[0], eager[0], atol=1e-4, rtol=1e-4)
    bare = deployed_forms(tmp_path / "afd.safetensors").bare()
    torch.testing.assert_close(
        bare, AfdClassifier(third_party, afd).eval()(*example_inputs(SIZE, 1)._replace(gate=torch.zeros(1)))[0]
    )


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_short_precision_is_the_trunks_alone(tiny: Backbone, tiny_run: Path, tmp_path: Path, precision: str) -> None:
    """The file for a GPU on the CPU's tensors."""
    exported = export_classifier(tiny_run, tmp_path, precision=precision)
    assert Signature.from_json((tmp_path / SIGNATURE_NAME).read_text()) == exported.signature
    assert exported.signature.precision == precision
    with torch.inference_mode():
        for gates in ([1.0], [0.0, 1.0], [0.0]):
            logits, drift = load_deployed(tmp_path).module(*batch(gates))
            expected, same_drift = load_deployed(tiny_run).module(*batch(gates))
            assert (logits.dtype, drift.dtype) == (torch.float32, torch.float32)
            torch.testing.assert_close(drift, same_drift)
            assert 0 < (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert next(tiny.module.parameters()).dtype == torch.float32


def test_a_classifier_that_casts_to_float32_itself_has_no_short_precision(tmp_path: Path) -> None:
    third_party = load_backbone(f"file:{foreign.__file__}:casting")
    save_afd(awakened(third_party), tmp_path / "afd.safetensors")
    with pytest.raises(ExportError, match=r"computed in bfloat16 \(.*BFloat16.*\): .*--engine openvino$") as refused:
        deploy(tmp_path / "afd.safetensors", precision="bfloat16")
    assert "\n" not in str(refused.value)


def test_an_unknown_precision_is_refused(tiny_run: Path) -> None:
    with pytest.raises(ExportError, match="bfloat16"):
        deploy(tiny_run, precision="float8")


def answering(*, opened: float = 0.0, closed: float = 0.0) -> Engine:
    """An engine that gives its first class this logit, and its second class zero."""

    def engine(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        gate = inputs[-1]
        first = torch.where(gate > 0, opened, closed)
        return torch.stack((first, torch.zeros_like(gate)), dim=1), gate

    return engine


@pytest.mark.parametrize("gate", ["opened", "closed"])
@pytest.mark.parametrize("logit", [0.1, -0.1, math.nan])
def test_an_engine_that_says_something_else_of_a_real_picture_is_refused(
    tiny: Backbone, gate: str, logit: float
) -> None:
    with pytest.raises(ExportError, match=r"a probability of a real picture is off by"):
        _check_pictures(answering(), answering(**{gate: logit}), tiny.preprocessing, "float32")


def test_how_far_an_engine_is_off_at_worst_is_found(tiny: Backbone) -> None:
    found = _check_pictures(answering(), answering(opened=0.001, closed=-0.002), tiny.preprocessing, "float32")
    assert found == pytest.approx(0.0005, rel=1e-3)


@pytest.mark.parametrize("off", [2e-4, -2e-4, math.nan])
@pytest.mark.parametrize("output", range(2))
def test_a_compiled_classifier_that_says_something_else_of_noise_is_refused(off: float, output: int) -> None:
    expected = torch.tensor([[1.0, -0.5]]), torch.tensor([0.5])
    said = list(expected)
    said[output] = said[output] + off
    _check_parity([expected], [expected], 1e-4)
    with pytest.raises(ExportError, match=r"of the scripted classifier is off by"):
        _check_parity([expected, expected], [expected, (said[0], said[1])], 1e-4)


def test_every_compiled_classifier_is_held_against_the_original(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_TOLERANCE, "float32", -1.0)  # nothing is as near as that
    with pytest.raises(ExportError, match=r"of the scripted classifier is off by"):
        deploy(tiny_run)


@pytest.mark.parametrize("name", [MODEL_NAME, SIGNATURE_NAME])
def test_a_full_disk_leaves_the_folder_as_it_was(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = export_classifier(tiny_run, tmp_path / "out").folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if name == SIGNATURE_NAME:
        monkeypatch.setattr(Signature, "to_json", lambda _: "x" * 2 * len(before[MODEL_NAME]))
    size = len(before[MODEL_NAME]) // 2 if name == MODEL_NAME else len(before[MODEL_NAME]) + 4096
    with largest_file(size), pytest.raises(ExportError, match=r"cannot be written to .*out: "):
        export_classifier(tiny_run, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("model", ["no-such-model", "damaged", "exported"])
def test_an_export_that_fails_leaves_no_folder(tiny_run: Path, tmp_path: Path, model: str) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "afd.safetensors").write_bytes((tiny_run / "afd.safetensors").read_bytes()[:-8])
    export_classifier(tiny_run, tmp_path / "exported")
    before = sorted(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "there" / "out"):
        with pytest.raises(AfdError):
            export_classifier(tmp_path / model, out)
    assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "there"]
    assert not list((tmp_path / "there").iterdir())


def test_an_exported_model_is_not_exported_again(tiny_run: Path, tmp_path: Path) -> None:
    folder = export_classifier(tiny_run, tmp_path / "exported").folder
    with pytest.raises(CheckpointError, match=r"exported is exported already; give the fitted run that it came from"):
        export_classifier(folder, tmp_path / "again")


def test_what_a_killed_export_left_is_removed_but_not_what_another_is_at_work_on(
    tiny_run: Path, tmp_path: Path
) -> None:
    partial = tmp_path / ".partial-killed"
    partial.mkdir()
    (partial / MODEL_NAME).touch()
    with alone_in(tmp_path), pytest.raises(ConfigError, match="another run is at work in"):
        export_classifier(tiny_run, tmp_path)
    assert [path.name for path in partial.iterdir()] == [MODEL_NAME]
    export_classifier(tiny_run, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FEATURES_NAME, MODEL_NAME, SIGNATURE_NAME]


@pytest.mark.parametrize("content", [b"\xff" * 9000, b"", b"[" * 10**5])
def test_a_damaged_signature_is_named(tiny_run: Path, tmp_path: Path, content: bytes) -> None:
    path = export_classifier(tiny_run, tmp_path).folder / SIGNATURE_NAME
    path.write_bytes(content)
    for look_at in (load_deployed, load_features, exported_files):
        with pytest.raises(CheckpointError) as caught:
            look_at(tmp_path)
        message = str(caught.value)
        assert message.startswith(f"{path} cannot be read: this is no signature of an exported classifier: ")
        assert len(message) < 500
