"""The TorchServe handler on batches as a worker hands them over, without a server."""

import importlib.util
import io
import json
import logging
import re
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from afd_serve.errors import CheckpointError
from afd_serve.export import export_classifier
from afd_serve.packaging.handlers import handlers_dir
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.pipeline import Pipeline
from afd_serve.response import prediction_from_dict
from tests.conftest import encoded, scene

ts = pytest.importorskip("ts")
ts_context = pytest.importorskip("ts.context")
ts_metrics = pytest.importorskip("ts.metrics.metric_cache_yaml_impl")

POOR = encoded(scene(90, 70), quality=10)
EXPLAIN = {"explain": "True"}
PREDICT = {"explain": "False"}


@pytest.fixture
def metrics() -> Any:
    """Those of a server whose settings do not name our ``metrics.yaml``."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # it leaves its file open
        cache = ts_metrics.MetricsCacheYamlImpl(Path(ts.__file__).parent / "configs" / "metrics.yaml")
    cache.initialize_cache()
    return cache


def counted(log: str, name: str) -> float:
    """What a worker's log tells the server of a counter."""
    return sum(map(float, re.findall(rf"\[METRICS\]{name}\.\w+:([0-9.]+)\|#ModelName:tiny[,|]", log)))


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("afd_handler", handlers_dir() / "afd_handler.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


Handle = Callable[..., list[tuple[int, str, Any]]]


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_classifier(tiny_run, tmp_path_factory.mktemp("exported")).folder


def unpacked(exported: Path, folder: Path) -> Path:
    """An archive as TorchServe unpacks it."""
    with zipfile.ZipFile(package_torchserve(exported, folder / "store", name="tiny", version="2.1")) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def untouched(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(exported, tmp_path_factory.mktemp("archive"))


@pytest.fixture
def archive_folder(untouched: Path, tmp_path: Path) -> Path:
    return shutil.copytree(untouched, tmp_path / "unpacked")


def context_of(archive_folder: Path, metrics: Any) -> Any:
    manifest = json.loads((archive_folder / "MAR-INF" / "MANIFEST.json").read_text())
    context = ts_context.Context("tiny", str(archive_folder), manifest, 8, None, "0.12", metrics=metrics)
    context.model_yaml_config = yaml.safe_load((archive_folder / "model-config.yaml").read_text())
    return context


@pytest.fixture
def context(archive_folder: Path, metrics: Any) -> Any:
    return context_of(archive_folder, metrics)


@pytest.fixture
def handle(module: ModuleType, context: Any) -> Handle:
    return started(module, context)


def started(module: ModuleType, context: Any) -> Handle:
    """Send one batch of (headers, parts) through a new handler: status, content type and body of each."""
    handler = module.AfdHandler()
    handler.initialize(context)

    def call(*requests: tuple[dict[str, Any], dict[str, Any]]) -> list[tuple[int, str, Any]]:
        context.request_processor = [ts_context.RequestProcessor(dict(headers)) for headers, _ in requests]
        bodies = handler.handle([parts for _, parts in requests], context)
        kinds = [context.get_response_content_type(index) for index in range(len(requests))]
        return [(context.get_response_status(index)[0], kinds[index], body) for index, body in enumerate(bodies)]

    return call


def test_explanations_and_predictions_of_one_batch_do_not_mix(
    handle: Handle, exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    drawn, predicted, broken, explained, refused, last = handle(
        (EXPLAIN | {"Accept": "image/png"}, {"body": POOR}),
        (PREDICT | {"Accept": "image/png", "top_k": "2"}, {"body": POOR}),
        (EXPLAIN, {"body": POOR[:300]}),
        (EXPLAIN | {"top_k": "3"}, {"body": POOR}),
        (PREDICT, {"body": b"no picture"}),
        (PREDICT, {"body": POOR}),
    )
    pipeline = Pipeline.load(exported)
    assert drawn[:2] == (200, "image/png")
    assert drawn[2].startswith(b"\x89PNG")
    assert [status for status, _, _ in (predicted, broken, explained, refused, last)] == [200, 400, 200, 415, 200]
    assert {kind for _, kind, _ in (predicted, broken, explained, refused, last)} == {"application/json"}
    for (_, _, body), top_k, has_map in ((predicted, 2, False), (explained, 3, True), (last, 5, False)):
        answer = json.loads(body)
        assert [prediction_from_dict(answer)] == pipeline.predict([POOR], top_k=top_k)
        assert ("map" in answer) is has_map
    limit = time.monotonic() + 20
    while counted(caplog.text, "afd_requests_total") < 3:
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert counted(caplog.text, "afd_explanations_total") == 2
    assert counted(caplog.text, "afd_preprocess_seconds_sum") % 1 > 0, "fractions of seconds are counted"


def test_the_archive_says_in_which_mode_it_serves_and_a_worker_has_one_thread(module: ModuleType, context: Any) -> None:
    context.model_yaml_config["afd"]["mode"] = "off"
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        handle = started(module, context)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    (_, _, plain), (_, _, asked) = handle((PREDICT, {"body": POOR}), (PREDICT | {"afd": "protect"}, {"body": POOR}))
    assert [json.loads(body)["protected"] for body in (plain, asked)] == [False, True]


def test_only_grpc_is_told_that_an_answer_is_the_last_of_its_stream(handle: Handle, context: Any) -> None:
    handle((PREDICT, {"body": POOR}), ({"afd": b"off"}, {"body": POOR}))  # only gRPC brings headers as bytes
    marked = [context.get_response_headers(index).get("ts_stream_next") for index in range(2)]
    assert marked == [None, "false"]


def test_a_description_is_for_the_management_api_alone(handle: Handle) -> None:
    managed, client = handle(({"describe": "True"}, {}), ({"describe": "True"} | PREDICT, {"body": POOR}))
    for status, kind, _ in (managed, client):
        assert (status, kind) == (200, "application/json")
    description, answer = json.loads(managed[2]), json.loads(client[2])
    assert description["model"] == answer["model"] == {"name": "tiny", "version": "2.1"}
    assert description["signature"]["preset"] == "full"
    assert answer["predictions"]


def test_an_archive_with_a_changed_file_is_not_loaded(module: ModuleType, context: Any, archive_folder: Path) -> None:
    settings = archive_folder / "model-config.yaml"
    settings.write_bytes(settings.read_bytes() + b"\n")
    with pytest.raises(CheckpointError, match=r"model-config\.yaml is not the file that was packaged"):
        module.AfdHandler().initialize(context)


def test_a_worker_that_only_predicts_never_reads_the_features(handle: Handle, archive_folder: Path) -> None:
    (archive_folder / "features.pt").unlink()  # after loading
    ((predicted, _, _), (explained, _, body)) = handle((PREDICT, {"body": POOR}), (EXPLAIN, {"body": POOR}))
    assert (predicted, explained) == (200, 500)
    assert json.loads(body)["error"]["code"] == "internal"


def test_an_archive_without_features_says_what_to_do(
    module: ModuleType, metrics: Any, exported: Path, tmp_path: Path
) -> None:
    earlier = shutil.copytree(exported, tmp_path / "as earlier versions exported")
    (earlier / "features.pt").unlink()
    values = json.loads((earlier / "signature.json").read_text())
    del values["features_sha256"], values["signature_sha256"]
    (earlier / "signature.json").write_text(json.dumps(values))
    handle = started(module, context_of(unpacked(earlier, tmp_path), metrics))
    ((predicted, _, _), (status, _, body)) = handle((PREDICT, {"body": POOR}), (EXPLAIN, {"body": POOR}))
    assert (predicted, status) == (200, 501)
    assert json.loads(body)["error"]["code"] == "not_supported"
    assert "afd-serve export" in json.loads(body)["error"]["reason"]


def test_json_is_left_to_what_bounds_it(module: ModuleType, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "true")
    handle = started(module, context)
    body = b'{"instances": [' + b"[]," * 10_000 + b"[]]}"
    message = b"".join(len(part).to_bytes(4, "big") + part for part in (b"body", b"application/json", body))
    received = io.BytesIO(message)
    worker = importlib.import_module("ts.protocol.otf_message_handler")
    part = worker._retrieve_input_data(SimpleNamespace(recv=received.read))
    assert part["value"] == body
    ((status, _, answer),) = handle((PREDICT, {part["name"]: part["value"]}))
    assert (status, json.loads(answer)["error"]["code"]) == (400, "bad_request")
