"""Engines besides TorchScript: the same inputs and outputs, the same answers, and clear words where one is missing."""

import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch

from afd_serve.checkpoint import save_afd
from afd_serve.engines import ENGINES, torchscript
from afd_serve.engines.graphs import write_bare_graph
from afd_serve.engines.runtimes import open_graphs
from afd_serve.errors import CheckpointError, DependencyError, ExportError, PackagingError
from afd_serve.export import _PICTURE_TOLERANCE, eager_classifier, export_classifier, load_deployed, load_features
from afd_serve.exported import FEATURES_NAME, exported_files
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.packaging.triton import package_triton
from afd_serve.signature import SIGNATURE_NAME
from tests import foreign
from tests.conftest import awakened, in_a_process_of_its_own
from tests.test_classifier import batch

CHOICES = [
    ("torchscript", "bfloat16"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
]
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def exported_for(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The folder of a model for an engine and a precision; each is exported once, as that takes seconds."""

    @cache
    def export(engine: str, precision: str = "float32") -> Path:
        out = tmp_path_factory.mktemp(engine)
        return export_classifier(tiny_run, out, engine=engine, precision=precision).folder

    return export


@pytest.mark.parametrize(("engine", "precision"), CHOICES)
def test_every_engine_answers_as_the_original_whatever_the_gates(
    tiny_run: Path, exported_for: Exported, engine: str, precision: str
) -> None:
    deployed, inputs = load_deployed(exported_for(engine, precision)), batch([1.0, 0.0, 1.0])
    assert (deployed.signature.engine, deployed.signature.precision) == (engine, precision)
    with torch.inference_mode():
        logits, drift = deployed.module(*inputs)
        expected, expected_drift = eager_classifier(tiny_run)(*inputs)
    limit = TOLERANCE[precision] * float(expected.abs().max())
    torch.testing.assert_close(logits, expected, atol=limit, rtol=0)
    torch.testing.assert_close(drift, expected_drift, atol=limit, rtol=1e-2)


@pytest.mark.parametrize("has_tiles", [True, False])
def test_graphs_in_bfloat16_answer_alike_on_every_processor(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_tiles: bool
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has_tiles)
    monkeypatch.setattr("afd_serve.engines.graphs._TILE", 8)  # the tiny classifier has 8, 12 and 16 channels
    exported = export_classifier(tiny_run, tmp_path, engine="openvino", precision="bfloat16").folder
    wide = {(16, 8, 3, 3), (16, 16, 3, 3)}
    for name in ENGINES["openvino"].files:
        kernels = {tuple(value.dims) for value in onnx.load(exported / name).graph.initializer}
        assert wide <= kernels if has_tiles else not wide <= kernels
    inputs = batch([1.0, 0.0, 1.0])
    with torch.inference_mode():
        expected = eager_classifier(tiny_run)(*inputs)[0]
    limit = TOLERANCE["bfloat16"] * float(expected.abs().max())
    torch.testing.assert_close(load_deployed(exported).module(*inputs)[0], expected, atol=limit, rtol=0)


@pytest.mark.parametrize("has_tiles", [True, False])
def test_the_bare_backbone_that_costs_are_measured_against_is_as_wide_as_the_deployed_one(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_tiles: bool
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has_tiles)
    monkeypatch.setattr("afd_serve.engines.graphs._TILE", 8)
    write_bare_graph(tiny, batch([0.0]).rgb, tmp_path / "bare.onnx", "bfloat16")
    kernels = {tuple(value.dims) for value in onnx.load(tmp_path / "bare.onnx").graph.initializer}
    assert ((16, 8, 3, 3) in kernels) == has_tiles


@pytest.mark.parametrize(("engine", "computed"), [("onnxruntime", 0), ("openvino", 4)])
def test_a_shift_is_a_computed_bias_where_the_engine_has_fast_convolutions_for_that(
    exported_for: Exported, engine: str, computed: int
) -> None:
    graph = onnx.load(exported_for(engine) / "protected.onnx").graph
    known = {value.name for value in graph.initializer}
    biases = [node.input[2] for node in graph.node if node.op_type == "Conv" and len(node.input) > 2]
    assert len([name for name in biases if name not in known]) == computed


def test_engines_run_as_many_threads_as_torch_and_where_the_system_puts_them(exported_for: Exported) -> None:
    folders = [exported_for("onnxruntime"), exported_for("openvino"), exported_for("openvino", "bfloat16")]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        own, *others = [load_deployed(folder).module._graphs for folder in folders]
    finally:
        torch.set_num_threads(before)
    for graph in own:
        assert graph._session.get_session_options().intra_op_num_threads == 1
    for graphs, precision in zip(others, ("f32", "bf16"), strict=True):
        for graph in graphs:
            compiled = graph._request.get_compiled_model()
            assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
            assert not compiled.get_property("ENABLE_CPU_PINNING")
            hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            assert hint == precision or torch.bfloat16 not in torchscript.precisions()
    assert os.environ["OPENVINO_TELEMETRY_OPT_OUT"] == "1"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_threads_may_ask_at_once(exported_for: Exported, engine: str) -> None:
    classifier, inputs = load_deployed(exported_for(engine)).module, batch([1.0, 0.0, 1.0])
    expected = classifier(*inputs)[0]
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda _: classifier(*inputs)[0], range(40)))
    assert all(torch.equal(logits, expected) for logits in said)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_closed_gate_leaves_afd_out(exported_for: Exported, engine: str) -> None:
    module, closed = load_deployed(exported_for(engine)).module, batch([0.0])
    others = closed._replace(dequantized=-closed.dequantized, quant_tables=closed.quant_tables + 3)
    assert torch.equal(module(*others)[0], module(*closed)[0])


def test_a_graph_sees_where_a_picture_has_drifted(tmp_path: Path, tiny: Backbone) -> None:
    save_afd(awakened(tiny, "full"), tmp_path / "afd.safetensors")
    exported = export_classifier(tmp_path / "afd.safetensors", tmp_path / "full", engine="onnxruntime").folder
    inputs = batch([1.0, 0.0])
    with torch.inference_mode():
        logits, drift = load_deployed(exported).module(*inputs)
        expected, expected_drift = eager_classifier(tmp_path / "afd.safetensors")(*inputs)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE["float32"] * float(expected.abs().max()), rtol=0)
    torch.testing.assert_close(drift, expected_drift)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_inputs_may_lie_in_memory_in_any_order(exported_for: Exported, engine: str) -> None:
    module, inputs = load_deployed(exported_for(engine)).module, batch([1.0, 0.0])
    backwards = (tensor.permute(*range(tensor.dim())[::-1]).contiguous() for tensor in inputs)
    same = [tensor.permute(*range(tensor.dim())[::-1]) for tensor in backwards]
    assert not same[1].is_contiguous()
    for ours, theirs in zip(module(*same), module(*inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_neighbours_do_not_change_a_row(exported_for: Exported) -> None:
    module, inputs = load_deployed(exported_for("onnxruntime")).module, batch([1.0, 0.0])
    together = module(*inputs)[0]
    alone = torch.cat([module(*(tensor[k : k + 1] for tensor in inputs))[0] for k in range(2)])
    assert torch.equal(together, alone)


def test_the_parity_found_at_export_is_recorded(exported_for: Exported) -> None:
    fine, coarse = (
        load_deployed(exported_for("torchscript", precision)).signature.parity for precision in ("float32", "bfloat16")
    )
    assert 0 <= fine < coarse < 0.1


def test_what_answers_otherwise_than_the_original_is_not_exported(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_PICTURE_TOLERANCE, "float32", -1.0)  # nothing is as near as that
    for engine in ENGINES:
        with pytest.raises(ExportError, match="a probability of a real picture is off"):
            export_classifier(tiny_run, tmp_path, engine=engine)
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("engine", "precision", "words"),
    [("tensorrt", "float32", "torchscript, onnxruntime, openvino"), ("onnxruntime", "bfloat16", "one of float32,")],
)
def test_what_an_engine_cannot_do_is_refused(
    tiny_run: Path, tmp_path: Path, engine: str, precision: str, words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        export_classifier(tiny_run, tmp_path, engine=engine, precision=precision)


def test_a_classifier_that_cannot_be_a_graph_is_refused_in_one_line(tmp_path: Path) -> None:
    afd = awakened(load_backbone(f"file:{foreign.__file__}:value_dependent"))
    save_afd(afd, tmp_path / "afd.safetensors")
    level = logging.getLogger("torch.onnx").level
    with pytest.raises(
        ExportError, match=r"^torch 2\S+ cannot write .* \(\w+: .+\); export it for torchscript$"
    ) as caught:
        export_classifier(tmp_path / "afd.safetensors", tmp_path / "out", engine="onnxruntime")
    assert "data-dependent" in str(caught.value)  # the first cause; the last error is that the export has failed
    assert logging.getLogger("torch.onnx").level == level


def test_what_the_exporter_lacks_is_named(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'")

    monkeypatch.setattr("torch.onnx.export", export)
    with pytest.raises(DependencyError, match=r"onnxscript.*afd-serve\[onnxruntime\]"):
        export_classifier(tiny_run, tmp_path, engine="onnxruntime")


@pytest.mark.parametrize("name", ENGINES["onnxruntime"].files)
def test_changed_graphs_are_refused(exported_for: Exported, tmp_path: Path, name: str) -> None:
    changed = shutil.copytree(exported_for("onnxruntime"), tmp_path / "changed")
    (changed / name).write_bytes((changed / name).read_bytes() + b"\0")
    for look_at in (load_deployed, exported_files):
        with pytest.raises(CheckpointError, match="export them again"):
            look_at(changed)


def test_changed_features_are_refused(exported_for: Exported, tmp_path: Path) -> None:
    changed = shutil.copytree(exported_for("onnxruntime"), tmp_path / "changed")
    (changed / FEATURES_NAME).write_bytes((changed / FEATURES_NAME).read_bytes() + b"\0")
    for look_at in (load_features, exported_files):
        with pytest.raises(CheckpointError, match="export them again"):
            look_at(changed)


@pytest.mark.parametrize("name", ENGINES["openvino"].files)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_graphs_of_another_version_are_refused(
    exported_for: Exported, tiny: Backbone, tmp_path: Path, engine: str, name: str
) -> None:
    mixed = shutil.copytree(exported_for(engine), tmp_path / "mixed")
    write_bare_graph(tiny, batch([0.0]).rgb, mixed / name, "float32")
    with pytest.raises(CheckpointError, match=r"take pixels, .*export them again"):
        open_graphs(mixed, engine, "float32")


def test_a_missing_graph_is_named(exported_for: Exported, tmp_path: Path) -> None:
    incomplete = shutil.copytree(exported_for("onnxruntime"), tmp_path / "incomplete")
    (incomplete / "protected.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"protected\.onnx"):
        load_deployed(incomplete)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_that_is_not_installed_is_named(
    exported_for: Exported, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    exported = exported_for(engine)
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(DependencyError, match=rf"afd-serve\[{engine}\]"):
        load_deployed(exported)


def test_openvino_refuses_a_preloaded_allocator_that_would_end_the_process(
    exported_for: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = exported_for("openvino")
    monkeypatch.setenv("LD_PRELOAD", "libjemalloc.so.2")
    with pytest.raises(CheckpointError, match="without LD_PRELOAD"):
        load_deployed(exported)


# Seen where the CPU has AMX; elsewhere OpenVINO leaves the thread's signals alone.
_LEFT = """
import signal, sys
from pathlib import Path
from afd_serve.export import load_deployed

first, second = (load_deployed(Path(sys.argv[1])) for _ in range(2))
del first
del second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_is_handled_after_models_in_openvino_are_gone(exported_for: Exported) -> None:
    status, out, err = in_a_process_of_its_own(_LEFT, str(exported_for("openvino")))
    assert (status, out) == (0, "handled\n"), err


def test_graphs_run_on_the_cpu_only(exported_for: Exported) -> None:
    with pytest.raises(CheckpointError, match="torchscript"):
        load_deployed(exported_for("onnxruntime"), torch.device("meta"))


def test_archives_and_repositories_carry_the_engines_files(exported_for: Exported, tmp_path: Path) -> None:
    exported = exported_for("onnxruntime")
    assert exported_files(exported) == (*ENGINES["onnxruntime"].files, FEATURES_NAME, SIGNATURE_NAME)
    files = {*ENGINES["onnxruntime"].files, SIGNATURE_NAME}
    with zipfile.ZipFile(package_torchserve(exported, tmp_path)) as archive:
        assert files <= set(archive.namelist())
    version = package_triton(exported, tmp_path / "models", platform="python_cpu") / "afd_classify" / "1"
    assert files <= {path.name for path in version.iterdir()}
    with pytest.raises(PackagingError, match="runs TorchScript"):
        package_triton(exported, tmp_path / "other", platform="pytorch_libtorch")
