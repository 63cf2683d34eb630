"""The client: what it says to each server, and what it makes of every kind of answer and silence."""

import asyncio
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from afd_serve.errors import (
    BadAnswerError,
    ClientError,
    ConfigError,
    DeadlineExceededError,
    RequestRefusedError,
    ServerUnavailableError,
    TlsError,
)
from afd_serve.request import MAX_PICTURES, read_request
from afd_serve.response import ModelInfo, failure_to_dict, prediction_to_dict
from afd_serve.results import Failure, Prediction

grpc = pytest.importorskip("grpc")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")

from afd_serve.client import AsyncClient, Client, Mode, Options, detect_server  # noqa: E402
from afd_serve.client.channels import Call, Reply  # noqa: E402
from afd_serve.client.conversation import Exchange, Pause, Settings, Talk  # noqa: E402
from afd_serve.client.dialects import (  # noqa: E402
    Question,
    TorchServeGrpc,
    TorchServeHttp,
    TritonGrpc,
    TritonHttp,
    serialize,
)
from afd_serve.client.regions import RegionPool  # noqa: E402

CLOCK = Prediction((892, 409), ("wall clock", "analog clock"), (0.75, 0.125), 10, 0.5, True)
CUT = Failure("truncated_jpeg", "the data ends: too early")
Result = Prediction | Failure


def wire(result: Result) -> dict[str, Any]:
    if isinstance(result, Failure):
        return failure_to_dict(result)
    return prediction_to_dict(result, ModelInfo("afd", "1"))


def question(*pictures: bytes, **options: Any) -> Question:
    return Question(pictures, Options(**options), "id 7", 2.5)


def test_nothing_of_torch_is_needed() -> None:
    code = "import sys, afd_serve.client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


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
        call = TorchServeGrpc("afd", "secret").ask(asked)
        part = call.body[call.body.index(b"{") :]
        assert call.headers == {"authorization": "Bearer secret"}
    else:
        call = TorchServeHttp("afd", "secret").ask(asked)
        part = call.body
        assert call.headers["Authorization"] == "Bearer secret"
    request = read_request({"data": part}, {})
    assert list(request.pictures) == pictures
    assert request.options == Options(Mode.OFF, top_k=2)
    assert not request.single
    body = json.dumps([wire(CLOCK), wire(CUT), wire(CUT)]).encode()
    dialect = TorchServeGrpc("afd", None) if over_grpc else TorchServeHttp("afd", None)
    assert dialect.read(Reply(200, field(1, body) if over_grpc else body), 3) == [CLOCK, CUT, CUT]


DRAWING = b"\x89PNG\r\n\x1a\n and so on"


def test_a_torchserve_draws_one_picture_s_drift_map() -> None:
    dialect = TorchServeHttp("afd", "secret")
    call = dialect.ask_why(question(b"one", top_k=2))
    assert (call.target, call.headers["Authorization"]) == ("/explanations/afd", "Bearer secret")
    request = read_request({"data": call.body}, {})
    assert (request.pictures, request.format, request.options) == ((b"one",), "png", Options(top_k=2))
    assert dialect.read_drawing(Reply(200, DRAWING)) == DRAWING
    assert dialect.read_drawing(Reply(400, json.dumps(wire(CUT)).encode())) == CUT
    option = json.dumps(wire(Failure("bad_option", "nothing to explain"))).encode()
    with pytest.raises(RequestRefusedError, match="nothing to explain"):
        dialect.read_drawing(Reply(400, option))
    with pytest.raises(RequestRefusedError, match="InvalidKey"):
        dialect.read_drawing(Reply(400, b'{"code": 400, "type": "InvalidKeyException"}'))
    for nonsense in (b"", b"[]", b'{"error": {}}', b"not even a drawing"):
        with pytest.raises(BadAnswerError):
            dialect.read_drawing(Reply(200, nonsense))


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
        (Reply(200, b'{"outputs": [{"data": ["{}"]}]}'), 1),
        (Reply(200, b'{"outputs": [{"data": ["3"]}]}'), 1),
        (Reply(500, b"<html>"), 1),
    ],
)
def test_answers_without_sense(reply: Reply, count: int) -> None:
    with pytest.raises(BadAnswerError):
        TritonHttp("m").read(reply, count)
    for dialect in (TorchServeHttp("m", None), TorchServeGrpc("m", None)):
        with pytest.raises(BadAnswerError):
            dialect.read(Reply(reply.status, b"\x0a\x80" if dialect.__class__ is TorchServeGrpc else reply.body), count)


Script = list[Reply | ClientError]


def play(talk: Talk, pictures: Sequence[bytes], script: Script, timeout: float = 5.0) -> tuple[list[Result], list[Any]]:
    """Carry a conversation out with replies from a script, without waiting; the results and all steps."""
    steps: list[Any] = []
    conversation = talk.classify(pictures, Options(), timeout)
    try:
        step = next(conversation)
        while True:
            steps.append(step)
            if isinstance(step, Pause):
                step = conversation.send(None)
            elif isinstance(answer := script.pop(0), ClientError):
                step = conversation.throw(answer)
            else:
                step = conversation.send(answer)
    except StopIteration as end:
        assert not script
        return end.value, steps


def answers(*results: Result) -> Reply:
    return Reply(200, json.dumps({"outputs": [{"data": [json.dumps(wire(result)) for result in results]}]}).encode())


BUSY = ServerUnavailableError("busy")


def test_an_unavailable_server_is_asked_again_after_longer_and_longer_pauses() -> None:
    talk = Talk(Settings("http://x:1", attempts=4))
    results, steps = play(talk, [b"x"], [BUSY, BUSY, BUSY, answers(CLOCK)])
    assert results == [CLOCK]
    pauses = [step.seconds for step in steps if isinstance(step, Pause)]
    assert len(pauses) == 3
    assert all(0.5 <= pause / (0.05 * 2**index) <= 1.5 for index, pause in enumerate(pauses))


def test_retries_end_with_the_attempts_and_with_the_deadline() -> None:
    with pytest.raises(ServerUnavailableError):
        play(Talk(Settings("http://x:1", attempts=2)), [b"x"], [BUSY, BUSY])
    with pytest.raises(ServerUnavailableError):
        play(Talk(Settings("http://x:1", attempts=99)), [b"x"], [BUSY], timeout=0.02)
    with pytest.raises(DeadlineExceededError):
        play(Talk(Settings("http://x:1")), [b"x"], [DeadlineExceededError("late")])
    with pytest.raises(RequestRefusedError):
        play(Talk(Settings("http://x:1")), [b"x"], [Reply(404, b'{"error": "no model"}')])


def test_a_request_that_two_workers_died_of_is_not_sent_again() -> None:
    talk = Talk(Settings("http://x:1", server="torchserve"))
    died, answered = Reply(507, b'{"message": "Worker died."}'), Reply(200, json.dumps([wire(CLOCK)]).encode())
    assert play(talk, [b"x"], [died, answered])[0] == [CLOCK]
    assert play(talk, [b"x"], [BUSY, died, BUSY, answered])[0] == [CLOCK]
    with pytest.raises(ServerUnavailableError, match="Worker died"):
        play(talk, [b"x"], [died, BUSY, died])
    assert play(talk, [b"x"], [answered])[0] == [CLOCK]


def test_many_pictures_become_several_requests_with_one_deadline() -> None:
    pictures = [b"%d" % index for index in range(MAX_PICTURES + 2)]
    results, steps = play(
        Talk(Settings("http://x:1")), pictures, [answers(*[CLOCK] * MAX_PICTURES), answers(CUT, CLOCK)]
    )
    assert results == [CLOCK] * MAX_PICTURES + [CUT, CLOCK]
    first, second = steps
    assert second.timeout <= first.timeout <= 5
    assert play(Talk(Settings("http://x:1")), [], []) == ([], [])


def test_shared_memory_is_registered_once_and_its_name_forgotten() -> None:
    talk = Talk(Settings("http://x:1", shared_memory=True))
    done = Reply(200, b"")
    _, (register, ask) = play(talk, [b"x" * 1000], [done, answers(CLOCK)])
    assert "systemsharedmemory" in register.call.target
    assert len(ask.call.body) < 1000
    assert len(play(talk, [b"y"], [answers(CLOCK)])[1]) == 1
    lost = Reply(400, b'{"error": "Unable to find shared memory region"}')
    assert play(talk, [b"y"], [lost, done, answers(CUT)])[0] == [CUT]
    goodbyes = [step.call.target for step in talk.goodbye() if isinstance(step, Exchange)]
    assert len(goodbyes) == 1
    assert goodbyes[0].endswith("/unregister")


def test_regions_are_shared_by_no_two_calls() -> None:
    pool = RegionPool()
    one, other = pool.take(10), pool.take(10)
    assert one is not other
    pool.give_back(one)
    assert pool.take(10) is one
    larger = pool.take(one.size + 1)
    assert larger.size > one.size
    for region in (one, other, larger):
        region.close()
    assert pool.drain() == []


def test_explanations_are_for_torchserve_over_http() -> None:
    for settings in (Settings("http://x:1"), Settings("grpc://x:1"), Settings("grpc://x:1", server="torchserve")):
        with pytest.raises(ConfigError, match="TorchServe over HTTP"):
            Talk(settings).explain(b"x", Options(), 1)
    conversation = Talk(Settings("http://x:1", server="torchserve")).explain(b"x", Options(), 1)
    assert isinstance(next(conversation), Exchange)
    assert isinstance(conversation.throw(BUSY), Pause), "it is asked again, as any request is"
    assert isinstance(conversation.send(None), Exchange)
    with pytest.raises(StopIteration) as end:
        conversation.send(Reply(200, DRAWING))
    assert end.value.value == DRAWING


@pytest.mark.parametrize("url", ["x:1", "ftp://x:1", "http://", "grpc://x:1/path", "http://x:1?y=1", "http://x:1#y"])
def test_a_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Client(url)


@pytest.mark.parametrize("settings", [{"server": "other"}, {"timeout": 0}, {"attempts": 0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Client("http://x:1", **settings)
    with pytest.raises(ConfigError):
        Client("http://x:1", server="torchserve", shared_memory=True)


Answer = Callable[[str, bytes], Reply]
Tls = tuple[Path, Path]
"""A server's certificate and its key."""


@pytest.fixture
def http_server() -> Iterator[Callable[..., str]]:
    servers: list[ThreadingHTTPServer] = []

    def serve(answer: Answer, tls: Tls | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                reply = answer(self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(reply.body)))
                if reply.message:
                    self.send_header("Location", reply.message)
                self.end_headers()
                self.wfile.write(reply.body)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def grpc_server() -> Iterator[Callable[..., str]]:
    servers: list[Any] = []

    def serve(answer: Answer, tls: Tls | None = None) -> str:
        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc,name-defined]
            def service(self, details: Any) -> Any:
                def respond(body: bytes, context: Any) -> bytes:
                    reply = answer(details.method, body)
                    if reply.status != 200:
                        context.abort(getattr(grpc.StatusCode, reply.message), reply.body.decode())
                    return reply.body

                return grpc.unary_unary_rpc_method_handler(respond)

        server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Handler()])
        if tls:
            proof = grpc.ssl_server_credentials([(tls[1].read_bytes(), tls[0].read_bytes())])
            port = server.add_secure_port("127.0.0.1:0", proof)
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"grpc{'s' if tls else ''}://127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.stop(0).wait()


def classify_both_ways(url: str, timeout: float = 20, **settings: Any) -> list[Result | ClientError]:
    """The result or error of the blocking client and of the asyncio client."""

    async def ask() -> Result:
        async with AsyncClient(url, **settings) as client:
            return await client.classify(b"x", timeout=timeout)

    def ask_blocking() -> Result:
        with Client(url, **settings) as client:
            return client.classify(b"x", timeout=timeout)

    ended: list[Result | ClientError] = []
    for way in (ask_blocking, lambda: asyncio.run(ask())):
        try:
            ended.append(way())
        except ClientError as error:
            ended.append(error)
    return ended


@pytest.mark.parametrize("status", [500, 507])
def test_a_request_that_went_down_with_its_worker_may_be_sent_again(status: int) -> None:
    with pytest.raises(ServerUnavailableError, match="Worker died"):
        TorchServeHttp("m", None).read(Reply(status, b'{"message": "Worker died."}'), 1)
    with pytest.raises(ServerUnavailableError, match="Worker died"):
        TorchServeGrpc("m", None).read(Reply(500, b"", "INTERNAL: Worker died."), 1)


def test_both_clients_over_http(http_server: Callable[[Answer], str]) -> None:
    tries: list[str] = []

    def answer(path: str, _: bytes) -> Reply:
        tries.append(path)
        return Reply(503, b"busy") if len(tries) % 2 else answers(CLOCK)

    assert classify_both_ways(http_server(answer)) == [CLOCK, CLOCK]
    assert len(tries) == 4
    slow = http_server(lambda *_: time.sleep(1) or answers(CLOCK))
    for error in classify_both_ways(slow, timeout=0.2):
        assert isinstance(error, DeadlineExceededError)
    assert detect_server(http_server(lambda *_: Reply(404, b""))) == "torchserve"


def test_both_clients_over_grpc(grpc_server: Callable[[Answer], str]) -> None:
    tries: list[str] = []
    response = service_pb2.ModelInferResponse(raw_output_contents=[serialize([json.dumps(wire(CLOCK)).encode()])])

    def answer(method: str, _: bytes) -> Reply:
        tries.append(method)
        return Reply(503, b"busy", "UNAVAILABLE") if len(tries) % 2 else Reply(200, response.SerializeToString())

    assert classify_both_ways(grpc_server(answer)) == [CLOCK, CLOCK]
    bad = grpc_server(lambda *_: Reply(400, b"in ensemble 'x', empty: no bytes", "INVALID_ARGUMENT"))
    assert classify_both_ways(bad) == [Failure("empty", "no bytes")] * 2
    slow = grpc_server(lambda *_: time.sleep(1) or Reply(200, response.SerializeToString()))
    for error in classify_both_ways(slow, timeout=0.2):
        assert isinstance(error, DeadlineExceededError)
    assert detect_server(grpc_server(lambda *_: Reply(501, b"", "UNIMPLEMENTED"))) == "torchserve"


def test_both_clients_in_tls(
    http_server: Callable[..., str], grpc_server: Callable[..., str], certificate: Tls
) -> None:
    response = service_pb2.ModelInferResponse(raw_output_contents=[serialize([json.dumps(wire(CLOCK)).encode()])])
    over_http = http_server(lambda *_: answers(CLOCK), certificate)
    over_grpc = grpc_server(lambda *_: Reply(200, response.SerializeToString()), certificate)
    in_the_clear = http_server(lambda *_: answers(CLOCK)).replace("http:", "https:")
    for url in (over_http, over_grpc):
        assert classify_both_ways(url, ca=certificate[0]) == [CLOCK, CLOCK]
        assert detect_server(url, ca=certificate[0]) == "triton"
    for url, ca in ((over_http, None), (over_grpc, None), (in_the_clear, certificate[0])):
        assert [type(error) for error in classify_both_ways(url, ca=ca)] == [TlsError, TlsError]


def test_what_vouches_for_a_server_must_be_certificates(tmp_path: Path, certificate: Tls) -> None:
    (tmp_path / "junk.pem").write_bytes(b"\xff certificates\n")
    for ca in (tmp_path / "junk.pem", tmp_path / "none.pem", tmp_path, certificate[1]):
        with pytest.raises(ConfigError, match=ca.name):
            Client("https://x:1", ca=ca)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there(scheme: str) -> None:
    for error in classify_both_ways(f"{scheme}://127.0.0.1:9", attempts=2):
        assert isinstance(error, ServerUnavailableError)
    with Client(f"{scheme}://127.0.0.1:9", attempts=1) as client:
        assert not client.healthy(timeout=2)


def test_nobody_is_sent_elsewhere(http_server: Callable[..., str]) -> None:
    asked: list[str] = []
    elsewhere = http_server(lambda path, _: asked.append(path) or answers(CLOCK))
    url = http_server(lambda *_: Reply(307, b"", f"{elsewhere}/v2"))
    assert [type(error) for error in classify_both_ways(url)] == [BadAnswerError, BadAnswerError]
    assert not asked


def test_a_server_may_lie_below_a_path_of_a_proxy(http_server: Callable[..., str]) -> None:
    def answer(path: str, _: bytes) -> Reply:
        return answers(CLOCK) if path == "/pictures/v2/models/afd_classify/infer" else Reply(404, b"{}")

    url = http_server(answer)
    assert classify_both_ways(f"{url}/pictures/") == [CLOCK, CLOCK]
    assert all(isinstance(error, RequestRefusedError) for error in classify_both_ways(url))


def test_a_call_without_a_body_is_a_get(http_server: Callable[[Answer], str]) -> None:
    assert Call("/v2").body == b""
    assert detect_server(http_server(lambda path, _: Reply(200 if path == "/v2" else 404, b""))) == "triton"
