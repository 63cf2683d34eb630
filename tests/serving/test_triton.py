"""What a real Triton answers: to raw HTTP, to the client, to bad pictures and to requests without sense."""

import asyncio
import json
import re
import socket
import stat
import urllib.request
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2
from tritonclient.grpc.aio import InferenceServerClient as AsyncInferenceServerClient
from tritonclient.utils import np_to_triton_dtype

from afd_serve.cli import main
from afd_serve.client import AsyncClient, Client, Mode, Options
from afd_serve.client.channels import Call, open_channel
from afd_serve.client.dialects import serialize
from afd_serve.errors import RequestRefusedError
from afd_serve.models.classifier import INPUTS
from afd_serve.pipeline import Failure, Pipeline, Prediction
from afd_serve.request import MAX_PICTURES
from afd_serve.response import read_result
from afd_serve.sample import sample_picture
from afd_serve.servers.triton import Triton
from afd_serve.servers.triton_environment import SHARED_MEMORY
from afd_serve.steps import PreparingStep
from tests.serving.frames import call
from tests.serving.pictures import BAD, GOOD, drawing

pytestmark = pytest.mark.serving

Result = Prediction | Failure

TOP = Options(top_k=100)
TEN_BAD = BAD | {
    "html": b"<!doctype html><title>404</title>",
    "truncated webp": drawing(8, kind="WEBP")[:300],
}


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
    triton_server: Triton, pipeline: Pipeline, pictures: list[bytes]
) -> None:
    for picture in pictures[::9]:
        head, outputs = ask_raw(triton_server, picture, {"Top-K": "2"})
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
    triton_server: Triton, pictures: list[bytes], expected: list[Result], transport: str, shared_memory: bool
) -> None:
    url = triton_server.url if transport == "http" else triton_server.grpc_url
    with Client(url, shared_memory=shared_memory) as client:
        assert [result for part in parts(pictures) for result in client.classify_many(part, TOP)] == expected


@pytest.mark.parametrize("shared_memory", [False, True])
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_asyncio_client_gets_the_pipelines_answers(
    triton_server: Triton,
    pictures: list[bytes],
    expected: list[Result],
    regions: list[Path],
    transport: str,
    shared_memory: bool,
) -> None:
    async def ask() -> list[Result]:
        url = triton_server.url if transport == "http" else triton_server.grpc_url
        async with AsyncClient(url, shared_memory=shared_memory, timeout=120) as client:
            asked: list[Coroutine[Any, Any, list[Result]]] = [
                client.classify_many(part, TOP) for part in parts(pictures)
            ]
            return [result for results in await asyncio.gather(*asked) for result in results]

    assert asyncio.run(ask()) == expected
    assert bool(regions) is shared_memory
    assert not [region for region in regions if region.exists()]


def test_more_pictures_than_fit_into_one_request(triton_server: Triton, pipeline: Pipeline) -> None:
    many = [drawing(index, size=(40, 30)) for index in range(MAX_PICTURES + 3)]
    with Client(triton_server.grpc_url) as client:
        assert client.classify_many(many, timeout=120) == pipeline.predict(many)


def test_options_are_each_requests_own(triton_server: Triton, pipeline: Pipeline) -> None:
    modes = [None, *Mode]
    options = [Options(modes[index % 4], top_k=index % 5 + 1, crop=index % 3 > 0) for index in range(12)]
    with Client(triton_server.grpc_url, timeout=60) as client, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda option: client.classify(GOOD["sample"], option), options))
    for option, answer in zip(options, answers, strict=True):
        afd = option.mode in (None, Mode.PROTECT)
        assert [answer] == pipeline.predict([GOOD["sample"]], afd=afd, top_k=option.top_k, crop=option.crop)


def test_a_mode_that_does_not_exist_is_refused(triton_server: Triton) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask_raw(triton_server, GOOD["sample"], {"afd": "shade"})
    with refusal.value as response:
        assert "bad_option: afd is protect (or on), off or shadow" in json.loads(response.read())["error"]


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_bad_pictures_fail_alone_or_among_others(triton_server: Triton, pipeline: Pipeline, transport: str) -> None:
    mixed = [picture for pair in zip(TEN_BAD.values(), [*GOOD.values()] * 2, strict=False) for picture in pair]
    with Client(triton_server.url if transport == "http" else triton_server.grpc_url) as client:
        assert client.classify_many(mixed) == pipeline.predict(mixed)
        for picture in TEN_BAD.values():
            assert [client.classify(picture)] == pipeline.predict([picture])
        bad = list(TEN_BAD.values())
        assert client.classify_many(bad) == pipeline.predict(bad)


def test_two_hundred_requests_at_once_a_quarter_of_them_bad(triton_server: Triton, pipeline: Pipeline) -> None:
    bad, good = list(TEN_BAD.values()), list(GOOD.values())
    asked = [bad[index // 4 % len(bad)] if index % 4 == 0 else good[index % len(good)] for index in range(200)]

    async def ask() -> list[Result]:
        async with AsyncClient(triton_server.grpc_url, timeout=120) as client:
            return await asyncio.gather(*(client.classify(picture) for picture in asked))

    answers = asyncio.run(ask())
    expected = {picture: pipeline.predict([picture])[0] for picture in {*bad, *good}}
    assert answers == [expected[picture] for picture in asked]
    assert sum(isinstance(answer, Failure) and bool(answer.reason) for answer in answers) == 50


@pytest.mark.parametrize("triton_server", ["python"], indirect=True)
def test_a_request_without_sense_fails_none_that_it_is_batched_with(triton_server: Triton, pipeline: Pipeline) -> None:
    inputs, (finding,) = PreparingStep(pipeline.signature.preprocessing).prepare([GOOD["sample"]])
    arrays = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
    arrays |= {"gate": arrays["gate"][:, None], "finding": np.array([[finding.to_json()]], dtype=object)}
    tensors = []
    for name, array in arrays.items():
        tensors.append(grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)

    async def ask() -> list[Any]:
        async with AsyncInferenceServerClient(triton_server.grpc_url.removeprefix("grpc://")) as client:
            asked = [client.infer("afd_classifier", tensors, parameters={"top_k": top_k}) for top_k in (3, 101) * 20]
            return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    assert all("bad_option" in str(answer) for answer in answers[1::2])
    for answer in answers[::2]:
        said = [read_result(json.loads(text)) for text in answer.as_numpy("answer")[:, 0]]
        assert said == pipeline.predict([GOOD["sample"]], top_k=3)


def test_a_request_without_sense_is_refused(triton_server: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(triton_server.url, model="nothing") as client, pytest.raises(RequestRefusedError, match="nothing"):
        client.classify(GOOD["sample"])
    monkeypatch.setattr("afd_serve.client.dialects._options", lambda _: {"top_k": "101"})
    for url in (triton_server.grpc_url, triton_server.url):
        with Client(url) as client, pytest.raises(RequestRefusedError) as refusal:
            client.classify(GOOD["sample"])
        assert refusal.value.failure == Failure("bad_option", "top_k is a whole number from 1 to 100")


@pytest.mark.parametrize("header", ["top_k", "Top-K"])
def test_parameters_of_the_body_count_before_headers(triton_server: Triton, header: str) -> None:
    (answer,) = ask_json(triton_server, {"name": "answer"}, {"top_k": 1}, {header: "2"})
    assert len(json.loads(answer)["predictions"]) == 1
    tensor = grpcclient.InferInput("picture", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[sample_picture()]], dtype=object))
    for parameters, count in (({"top_k": 1}, 1), ({"other": 1}, 2)):
        with grpcclient.InferenceServerClient(triton_server.grpc_url.removeprefix("grpc://")) as client:
            said = client.infer("afd_classify", [tensor], parameters=parameters, headers={header.lower(): "2"})
        assert len(json.loads(said.as_numpy("answer")[0, 0])["predictions"]) == count


@pytest.mark.parametrize("rows", [0, -1, -(2**63)])
def test_no_number_of_rows_is_a_fault_of_ours(triton_server: Triton, rows: int) -> None:
    request = service_pb2.ModelInferRequest(model_name="afd_classify", raw_input_contents=[serialize([GOOD["sample"]])])
    request.inputs.add(name="picture", datatype="BYTES", shape=[rows, 1])
    channel = open_channel(triton_server.grpc_url)
    reply = channel.exchange(Call("/inference.GRPCInferenceService/ModelInfer", request.SerializeToString()), 30)
    channel.close()
    assert reply.status in (200, 400), reply.message


def ask_json(server: Triton, wanted: dict[str, Any], parameters: dict[str, Any], headers: dict[str, str]) -> list[str]:
    """One output's elements for the sample picture, as JSON has them."""
    data = serialize([sample_picture()])
    where = {"binary_data_size": len(data)}
    header = json.dumps(
        {
            "parameters": parameters,
            "inputs": [{"name": "picture", "shape": [1, 1], "datatype": "BYTES", "parameters": where}],
            "outputs": [{"parameters": {"binary_data": False}} | wanted],
        }
    ).encode()
    request = urllib.request.Request(
        f"{server.url}/v2/models/afd_classify/infer",
        data=header + data,
        headers={"Inference-Header-Content-Length": str(len(header))} | headers,
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        said: list[str] = json.loads(response.read())["outputs"][0]["data"]
    return said


def test_labels_through_the_classification_extension(triton_server: Triton) -> None:
    labels = {"name": "probabilities", "parameters": {"classification": 2, "binary_data": False}}
    first, second = ask_json(triton_server, labels, {}, {})
    assert re.fullmatch(r"0\.\d+:892:wall clock", first)
    assert re.fullmatch(r"0\.\d+:\d+:[\w ]+", second)


def test_nothing_but_inference_is_open(triton_server: Triton) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in ("/v2/repository/index", "/v2/repository/models/x/load", "/v2/logging", "/v2/trace/setting"):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            opener.open(urllib.request.Request(f"{triton_server.url}{path}", data=b"{}"), timeout=10)
        refusal.value.close()
        assert refusal.value.code in (403, 405)
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in psutil.Process(triton_server.pid).children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize("method", ["RepositoryIndex", "TraceSetting", "LogSettings"])
def test_the_word_on_the_command_line_opens_nothing(triton_server: Triton, method: str) -> None:
    """Everyone on the machine can read it there, and send it over gRPC and HTTP, as far as that can be done."""
    (process,) = psutil.Process(triton_server.pid).children()
    words = {name: word for name, _, word in (option.partition("=") for option in process.cmdline())}
    assert words["--http-restricted-api"] == words["--grpc-restricted-protocol"]
    name, value = words["--http-restricted-api"].partition(":")[2].encode().split(b"=")
    nothing = bytes(5)

    def answered(path: str, *headers: tuple[bytes, bytes]) -> list[bytes]:
        with socket.create_connection(("127.0.0.1", triton_server.ports.grpc), timeout=30) as connection:
            return call(connection, f"/inference.GRPCInferenceService/{path}", nothing, headers)

    assert answered("ServerMetadata")
    assert answered("ServerMetadata", (b"triton-grpc-protocol-other", value))
    assert not answered(method)
    assert not answered(method, (b"triton-grpc-protocol-" + name, value))
    for header in (name + b": " + value, name + b":" + value, name + b":\r\n " + value):
        with socket.create_connection(("127.0.0.1", triton_server.ports.http), timeout=30) as connection:
            start = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
            connection.sendall(start + header + b"\r\n\r\n{}")
            assert b" 200 " not in connection.recv(100)


def test_pictures_in_shared_memory_and_logs_are_for_the_owner_only(triton_server: Triton) -> None:
    ask_raw(triton_server, GOOD["sample"] + bytes(20 << 20), {})  # for which the memory grows
    modes = [stat.S_IMODE(path.stat().st_mode) for path in SHARED_MEMORY.glob(f"{triton_server.prefix}*")]
    assert set(modes) == {0o600}
    assert stat.S_IMODE(triton_server.log.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(triton_server.ready_file.stat().st_mode) == 0o600


def test_the_command_line_asks_the_server(
    triton_server: Triton, pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    good.write_bytes(GOOD["sample"])
    bad.write_bytes(BAD["truncated"])
    for url in (triton_server.url, triton_server.grpc_url):
        with pytest.raises(SystemExit) as ended:
            main(["classify", "--server", url, "--json", "--top-k", "2", "--no-afd", str(good), str(bad)])
        assert ended.value.code == 1
        first, second = json.loads(capsys.readouterr().out)
        (expected,) = pipeline.predict([GOOD["sample"]], top_k=2, afd=False)
        assert read_result(first) == expected
        assert second["error"]["code"] == "truncated_jpeg"
