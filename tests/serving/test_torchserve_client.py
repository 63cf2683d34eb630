"""The client against a real TorchServe, over REST and gRPC."""

import asyncio
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from afd_serve.cli import main
from afd_serve.errors import RequestRefusedError, ServerUnavailableError
from afd_serve.explain import Explainer
from afd_serve.overlay import render
from afd_serve.pipeline import Pipeline
from afd_serve.results import Failure, Prediction
from afd_serve.servers.torchserve import TorchServe
from tests.conftest import Run
from tests.serving.pictures import BAD, GOOD
from tests.serving.scrape import total

pytest.importorskip("tritonclient.grpc")

from afd_serve.client import AsyncClient, Client, Mode, Options, detect_server

pytestmark = pytest.mark.serving

MIXED = [GOOD["sample"], BAD["truncated"], GOOD["png"], BAD["zero bytes"], GOOD["gray"]]


def url_of(server: TorchServe, transport: str) -> str:
    return f"{transport}://127.0.0.1:{server.ports.inference if transport == 'http' else server.ports.grpc_inference}"


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_clients_get_the_pipelines_answers(server: TorchServe, pipeline: Pipeline, transport: str) -> None:
    url = url_of(server, transport)
    options = Options(Mode.OFF, top_k=3)
    with Client(url, server="torchserve", token=server.token()) as client:
        assert client.healthy(timeout=30)
        assert client.classify_many(MIXED, options) == pipeline.predict(MIXED, afd=False, top_k=3)
        assert client.classify_many(MIXED, Options(Mode.SHADOW)) == pipeline.predict(MIXED, afd=Mode.OFF)
        assert [client.classify(picture) for picture in MIXED] == pipeline.predict(MIXED)

    async def ask() -> object:
        async with AsyncClient(url, server="torchserve", token=server.token()) as asking:
            return await asyncio.gather(*(asking.classify(picture) for picture in MIXED))

    assert asyncio.run(ask()) == pipeline.predict(MIXED)


def test_health_is_an_answer_not_what_the_server_says_of_itself(server: TorchServe, run: Run) -> None:
    status, out, err = run("health", "--state-dir", server.state_dir, "--timeout", 30)
    assert (status, out.startswith("wall clock ")) == (0, True), err
    (worker,) = (psutil.Process(worker["pid"]) for worker in server.workers())
    worker.suspend()
    try:
        assert server.get("inference", "/ping").json() == {"status": "Healthy"}
        status, out, err = run("health", "--state-dir", server.state_dir, "--timeout", 1)
    finally:
        worker.resume()
    assert (status, out, err.startswith("error: ")) == (2, "", True)
    with Client(url_of(server, "http"), server="torchserve", token=server.token()) as client:
        assert client.healthy(timeout=30)


def counted(server: TorchServe, name: str, value: float) -> float:
    """A counter's sum once it has reached a value and a worker has had time to tell of more."""
    deadline = time.monotonic() + 20
    while total(text := server.get("metrics", "/metrics").body.decode(), name) < value:
        assert time.monotonic() < deadline, f"{name} never reached {value}"
        time.sleep(0.2)
    time.sleep(1.2)
    text = server.get("metrics", "/metrics").body.decode()
    return total(text, name)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_health_is_left_out_of_the_metrics_and_nothing_else_is(
    server: TorchServe, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, probes = counted(server, "afd_pictures_total", 0), counted(server, "afd_probes_total", 0)
    with Client(url_of(server, transport), server="torchserve", token=server.token()) as client:
        for _ in range(3):
            client.probe(timeout=30)
        assert counted(server, "afd_probes_total", probes + 3) == probes + 3
        assert counted(server, "afd_pictures_total", 0) == pictures
        for picture in (GOOD["fine"], BAD["truncated"]):
            monkeypatch.setattr("afd_serve.client.sample_picture", lambda picture=picture: picture)
            client.healthy(timeout=30)
    assert counted(server, "afd_pictures_total", pictures + 2) == pictures + 2
    assert counted(server, "afd_probes_total", 0) == probes + 3


def test_a_server_that_does_not_run_is_not_healthy(run: Run, tmp_path: Path) -> None:
    status, _, err = run("health", "--state-dir", tmp_path)
    assert (status, err) == (2, f"error: no server runs in {tmp_path}; `afd-serve serve` starts one\n")


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_more_bytes_than_fit_into_one_request(server: TorchServe, pipeline: Pipeline, transport: str) -> None:
    large, larger = (GOOD["sample"] + bytes(size << 20) for size in (10, 25))
    many = [GOOD["sample"], large, large, larger, large, GOOD["gray"]]
    with Client(url_of(server, transport), server="torchserve", token=server.token()) as client:
        results = client.classify_many(many, timeout=120)
    assert isinstance(results[3], Failure)
    assert results[3].code == "too_large"
    del results[3], many[3]
    assert results == pipeline.predict(many)


def test_the_clients_get_the_explainers_drawing(server: TorchServe, exported: Path) -> None:
    expected = render(Explainer.load(exported).explain(GOOD["sample"]))
    url = url_of(server, "http")
    with Client(url, server="torchserve", token=server.token()) as client:
        assert client.explain(GOOD["sample"]) == expected
        failed = client.explain(BAD["truncated"])
        assert isinstance(failed, Failure)
        assert failed.code == "truncated_jpeg"
        with pytest.raises(RequestRefusedError, match="bad_option"):
            client.explain(GOOD["sample"], Options(Mode.OFF))

    async def ask() -> object:
        async with AsyncClient(url, server="torchserve", token=server.token()) as asking:
            return await asking.explain(GOOD["sample"])

    assert asyncio.run(ask()) == expected


def test_the_command_line_asks_the_server(
    server: TorchServe, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, drawing = tmp_path / "picture.jpg", tmp_path / "heat.png"
    picture.write_bytes(GOOD["sample"])
    url = url_of(server, "http")
    arguments = ["classify", str(picture), "--server", url, "--token", server.token(), "--explain", str(drawing)]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (0, None)
    out = capsys.readouterr().out
    assert out.startswith(f"{picture}: estimated quality")
    assert out.endswith(f"wrote {drawing}\n")
    assert drawing.read_bytes() == render(Explainer.load(exported).explain(GOOD["sample"]))


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_refusals(server: TorchServe, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = url_of(server, transport)
    assert detect_server(url) == "torchserve"
    with Client(url, server="torchserve", token="wrong") as client, pytest.raises(RequestRefusedError):
        client.classify(GOOD["sample"])
    with (
        Client(url, server="torchserve", model="nobody", token=server.token()) as client,
        pytest.raises(RequestRefusedError, match="Model not found") as refusal,
    ):
        client.classify(GOOD["sample"])
    assert refusal.value.failure is None
    monkeypatch.setattr("afd_serve.client.dialects._options", lambda _: {"top_k": "0"})
    with (
        Client(url, server="torchserve", token=server.token()) as client,
        pytest.raises(RequestRefusedError, match="bad_option: top_k is a whole number from 1 to 100") as refusal,
    ):
        client.classify(GOOD["sample"])
    assert refusal.value.failure == Failure("bad_option", "top_k is a whole number from 1 to 100")


def test_more_requests_over_grpc_than_the_queue_holds_are_turned_away_and_asked_again(server: TorchServe) -> None:
    async def ask(attempts: int) -> list[object]:
        settings: dict[str, Any] = {"server": "torchserve", "token": server.token(), "timeout": 120}
        async with AsyncClient(url_of(server, "grpc"), attempts=attempts, **settings) as client:
            asked = (client.classify(GOOD["sample"]) for _ in range(400))
            return await asyncio.gather(*asked, return_exceptions=True)

    assert {type(result) for result in asyncio.run(ask(1))} == {Prediction, ServerUnavailableError}
    assert {type(result) for result in asyncio.run(ask(60))} == {Prediction}
