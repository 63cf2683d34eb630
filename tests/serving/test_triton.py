"""The promises of the Triton path, on a real server.

The server lives in an environment of its own, because its Python backend needs an older NumPy: the variable
AFD_TRITON_PYTHON names the Python there, as ``make test`` does.
"""

import asyncio
import importlib.util
import json
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from afd_serve.cli import main
from afd_serve.client import AsyncClient, Client, Mode, Options, detect_server
from afd_serve.engines.torchscript import quiet
from afd_serve.errors import ClientError, RequestRefusedError, ServerUnavailableError, ServingError
from afd_serve.export import Deployed
from afd_serve.packaging.triton import TritonLimits, package_triton
from afd_serve.pipeline import Failure, Pipeline, Prediction
from afd_serve.request import MAX_PICTURES
from afd_serve.response import read_result
from afd_serve.results import Shadow
from afd_serve.sample import sample_picture
from afd_serve.servers import triton
from afd_serve.servers.triton import Triton, TritonPorts
from afd_serve.servers.triton_environment import SHARED_MEMORY
from afd_serve.servers.triton_quickstart import serve_triton, show
from tests.monitoring import TRITON_METRICS
from tests.serving import prometheus
from tests.serving.pictures import BAD, GOOD, drawing
from tests.serving.scrape import names, total

pytestmark = pytest.mark.serving

Result = Prediction | Failure

TOP = Options(top_k=100)
TEN_BAD = BAD | {
    "html": b"<!doctype html><title>404</title>",
    "truncated webp": drawing(8, kind="WEBP")[:300],
}


@pytest.fixture(scope="session")
def triton_python() -> Path:
    named = os.environ.get("AFD_TRITON_PYTHON")
    if named:
        return Path(named)
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("AFD_TRITON_PYTHON names no Python whose environment has afd-serve[triton-server]")
    return Path(sys.executable)


@pytest.fixture(scope="session", params=["python", "python_cpu"])
def server(
    request: pytest.FixtureRequest, exported: Path, triton_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Triton]:
    """Reading and classifying in processes of their own, as on a GPU, and in one."""
    built, limits = tmp_path_factory.mktemp("repository"), TritonLimits(classifiers=2)
    repository = package_triton(exported, built, platform=request.param, limits=limits)
    state = tmp_path_factory.mktemp("triton")
    running = triton.start(repository, state, python=triton_python, ports=TritonPorts.free())
    yield running
    triton.stop(state)
    assert not list(SHARED_MEMORY.glob(f"{running.prefix}*"))


@pytest.fixture(scope="session")
def start_seconds(server: Triton) -> float:
    """How long the supervisor waited for the first answer."""
    return float(re.findall(r"tritonserver answers after ([\d.]+) s", server.log.read_text())[0])


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """A hundred pictures, no two of one size."""
    return [
        drawing(index, size=(120 + 5 * index, 410 - 3 * index), quality=5 + 90 * (index % 10) // 9)
        for index in range(100)
    ]


@pytest.fixture(scope="session")
def expected(pipeline: Pipeline, pictures: list[bytes]) -> list[Result]:
    return pipeline.predict(pictures, top_k=TOP.top_k)


def parts(pictures: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The pictures in requests of 1, 2, ... 16, 1, 2, ... of them."""
    start, size = 0, 1
    while start < len(pictures):
        yield list(pictures[start : start + size])
        start, size = start + size, size % 16 + 1


def ask_raw(server: Triton, picture: bytes, headers: dict[str, str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """As ``curl --data-binary``: the JSON part of the answer, and the outputs' bytes by name."""
    own = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{server.url}/v2/models/afd_classify/infer", data=picture, headers=own | headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as response:
        body = response.read()
        length = int(response.headers["Inference-Header-Content-Length"])
    head, start, outputs = json.loads(body[:length]), length, {}
    for item in head["outputs"]:
        size = item["parameters"]["binary_data_size"]
        outputs[item["name"]] = body[start : start + size]
        start += size
    return head, outputs


def test_raw_http_gives_the_pipelines_probabilities_for_all_classes(
    server: Triton, pipeline: Pipeline, pictures: list[bytes]
) -> None:
    for picture in pictures[::9]:
        head, outputs = ask_raw(server, picture, {"top_k": "2"})
        (prediction,) = pipeline.predict([picture], top_k=1000)
        assert isinstance(prediction, Prediction)
        ordered = np.empty(1000, np.float32)
        ordered[list(prediction.indices)] = prediction.probabilities
        assert outputs["probabilities"] == ordered.tobytes()
        assert np.frombuffer(outputs["drift"], np.float32) == np.float32(prediction.drift)
        assert np.frombuffer(outputs["estimated_quality"], np.int32) == (prediction.estimated_quality or 0)
        assert outputs["status"][4:] == b"ok"
        answer = json.loads(outputs["answer"][4:])
        assert [item["index"] for item in answer["predictions"]] == list(prediction.indices[:2])
        assert (
            answer["model"]
            == {"name": "afd_classify", "version": "1"}
            == {
                "name": head["model_name"],
                "version": head["model_version"],
            }
        )


@pytest.mark.parametrize("shared_memory", [False, True])
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_client_gets_the_pipelines_answers(
    server: Triton, pictures: list[bytes], expected: list[Result], transport: str, shared_memory: bool
) -> None:
    url = server.url if transport == "http" else server.grpc_url
    with Client(url, shared_memory=shared_memory) as client:
        assert [result for part in parts(pictures) for result in client.classify_many(part, TOP)] == expected


@pytest.mark.parametrize("shared_memory", [False, True])
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_asyncio_client_gets_the_pipelines_answers(
    server: Triton, pictures: list[bytes], expected: list[Result], transport: str, shared_memory: bool
) -> None:
    async def ask() -> list[Result]:
        url = server.url if transport == "http" else server.grpc_url
        async with AsyncClient(url, shared_memory=shared_memory, timeout=120) as client:
            asked: list[Coroutine[Any, Any, list[Result]]] = [
                client.classify_many(part, TOP) for part in parts(pictures)
            ]
            return [result for results in await asyncio.gather(*asked) for result in results]

    assert asyncio.run(ask()) == expected
    assert not list(SHARED_MEMORY.glob("afd_client_*"))


def test_more_pictures_than_fit_into_one_request(server: Triton, pipeline: Pipeline) -> None:
    many = [drawing(index, size=(40, 30)) for index in range(MAX_PICTURES + 3)]
    with Client(server.grpc_url) as client:
        assert client.classify_many(many, timeout=120) == pipeline.predict(many)


def test_options_are_each_requests_own(server: Triton, pipeline: Pipeline) -> None:
    modes = [None, *Mode]
    options = [Options(modes[index % 4], top_k=index % 5 + 1, crop=index % 3 > 0) for index in range(12)]
    with Client(server.grpc_url, timeout=60) as client, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda option: client.classify(GOOD["sample"], option), options))
    for option, answer in zip(options, answers, strict=True):
        afd = option.mode in (None, Mode.PROTECT)
        assert [answer] == pipeline.predict([GOOD["sample"]], afd=afd, top_k=option.top_k, crop=option.crop)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_bad_pictures_fail_alone_or_among_others(server: Triton, pipeline: Pipeline, transport: str) -> None:
    mixed = [picture for pair in zip(TEN_BAD.values(), [*GOOD.values()] * 2, strict=False) for picture in pair]
    with Client(server.url if transport == "http" else server.grpc_url) as client:
        assert client.classify_many(mixed) == pipeline.predict(mixed)
        for picture in TEN_BAD.values():
            assert [client.classify(picture)] == pipeline.predict([picture])
        bad = list(TEN_BAD.values())
        assert client.classify_many(bad) == pipeline.predict(bad)


def test_two_hundred_requests_at_once_a_quarter_of_them_bad(server: Triton, pipeline: Pipeline) -> None:
    bad, good = list(TEN_BAD.values()), list(GOOD.values())
    asked = [bad[index // 4 % len(bad)] if index % 4 == 0 else good[index % len(good)] for index in range(200)]

    async def ask() -> list[Result]:
        async with AsyncClient(server.grpc_url, timeout=120) as client:
            return await asyncio.gather(*(client.classify(picture) for picture in asked))

    answers = asyncio.run(ask())
    expected = {picture: pipeline.predict([picture])[0] for picture in {*bad, *good}}
    assert answers == [expected[picture] for picture in asked]
    assert sum(isinstance(answer, Failure) and bool(answer.reason) for answer in answers) == 50


def test_a_request_without_sense_is_refused(server: Triton) -> None:
    with Client(server.grpc_url) as client, pytest.raises(RequestRefusedError, match="bad_option"):
        client.classify(GOOD["sample"], Options(top_k=101))
    with Client(server.url, model="nothing") as client, pytest.raises(RequestRefusedError, match="nothing"):
        client.classify(GOOD["sample"])


def test_labels_through_the_classification_extension(server: Triton) -> None:
    data = len(sample_picture()).to_bytes(4, "little") + sample_picture()
    where = {"binary_data_size": len(data)}
    header = json.dumps(
        {
            "inputs": [{"name": "picture", "shape": [1, 1], "datatype": "BYTES", "parameters": where}],
            "outputs": [{"name": "probabilities", "parameters": {"classification": 2, "binary_data": False}}],
        }
    ).encode()
    request = urllib.request.Request(
        f"{server.url}/v2/models/afd_classify/infer",
        data=header + data,
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        first, second = json.loads(response.read())["outputs"][0]["data"]
    assert re.fullmatch(r"0\.\d+:892:wall clock", first)
    assert re.fullmatch(r"0\.\d+:\d+:[\w ]+", second)


def settled(server: Triton) -> str:
    """A scrape with all that was counted so far; the server's processes tell each other within a second."""
    time.sleep(1)
    return server.metrics()


def counted(server: Triton, name: str, **labels: str) -> float:
    return total(settled(server), name, **labels)


def test_metrics_have_the_catalogues_names_and_leave_probes_out(server: Triton) -> None:
    with Client(server.grpc_url) as client:
        pictures, failures = counted(server, "afd_pictures_total"), counted(server, "afd_failures_total")
        client.classify_many([GOOD["sample"], BAD["truncated"]])
        client.classify(BAD["truncated"])
        assert client.healthy(timeout=30)
        with pytest.raises(RequestRefusedError):
            client.classify(GOOD["sample"], Options(top_k=0))
    assert counted(server, "afd_pictures_total") == pictures + 3
    assert counted(server, "afd_failures_total") == failures + 3
    assert counted(server, "afd_failures_total", ModelName="afd_classify", code="truncated_jpeg") >= 2
    assert counted(server, "afd_inference_seconds_sum") > 0


@pytest.mark.parametrize("shared", ["alone", "among others"])
def test_in_shadow_mode_the_answer_is_the_bare_one_and_the_metrics_tell_the_rest(
    server: Triton, pipeline: Pipeline, shared: str
) -> None:
    pictures = [GOOD["sample"], GOOD["fine"], GOOD["gray"]]
    requests = [pictures] if shared == "among others" else [[picture] for picture in pictures]
    before = settled(server)
    with Client(server.grpc_url) as client:
        answers = [answer for request in requests for answer in client.classify_many(request, Options(Mode.SHADOW))]
    assert answers == pipeline.predict(pictures, afd=Mode.OFF)
    after = settled(server)

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    shadows = [
        result.shadow
        for result in pipeline.predict(pictures, afd=Mode.SHADOW)
        if isinstance(result, Prediction) and isinstance(result.shadow, Shadow)
    ]
    assert grown("afd_shadow_total") == len(shadows) == 2, "the gate of the fine picture stays closed"
    assert grown("afd_requests_total", mode="shadow") == len(requests)
    assert grown("afd_shadow_seconds_count") == (1 if shared == "among others" else 2)
    assert grown("afd_shadow_failures_total") == grown("afd_protected_total") == 0
    assert grown("afd_shadow_disagreements_total") == sum(shadow.disagrees for shadow in shadows)
    net = grown("afd_shadow_confidence_change_total", direction="up")
    net -= grown("afd_shadow_confidence_change_total", direction="down")
    assert net == pytest.approx(sum(shadow.confidence_change for shadow in shadows), abs=1e-5)


def test_a_scrape_has_the_catalogues_series(server: Triton) -> None:
    with Client(server.grpc_url) as client:
        for mode in Mode:
            client.classify_many([GOOD["sample"], BAD["truncated"]], Options(mode))
    assert prometheus.catalogue("triton") | TRITON_METRICS <= names(settled(server))


def test_prometheus_reads_the_server_and_answers_the_dashboard(server: Triton, tmp_path: Path) -> None:
    def ask_all() -> None:
        with Client(server.grpc_url) as client:
            for mode in Mode:
                client.classify_many([GOOD["sample"], BAD["truncated"]], Options(mode))

    prometheus.check("triton", server.ports.metrics, tmp_path, ask_all)


def test_a_mode_that_does_not_exist_is_refused(server: Triton) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask_raw(server, GOOD["sample"], {"afd": "shade"})
    with refusal.value as response:
        assert "bad_option: afd is protect (or on), off or shadow" in json.loads(response.read())["error"]


def test_nothing_but_inference_is_open(server: Triton) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in ("/v2/repository/index", "/v2/repository/models/x/load", "/v2/logging", "/v2/trace/setting"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            opener.open(urllib.request.Request(f"{server.url}{path}", data=b"{}"), timeout=10)
        refusal.value.close()
        assert refusal.value.code in (403, 405)
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in psutil.Process(server.pid).children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_the_server_is_found_again_and_shown(server: Triton) -> None:
    assert triton.find(server.state_dir) == server
    assert detect_server(server.url) == detect_server(server.grpc_url) == "triton"
    assert "wall clock" in show(server)
    with pytest.raises(ServingError, match="already runs"):
        triton.start(server.repository, server.state_dir, python=server.python)
    with pytest.raises(ServingError, match=f"port {server.ports.http} "):
        triton.start(server.repository, server.state_dir / "other", python=server.python, ports=server.ports)


def test_the_command_line_asks_the_server(
    server: Triton, pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    good.write_bytes(GOOD["sample"])
    bad.write_bytes(BAD["truncated"])
    for url in (server.url, server.grpc_url):
        with pytest.raises(SystemExit) as ended:
            main(["classify", "--server", url, "--json", "--top-k", "2", "--no-afd", str(good), str(bad)])
        assert ended.value.code == 1
        first, second = json.loads(capsys.readouterr().out)
        (expected,) = pipeline.predict([GOOD["sample"]], top_k=2, afd=False)
        assert read_result(first) == expected
        assert second["error"]["code"] == "truncated_jpeg"


def stubs(server: Triton) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(server.pid).children(recursive=True)
        if "triton_python_backend_stub" in process.name() and process.status() != psutil.STATUS_ZOMBIE
    ]


def tritonserver(server: Triton) -> psutil.Process:
    (process,) = psutil.Process(server.pid).children()
    return process


@pytest.mark.parametrize("victim", ["stub", "server"])
def test_what_dies_under_load_comes_back_and_every_request_ends_in_time(
    server: Triton, start_seconds: float, victim: str
) -> None:
    timeout = 8.0
    ended: list[tuple[float, float]] = []
    killed = back = float("inf")

    async def ask_on(client: AsyncClient) -> None:
        nonlocal back
        limit = time.monotonic() + 60
        while back == float("inf") and time.monotonic() < limit:
            start = time.monotonic()
            try:
                result = await client.classify(GOOD["sample"], timeout=timeout)
                assert isinstance(result, Prediction)
                if start > killed + 1:
                    back = min(back, time.monotonic())
            except ClientError:
                pass
            ended.append((start, time.monotonic()))

    async def load() -> None:
        nonlocal killed
        async with AsyncClient(server.grpc_url, attempts=3) as client:
            asking = [asyncio.create_task(ask_on(client)) for _ in range(8)]
            await asyncio.sleep(2)
            os.kill((stubs(server)[-1] if victim == "stub" else tritonserver(server)).pid, signal.SIGKILL)
            killed = time.monotonic()
            await asyncio.gather(*asking)

    asyncio.run(load())
    assert max(end - start for start, end in ended) < timeout + 1
    # Where the first start took long, other work makes every start slow, and coming back is a start.
    in_time = max(15, 2 * start_seconds)
    assert back - killed < in_time
    # One that came back under load may fall once more, its backend's start is a race; then it is replaced again.
    with Client(server.grpc_url) as client:
        while not client.healthy(timeout=30):
            assert time.monotonic() - back < in_time
            time.sleep(0.5)


def test_a_client_with_shared_memory_survives_a_restart(server: Triton) -> None:
    with Client(server.grpc_url, shared_memory=True, timeout=60, attempts=60) as client:
        before = client.classify(GOOD["sample"])
        tritonserver(server).kill()
        assert client.classify(GOOD["sample"]) == before
    assert not list(SHARED_MEMORY.glob("afd_client_*"))


STAND_IN = """
import torch
import triton_python_backend_utils as pb_utils

NAMES = ("rgb__0", "dequantized__1", "quant_tables__2", "geometry__3", "gate__4")

class TritonPythonModel:
    def initialize(self, args):
        torch.set_num_threads(1)
        self.module = torch.jit.load(f"{args['model_repository']}/{args['model_version']}/model.pt")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = [torch.from_numpy(pb_utils.get_input_tensor_by_name(request, n).as_numpy()) for n in NAMES]
        with torch.inference_mode():
            said = self.module(*tensors)
        outputs = [pb_utils.Tensor(n, t.numpy()) for n, t in zip(("logits__0", "drift__1"), said)]
        return pb_utils.InferenceResponse(output_tensors=outputs)
"""


def as_saved(exported: Path, pipeline: Pipeline) -> Pipeline:
    """The pipeline on the file as it is: our own loading packs kernels, which a foreign server's does not."""
    with quiet():
        return Pipeline(Deployed(torch.jit.load(exported / "model.pt"), pipeline.signature))


def test_the_libtorch_repository_with_a_stand_in_for_its_backend_and_small_queues(
    exported: Path, pipeline: Pipeline, triton_python: Path, tmp_path: Path
) -> None:
    """This server has no libtorch backend: a Python model takes its place, with its names and its way to call."""
    limits = TritonLimits(max_queue_size=2)
    repository = package_triton(exported, tmp_path / "repository", platform="pytorch_libtorch", limits=limits)
    config = repository / "afd_classifier" / "config.pbtxt"
    config.write_text(config.read_text().replace('platform: "pytorch_libtorch"', 'backend: "python"'))
    (config.parent / "1" / "model.py").write_text(STAND_IN)
    server = triton.start(repository, tmp_path / "state", python=triton_python, ports=TritonPorts.free())
    try:
        mixed = [GOOD["sample"], BAD["random"], GOOD["png"]]
        with Client(server.grpc_url) as client:
            assert [client.classify(picture) for picture in mixed] == as_saved(exported, pipeline).predict(mixed)
            with pytest.raises(RequestRefusedError, match=r"afd is one of protect, off"):
                client.classify(GOOD["sample"], Options(Mode.SHADOW))
            together = client.classify_many(mixed)
        assert together[1] == pipeline.predict([BAD["random"]])[0]
        for ours, theirs in zip(together, pipeline.predict(mixed), strict=True):
            if isinstance(ours, Prediction) and isinstance(theirs, Prediction):
                assert ours.labels[0] == theirs.labels[0]
                np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-3)

        async def crowd(attempts: int) -> list[Result | BaseException]:
            async with AsyncClient(server.grpc_url, attempts=attempts, timeout=60) as client:
                asked = [client.classify(GOOD["sample"]) for _ in range(40)]
                return await asyncio.gather(*asked, return_exceptions=True)

        once = asyncio.run(crowd(1))
        refused = [answer for answer in once if not isinstance(answer, Prediction)]
        assert 0 < len(refused) < 40
        assert all(isinstance(answer, ServerUnavailableError) for answer in refused)
        assert all(isinstance(answer, Prediction) for answer in asyncio.run(crowd(60)))
    finally:
        triton.stop(tmp_path / "state")


def test_serving_twice_starts_once_and_a_crash_leaves_nothing(
    exported: Path, triton_python: Path, tmp_path: Path
) -> None:
    ports = TritonPorts.free()
    first = serve_triton(exported, tmp_path, mode=Mode.SHADOW, python=triton_python, ports=ports, workers=1)
    try:
        assert serve_triton(exported, tmp_path, mode=Mode.SHADOW, python=triton_python, ports=ports, workers=1) == first
        assert counted(first, "afd_pictures_total") == counted(first, "afd_inference_seconds_count") == 0
        with Client(first.grpc_url) as client:
            asked = (Options(), Options(Mode.PROTECT))
            answers = [client.classify(GOOD["sample"], options) for options in asked]
        assert [isinstance(answer, Prediction) and answer.protected for answer in answers] == [False, True]
        assert counted(first, "afd_shadow_total") == 1
        family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        assert list(SHARED_MEMORY.glob(f"{first.prefix}*"))
        os.kill(first.pid, signal.SIGKILL)
        psutil.wait_procs(family[:2], timeout=20)
        assert triton.find(tmp_path) is None
    finally:
        triton.stop(tmp_path)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not list(SHARED_MEMORY.glob(f"{first.prefix}*"))


def test_a_model_that_cannot_be_loaded_is_reported(exported: Path, triton_python: Path, tmp_path: Path) -> None:
    repository = package_triton(exported, tmp_path / "repository")
    (repository / "afd_classifier" / "1" / "model.pt").write_bytes(b"no model")
    before = set(SHARED_MEMORY.glob("afd_triton_*"))
    with pytest.raises(ServingError, match="not the files that were exported"):
        triton.start(repository, tmp_path / "state", python=triton_python, ports=TritonPorts.free())
    assert triton.find(tmp_path / "state") is None
    assert set(SHARED_MEMORY.glob("afd_triton_*")) <= before
