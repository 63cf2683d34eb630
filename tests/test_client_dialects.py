"""What the client says to each server, and what it makes of every kind of answer."""

import json
import pickle
from typing import Any

import pytest

from afd_serve.errors import (
    BadAnswerError,
    RequestRefusedError,
    ServerUnavailableError,
)
from afd_serve.request import read_request
from afd_serve.results import Failure

service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")

from afd_serve.client import Mode, Options  # noqa: E402
from afd_serve.client.channels import Reply  # noqa: E402
from afd_serve.client.dialects import (  # noqa: E402
    Question,
    TorchServeGrpc,
    TorchServeHttp,
    TritonGrpc,
    TritonHttp,
    serialize,
)
from tests.client_answers import CLOCK, CUT, DRAWING, Result, wire  # noqa: E402


def question(*pictures: bytes, **options: Any) -> Question:
    return Question(pictures, Options(**options), "id 7", 2.5)


def test_triton_over_http() -> None:
    call = TritonHttp("m").ask(question(b"one", b"", mode=Mode.SHADOW, top_k=3))
    length = int(call.headers["Inference-Header-Content-Length"])
    header = json.loads(call.body[:length])
    assert call.target == "/v2/models/m/infer"
    assert header["parameters"] == {"afd": "shadow", "top_k": "3", "crop": "on", "timeout": 2_500_000}
    assert header["inputs"][0]["shape"] == [2, 1]
    assert call.body[length:] == b"\x03\0\0\0one\0\0\0\0"
    data = [json.dumps(wire(CLOCK)), json.dumps(wire(CUT))]
    body = json.dumps({"outputs": [{"name": "answer", "data": data}]}).encode()
    assert TritonHttp("m").read(Reply(200, body), 2) == [CLOCK, CUT]


def test_triton_over_grpc() -> None:
    call = TritonGrpc("m").ask(question(b"one", crop=False))
    request = service_pb2.ModelInferRequest.FromString(call.body)
    assert (request.model_name, request.id) == ("m", "id 7")
    assert request.parameters["crop"].string_param == "off"
    assert "afd" not in request.parameters, "the mode is the model's to choose"
    assert request.parameters["timeout"].int64_param == 2_500_000
    assert list(request.raw_input_contents) == [serialize([b"one"])]
    response = service_pb2.ModelInferResponse()
    response.raw_output_contents.append(serialize([json.dumps(wire(CUT)).encode(), json.dumps(wire(CLOCK)).encode()]))
    assert TritonGrpc("m").read(Reply(200, response.SerializeToString()), 2) == [CUT, CLOCK]


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value) & 127 | 128, len(value) >> 7]) + value


@pytest.mark.parametrize("over_grpc", [False, True])
def test_torchserve_reads_what_the_client_writes(over_grpc: bool) -> None:
    pictures = [bytes(range(256)) * 200, b"", b"{not json"]
    asked = question(*pictures, mode=Mode.OFF, top_k=2)
    if over_grpc:
        call = TorchServeGrpc("afd").ask(asked)
        part = call.body[call.body.index(b"{") :]
    else:
        call = TorchServeHttp("afd").ask(asked)
        part = call.body
        assert call.headers["X-Request-Id"] == "id 7"
    request = read_request({"data": part}, {})
    assert list(request.pictures) == pictures
    assert request.options == Options(Mode.OFF, top_k=2)
    assert not request.single
    assert request.request_id == "id 7"
    body = json.dumps([wire(CLOCK), wire(CUT), wire(CUT)]).encode()
    dialect = TorchServeGrpc("afd") if over_grpc else TorchServeHttp("afd")
    assert dialect.read(Reply(200, field(1, body) + field(2, b"new") if over_grpc else body), 3) == [CLOCK, CUT, CUT]


def test_a_torchserve_draws_one_picture_s_drift_map() -> None:
    dialect = TorchServeHttp("afd")
    call = dialect.ask_why(question(b"one", top_k=2))
    assert call.target == "/explanations/afd"
    request = read_request({"data": call.body}, {})
    assert (request.pictures, request.format, request.options) == ((b"one",), "png", Options(top_k=2))
    assert dialect.read_drawing(Reply(200, DRAWING)) == DRAWING
    assert dialect.read_drawing(Reply(400, json.dumps(wire(CUT)).encode())) == CUT
    with pytest.raises(RequestRefusedError, match="InvalidKey"):
        dialect.read_drawing(Reply(400, b'{"code": 400, "type": "InvalidKeyException"}'))
    for nonsense in (b"", b"[]", b'{"error": {}}', b"not even a drawing"):
        with pytest.raises(BadAnswerError):
            dialect.read_drawing(Reply(200, nonsense))


@pytest.mark.parametrize("code", ["bad_option", "too_many_pictures", "unsupported_encoding"])
def test_a_refusal_has_the_same_words_whichever_server_it_comes_from(code: str) -> None:
    failure = Failure(code, "it is: one from 1 to 100")
    torchserve, words = json.dumps(wire(failure)).encode(), f"in ensemble 'm', {code}: {failure.reason}"
    refusals: list[tuple[Any, Reply]] = [
        (lambda reply: TorchServeHttp("m").read(reply, 1), Reply(413, torchserve)),
        (lambda reply: TorchServeGrpc("m").read(reply, 1), Reply(200, field(1, torchserve))),
        (TorchServeHttp("m").read_drawing, Reply(400, torchserve)),
        (lambda reply: TritonHttp("m").read(reply, 1), Reply(400, json.dumps({"error": words}).encode())),
        (lambda reply: TritonGrpc("m").read(reply, 1), Reply(400, b"", words)),
    ]
    for read, reply in refusals:
        with pytest.raises(RequestRefusedError) as refusal:
            read(reply)
        assert str(refusal.value) == f"{code}: {failure.reason}"
        assert pickle.loads(pickle.dumps(refusal.value)).failure == failure


def test_what_a_server_or_a_proxy_refuses_in_words_of_its_own_names_no_failure() -> None:
    for dialect in (TorchServeHttp("m"), TritonHttp("m")):
        with pytest.raises(RequestRefusedError) as refusal:
            dialect.read(Reply(401, b"<html>401 Authorization Required</html>"), 1)
        assert refusal.value.failure is None


def test_what_a_triton_error_means() -> None:
    http = TritonHttp("m")

    def read(status: int, message: str, count: int = 1) -> list[Result]:
        return list(http.read(Reply(status, json.dumps({"error": message}).encode()), count))

    assert read(400, "in ensemble 'm', truncated_jpeg: the data ends: too early") == [CUT]
    assert read(500, "in ensemble 'm', internal: see the log") == [Failure("internal", "see the log")]
    with pytest.raises(RequestRefusedError, match="bad_option"):
        read(400, "in ensemble 'm', bad_option: top_k is a whole number")
    with pytest.raises(RequestRefusedError, match="unknown model"):
        read(404, "Request for unknown model: 'm' is not found")
    with pytest.raises(ServerUnavailableError):
        read(500, "Failed to process the request(s) for model 'm', message: Stub process 'm' is not healthy.")
    with pytest.raises(BadAnswerError):
        read(500, "Something else")


@pytest.mark.parametrize(
    ("reply", "count"),
    [
        (Reply(200, b""), 1),
        (Reply(200, b"[]"), 1),
        (Reply(200, b"{}"), 1),
        (Reply(200, b'{"outputs": [{"data": []}]}'), 1),
        (Reply(200, b'{"outputs": null}'), 1),
        (Reply(200, b'{"outputs": [null]}'), 1),
        (Reply(200, b'{"outputs": [{"data": [1]}]}'), 1),
        (Reply(200, b'{"outputs": [{"data": null}]}'), 1),
        (Reply(200, b'{"outputs": [{"data": [null]}]}'), 1),
        (Reply(200, b"[" * 100_000), 1),
        (Reply(200, b'{"outputs": [{"data": ["{}"]}]}'), 1),
        (Reply(200, b'{"outputs": [{"data": ["3"]}]}'), 1),
        (Reply(500, b"<html>"), 1),
    ],
)
def test_answers_without_sense(reply: Reply, count: int) -> None:
    with pytest.raises(BadAnswerError):
        TritonHttp("m").read(reply, count)
    for dialect in (TorchServeHttp("m"), TorchServeGrpc("m")):
        with pytest.raises(BadAnswerError):
            dialect.read(Reply(reply.status, b"\x0a\x80" if dialect.__class__ is TorchServeGrpc else reply.body), count)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"\x0a\xff", b"\x2a\x03abc", b"\x32\x06\x09\0\0\0{}"])
def test_a_message_without_sense(body: bytes) -> None:
    with pytest.raises(BadAnswerError):
        TritonGrpc("m").read(Reply(200, body), 1)
    with pytest.raises(BadAnswerError):
        TorchServeGrpc("m").read(Reply(200, body), 1)


@pytest.mark.parametrize("status", [500, 507])
def test_a_request_that_went_down_with_its_worker_may_be_sent_again(status: int) -> None:
    with pytest.raises(ServerUnavailableError, match="Worker died"):
        TorchServeHttp("m").read(Reply(status, b'{"message": "Worker died."}'), 1)
    with pytest.raises(ServerUnavailableError, match="Worker died"):
        TorchServeGrpc("m").read(Reply(500, b"", "INTERNAL: Worker died."), 1)


def test_a_torchserve_whose_queue_is_full_may_be_asked_again_over_grpc_too() -> None:
    words = 'Model "m" has no worker to serve inference request.\nInternalServerException.()'
    with pytest.raises(ServerUnavailableError, match="no worker"):
        TorchServeGrpc("m").read(Reply(500, b"", words), 1)


def test_a_torchserve_without_the_model_refuses_over_grpc_too() -> None:
    words = "Model not found: m\norg.pytorch.serve.archive.model.ModelNotFoundException"
    with pytest.raises(RequestRefusedError, match="Model not found"):
        TorchServeGrpc("m").read(Reply(500, b"", words), 1)


@pytest.mark.parametrize(
    ("dialect", "reply"),
    [
        (TritonHttp("m"), Reply(302, b"")),
        (TritonHttp("m"), Reply(500, b"<html></html>")),
        (TorchServeHttp("m"), Reply(200, b"")),
        (TorchServeHttp("m"), Reply(302, b"\n")),
    ],
)
def test_an_answer_that_says_nothing_is_called_empty(dialect: TritonHttp | TorchServeHttp, reply: Reply) -> None:
    with pytest.raises(BadAnswerError, match=f"the server answered {reply.status}: an empty answer"):
        dialect.read(reply, 1)
