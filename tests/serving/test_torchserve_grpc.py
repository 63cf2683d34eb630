"""A real TorchServe over gRPC, in raw messages: what a client of any kind gets."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from afd_serve.pipeline import Pipeline
from afd_serve.response import prediction_from_dict
from afd_serve.servers.torchserve import TorchServe
from tests.serving.pictures import BAD, GOOD
from tests.serving.protobuf import field

grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.serving

SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"


@pytest.fixture
def channel(server: TorchServe) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc_inference}") as channel:
        yield channel


@pytest.fixture
def metadata(server: TorchServe) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {server.token()}"),)


def prediction_request(picture: bytes) -> bytes:
    return field(1, b"afd") + field(3, field(1, b"data") + field(2, picture))


def test_good_and_bad_pictures_are_answered(channel: Any, metadata: tuple[Any, ...], pipeline: Pipeline) -> None:
    ask = channel.unary_unary(f"{SERVICE}/Predictions")

    def predict(picture: bytes) -> Any:
        answer = ask(prediction_request(picture), metadata=metadata, timeout=30)
        return json.loads(answer[answer.index(b"{") :])

    good = predict(GOOD["sample"])
    assert prediction_from_dict(good) == pipeline.predict([GOOD["sample"]])[0]
    assert good["model"] == {"name": "afd", "version": "1.0"}
    # gRPC drops the status of a single request: the body tells.
    assert predict(BAD["truncated"])["error"]["code"] == "truncated_jpeg"


@pytest.mark.parametrize("picture", [GOOD["sample"], BAD["truncated"]])
def test_a_stream_is_one_answer_and_costs_no_worker(
    server: TorchServe, channel: Any, metadata: tuple[Any, ...], picture: bytes
) -> None:
    before = [worker["pid"] for worker in server.workers()]
    request = prediction_request(picture)
    single = channel.unary_unary(f"{SERVICE}/Predictions")(request, metadata=metadata, timeout=30)
    stream = channel.unary_stream(f"{SERVICE}/StreamPredictions")(request, metadata=metadata, timeout=30)
    assert list(stream) == [single]
    assert [worker["pid"] for worker in server.workers()] == before
