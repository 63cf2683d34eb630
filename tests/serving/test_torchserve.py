"""The promises of the TorchServe path, on a real server."""

import base64
import dataclasses
import gzip
import io
import json
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from afd_serve.errors import ServingError
from afd_serve.mode import Mode
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.pipeline import Failure, Pipeline, Prediction
from afd_serve.request import MAX_PICTURES
from afd_serve.results import Shadow
from afd_serve.sample import sample_picture
from afd_serve.servers import torchserve
from afd_serve.servers.http import ask
from afd_serve.servers.quickstart import show
from afd_serve.servers.torchserve import Answer, TorchServe
from afd_serve.telemetry import METRICS, first_series
from tests.serving import prometheus
from tests.serving.pictures import BAD, GOOD
from tests.serving.scrape import names, total

pytestmark = pytest.mark.serving

CLOCKS = {"wall clock", "analog clock"}


def assert_same(answer: dict[str, Any], prediction: Prediction | Failure) -> None:
    """The served answer is the pipeline's, bit for bit."""
    assert isinstance(prediction, Prediction)
    assert [item["index"] for item in answer["predictions"]] == list(prediction.indices)
    assert [item["label"] for item in answer["predictions"]] == list(prediction.labels)
    probabilities = [item["probability"] for item in answer["predictions"]]
    assert probabilities == list(prediction.probabilities)
    assert answer["estimated_quality"] == prediction.estimated_quality
    assert answer["drift"] == prediction.drift
    assert answer["protected"] is prediction.protected
    assert answer["model"] == {"name": "afd", "version": "1.0"}


def assert_refused(answer: Answer) -> None:
    assert 400 <= answer.status < 500
    assert answer.content_type == "application/json"
    error = answer.json()["error"]
    assert error["code"]
    assert error["reason"]


def multipart(parts: dict[str, bytes]) -> tuple[bytes, dict[str, str]]:
    boundary = uuid.uuid4().hex
    body = b""
    for name, value in parts.items():
        file = "" if len(value) < 10 else f'; filename="{name}.jpg"\r\nContent-Type: image/jpeg'
        if value.startswith(b'"'):
            file = "\r\nContent-Type: application/json"
        header = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += header.encode() + value + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def as_json(value: object) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def b64(picture: bytes) -> dict[str, Any]:
    return {"b64": base64.b64encode(picture).decode()}


def pids(server: TorchServe) -> list[int]:
    return sorted(worker["pid"] for worker in server.workers())


def scraped(server: TorchServe) -> str:
    return server.get("metrics", "/metrics").body.decode()


def batches(server: TorchServe) -> float:
    """How many batches the worker has answered so far; it tells a moment after the answers."""
    return total(scraped(server), "afd_preprocess_seconds_count")


def wait_for(server: TorchServe, name: str, value: float) -> str:
    """A scrape in which the series have reached a value and nothing more arrives; the worker tells after it answers."""
    limit = time.monotonic() + 20
    before: list[str] = []
    while True:
        text = scraped(server)
        ours = [line for line in text.splitlines() if line.startswith("afd_")]
        if total(text, name) >= value and ours == before:
            return text
        assert time.monotonic() < limit, f"{name} never reached {value}"
        before = ours
        time.sleep(0.7)  # longer than a worker keeps its figures


@pytest.mark.parametrize("name", GOOD)
def test_a_good_picture_is_answered_as_the_pipeline_answers(server: TorchServe, pipeline: Pipeline, name: str) -> None:
    answer = server.post(GOOD[name])
    assert (answer.status, answer.content_type) == (200, "application/json")
    (expected,) = pipeline.predict([GOOD[name]])
    assert_same(answer.json(), expected)


def test_the_sample_is_recognized_with_and_without_afd(server: TorchServe) -> None:
    for option in ("on", "off"):
        answer = server.post(sample_picture(), {"afd": option}).json()
        assert answer["predictions"][0]["label"] in CLOCKS
        assert answer["protected"] is (option == "on")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_has_its_own_status_and_reason(server: TorchServe, name: str) -> None:
    assert_refused(server.post(BAD[name]))


def test_a_bad_picture_does_not_touch_its_neighbours_or_the_worker(server: TorchServe, pipeline: Pipeline) -> None:
    before = pids(server)
    batches_before = batches(server)
    expected = {name: pipeline.predict([picture])[0] for name, picture in GOOD.items()}
    names = [*GOOD, *BAD] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: server.post((GOOD | BAD)[name]), names))
    for name, answer in zip(names, answers, strict=True):
        if name in GOOD:
            assert answer.status == 200, name
            assert_same(answer.json(), expected[name])
        else:
            assert_refused(answer)
    assert pids(server) == before
    assert 0 < batches(server) - batches_before < len(names) / 2, "the requests did not share batches"


def test_multipart_with_several_pictures(server: TorchServe, pipeline: Pipeline) -> None:
    body, headers = multipart({"one": GOOD["sample"], "two": BAD["truncated"], "three": GOOD["png"], "top_k": b"3"})
    answer = server.post(body, headers)
    assert answer.status == 200
    one, two, three = answer.json()
    expected = pipeline.predict([GOOD["sample"], GOOD["png"]], top_k=3)
    assert_same(one, expected[0])
    assert two["error"]["code"]
    assert_same(three, expected[1])


@pytest.mark.parametrize("off", [b"off", b'"off"'], ids=["text", "json"])
def test_multipart_with_one_picture_and_afd_off(server: TorchServe, pipeline: Pipeline, off: bytes) -> None:
    body, headers = multipart({"any name": GOOD["sample"], "afd": off})
    assert_same(server.post(body, headers).json(), pipeline.predict([GOOD["sample"]], afd=False)[0])


def test_a_field_is_an_option_however_its_name_is_written(server: TorchServe) -> None:
    answer = server.post(*multipart({"file": GOOD["sample"], "Top-K": b"3"}))
    assert len(answer.json()["predictions"]) == 3


def test_a_model_and_its_version_may_stand_in_the_address(server: TorchServe) -> None:
    url = f"http://127.0.0.1:{server.ports.inference}/invocations?model_name=afd&model_version=1.0"
    own = {"Authorization": f"Bearer {server.token()}", "Content-Type": "image/jpeg"}
    answer = ask(urllib.request.Request(url, data=GOOD["sample"], headers=own), 60)
    assert answer.json() == server.post(GOOD["sample"]).json()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_is_refused_as_such(server: TorchServe, encoding: str) -> None:
    answer = server.post(gzip.compress(GOOD["sample"]), {"Content-Encoding": encoding})
    assert (answer.status, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert server.post(GOOD["sample"], {"Content-Encoding": "identity"}).status == 200


def test_json_with_one_picture(server: TorchServe, pipeline: Pipeline) -> None:
    body, headers = as_json(b64(GOOD["sample"]) | {"afd": False, "top_k": 2})
    assert_same(server.post(body, headers).json(), pipeline.predict([GOOD["sample"]], afd=False, top_k=2)[0])


def test_json_with_several_pictures(server: TorchServe, pipeline: Pipeline) -> None:
    body, headers = as_json({"instances": [b64(GOOD["gray"]), {"b64": "?"}, b64(b""), b64(GOOD["sample"])]})
    answer = server.post(body, headers)
    assert answer.status == 200
    gray, bad, empty, sample = answer.json()
    expected = pipeline.predict([GOOD["gray"], GOOD["sample"]])
    assert_same(gray, expected[0])
    assert bad["error"]["code"] == "bad_base64"
    assert empty["error"]["code"] == "empty"
    assert_same(sample, expected[1])


@pytest.mark.parametrize("body", [b"{", b"[1, 2]", b"null", b"{}", b'{"instances": 1}'])
def test_json_that_is_no_request(server: TorchServe, body: bytes) -> None:
    assert_refused(server.post(body, {"Content-Type": "application/json"}))


def test_headers_choose_per_request(server: TorchServe, pipeline: Pipeline) -> None:
    with ThreadPoolExecutor(8) as pool:
        headers = [{"afd": "off" if index % 2 else "on", "top_k": str(index % 4 + 1)} for index in range(16)]
        answers = list(pool.map(lambda header: server.post(GOOD["sample"], header), headers))
    for header, answer in zip(headers, answers, strict=True):
        (expected,) = pipeline.predict([GOOD["sample"]], afd=header["afd"] == "on", top_k=int(header["top_k"]))
        assert_same(answer.json(), expected)


def test_in_shadow_mode_the_answer_is_the_bare_one_and_the_metrics_tell_the_rest(
    server: TorchServe, pipeline: Pipeline
) -> None:
    server.post(GOOD["sample"], {"afd": "shadow"})
    before = wait_for(server, "afd_shadow_total", 1)
    for name in ("sample", "fine"):
        (expected,) = pipeline.predict([GOOD[name]], afd=Mode.OFF)
        assert_same(server.post(GOOD[name], {"afd": "shadow"}).json(), expected)
    body, headers = multipart({"picture": GOOD["gray"], "afd": b"shadow"})
    assert server.post(body, headers).json()["protected"] is False
    (sample, gray) = pipeline.predict([GOOD["sample"], GOOD["gray"]], afd=Mode.SHADOW)
    after = wait_for(server, "afd_shadow_total", total(before, "afd_shadow_total") + 2)

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert grown("afd_shadow_total") == 2, "the gate of the fine picture stays closed"
    assert grown("afd_requests_total", mode="shadow") == 3
    assert grown("afd_shadow_failures_total") == 0
    shadows = [result.shadow for result in (sample, gray) if isinstance(result, Prediction)]
    assert grown("afd_shadow_disagreements_total") == sum(isinstance(s, Shadow) and s.disagrees for s in shadows)
    net = grown("afd_shadow_confidence_change_total", direction="up")
    net -= grown("afd_shadow_confidence_change_total", direction="down")
    changes = [shadow.confidence_change for shadow in shadows if isinstance(shadow, Shadow)]
    assert net == pytest.approx(sum(changes), abs=1e-5)


def test_the_archive_says_which_mode_requests_have_that_name_none(exported: Path, tmp_path: Path) -> None:
    archive = package_torchserve(exported, tmp_path, mode=Mode.SHADOW)
    state, ports = tmp_path / "state", torchserve.Ports.free()
    shadowing = torchserve.start(archive, state, probe=sample_picture(), ports=ports, workers=1)
    try:
        text = wait_for(shadowing, "afd_probes_total", 1)
        assert {name for name, _, _ in first_series()} <= names(text), "before anybody has asked for anything"
        assert 'afd_failures_total{ModelName="afd",code="internal"' in text
        assert total(text, "afd_requests_total") == total(text, "afd_pictures_total") == 0, "the start's probe is none"
        assert shadowing.post(GOOD["sample"]).json()["protected"] is False
        assert shadowing.post(GOOD["sample"], {"afd": "on"}).json()["protected"] is True
        text = wait_for(shadowing, "afd_protected_total", 1)
        assert total(text, "afd_shadow_total") == 1
    finally:
        TorchServe.stop(state)


@pytest.mark.parametrize("header", [{"afd": "perhaps"}, {"top_k": "0"}, {"top_k": "many"}])
def test_a_bad_option_is_refused(server: TorchServe, header: dict[str, str]) -> None:
    answer = server.post(GOOD["sample"], header)
    assert_refused(answer)
    assert answer.json()["error"]["code"] == "bad_option"


@pytest.mark.parametrize("header", [{"describe": "True"}, {"explain": "True"}, {"Explain": "True"}])
def test_a_clients_header_does_not_hijack_the_batch(
    server: TorchServe, pipeline: Pipeline, header: dict[str, str]
) -> None:
    (expected,) = pipeline.predict([GOOD["sample"]])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda index: server.post(GOOD["sample"], {} if index % 2 else header), range(8)))
    for answer in answers:
        assert answer.status == 200
        assert_same(answer.json(), expected)


def test_an_explanation_is_json_or_a_drawing(server: TorchServe, pipeline: Pipeline) -> None:
    answer = server.post(GOOD["sample"], {"top_k": "3"}, route="explanations")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert_same(answer.json(), pipeline.predict([GOOD["sample"]], top_k=3)[0])
    side = pipeline.signature.preprocessing.size // 8
    assert [len(row) for row in answer.json()["map"]] == [side] * side
    body, headers = multipart({"picture": GOOD["sample"], "format": b"png"})
    for drawn in (
        server.post(GOOD["sample"], {"Accept": "image/png"}, route="explanations"),
        server.post(body, headers, route="explanations"),
    ):
        assert (drawn.status, drawn.content_type) == (200, "image/png")
        with Image.open(io.BytesIO(drawn.body)) as picture:
            assert picture.format == "PNG"


def test_explanations_and_predictions_sent_together_do_not_mix(server: TorchServe, pipeline: Pipeline) -> None:
    (expected,) = pipeline.predict([GOOD["sample"]])

    def ask(index: int) -> Answer:
        route: Any = "explanations" if index % 2 else "predictions"
        return server.post(GOOD["sample"] if index % 4 < 2 else BAD["truncated"], route=route)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(16)))
    for index, answer in enumerate(answers):
        if index % 4 < 2:
            assert_same(answer.json(), expected)
            assert ("map" in answer.json()) is bool(index % 2)
        else:
            assert_refused(answer)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_not_explained(server: TorchServe, name: str) -> None:
    assert_refused(server.post(BAD[name], {"Accept": "image/png"}, route="explanations"))


def test_the_management_api_describes_the_model(server: TorchServe) -> None:
    answer = server.get("management", "/models/afd?customized=true")
    assert answer.json()[0]["customizedMetadata"]["model"] == {"name": "afd", "version": "1.0"}
    assert answer.json()[0]["customizedMetadata"]["signature"]


def test_more_pictures_than_a_request_may_carry(server: TorchServe) -> None:
    body, headers = as_json({"instances": [{"b64": "QQ=="}] * (MAX_PICTURES + 1)})
    answer = server.post(body, headers)
    assert answer.status == 413
    assert answer.json()["error"]["code"] == "too_many_pictures"


def test_the_largest_answer(server: TorchServe) -> None:
    body, headers = as_json({"instances": [b64(GOOD["sample"])] * MAX_PICTURES, "top_k": 100})
    answer = server.post(body, headers)
    assert answer.status == 200
    assert [len(item["predictions"]) for item in answer.json()] == [100] * MAX_PICTURES


def test_no_token_no_answer(server: TorchServe) -> None:
    assert server.post(GOOD["sample"], {"Authorization": "Bearer wrong"}).status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/models?url=http://127.0.0.1:1/other.mar"),
        ("POST", "/models?url=afd.mar"),
        ("DELETE", "/models/afd"),
        ("POST", "/workflows?url=http://127.0.0.1:1/other.war"),
        ("POST", "/workflows?url=file:///tmp/other.war"),
        ("POST", "/workflows?url=/tmp/other.war"),
    ],
)
def test_no_code_comes_in_even_with_the_management_token(server: TorchServe, method: str, path: str) -> None:
    url = f"http://127.0.0.1:{server.ports.management}{path}"
    headers = {"Authorization": f"Bearer {server.token('management')}"}
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers), timeout=30)
    with refusal.value as response:
        assert response.code in {404, 405}


def test_every_listener_is_on_loopback(server: TorchServe) -> None:
    frontend = psutil.Process(server.pid)
    connections = [item for process in [frontend, *frontend.children()] for item in process.net_connections("inet")]
    listening = [item.laddr for item in connections if item.status == psutil.CONN_LISTEN]
    assert {address.port for address in listening} == set(dataclasses.astuple(server.ports))
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_a_request_above_the_limit_is_refused_by_the_frontend(server: TorchServe) -> None:
    with suppress(ServingError):  # the frontend may close the connection while the body is still on its way
        assert server.post(bytes(33 * 2**20)).status == 413
    assert server.post(GOOD["sample"]).status == 200


def test_every_declared_metric_arrives(server: TorchServe) -> None:
    server.post(GOOD["sample"])
    server.post(GOOD["sample"], route="explanations")
    server.post(GOOD["sample"], {"afd": "shadow"})
    server.post(BAD["truncated"])
    server.post(BAD["truncated"], route="explanations")
    for name in (
        "afd_explanations_total",
        "afd_explanation_failures_total",
        "afd_shadow_seconds_count",
        "afd_failures_total",
    ):
        text = wait_for(server, name, 1)
    assert {name for metric in METRICS for name in metric.series} <= names(text)
    assert total(text, "afd_failures_total", ModelName="afd", code="truncated_jpeg") > 0
    assert total(text, "afd_estimated_quality_total", ModelName="afd", quality="08-10") > 0


def test_prometheus_reads_the_server_and_answers_the_dashboard(server: TorchServe, tmp_path: Path) -> None:
    def ask_all() -> None:
        for mode in Mode:
            assert server.post(GOOD["sample"], {"afd": mode.value}).status == 200
        server.post(GOOD["sample"], route="explanations")
        server.post(BAD["truncated"])
        server.post(BAD["truncated"], route="explanations")

    prometheus.check("torchserve", server.ports.metrics, tmp_path, ask_all)


def test_a_second_server_in_the_same_place_is_refused(server: TorchServe, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="already runs"):
        torchserve.start(tmp_path / "any.mar", server.state_dir, probe=b"")


def test_a_taken_port_is_named(server: TorchServe, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=f"port {server.ports.inference} "):
        torchserve.start(tmp_path / "any.mar", tmp_path / "state", probe=b"", ports=server.ports)


def test_the_server_is_found_again_and_shown(server: TorchServe) -> None:
    assert TorchServe.find(server.state_dir) == server
    text = show(server)
    assert "wall clock" in text
    assert f"curl -H '@{server.header_file}' -T PICTURE.jpg {server.url}" in text
