"""Both clients over real connections, in TLS and in the clear, to servers that are busy, slow or away."""

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from afd_serve.cli import main
from afd_serve.errors import (
    BadAnswerError,
    ClientError,
    ConfigError,
    DeadlineExceededError,
    RequestRefusedError,
    ServerUnavailableError,
    TlsError,
)
from afd_serve.results import Failure

grpc = pytest.importorskip("grpc")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")

from afd_serve.client import AsyncClient, Client, detect_server  # noqa: E402
from afd_serve.client.channels import Call, Reply  # noqa: E402
from afd_serve.client.conversation import Settings, SettingsKeywords  # noqa: E402
from afd_serve.client.dialects import serialize  # noqa: E402
from tests.client_answers import CLOCK, DRAWING, Result, answers, wire  # noqa: E402
from tests.client_servers import Answer, Tls  # noqa: E402


def test_nothing_of_torch_is_needed() -> None:
    code = "import sys, afd_serve.client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "url",
    [
        *("x:1", "ftp://x:1", "http://", "grpc://x:1/path", "http://x:1?y=1", "http://x:1#y"),
        *("http://[::1", "http://x:y", "grpc://x:99999", "http://:1", "http://user@x:1"),
    ],
)
def test_a_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Client(url)


@pytest.mark.parametrize(
    "settings", [{"server": "other"}, {"timeout": 0}, {"timeout": math.nan}, {"attempts": 0}, {"token": "key\n"}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Client("http://x:1", **settings)
    with pytest.raises(ConfigError):
        Client("http://x:1", server="torchserve", shared_memory=True)
    with Client("http://x:1") as client, pytest.raises(ConfigError, match="finite"):
        client.classify(b"x", timeout=math.inf)


CONSUMER = """
from afd_serve.client import AsyncClient, Client
Client("http://x:1", server="torchserve", model=None, token="t", ca=None, timeout=1, attempts=2, shared_memory=False)
Client("http://x:1", tiemout=1)
AsyncClient("http://x:1", tiemout=1)
Client("http://x:1", server="trition")
"""


def test_a_type_checker_knows_the_keywords_of_both_clients(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "consumer.py").write_text(CONSUMER)
    options = ["--strict", "--follow-imports=silent", "--config-file=", f"--cache-dir={tmp_path}"]
    command = [sys.executable, "-m", "mypy", *options, str(tmp_path / "consumer.py")]
    sources = Path(__file__).parents[1]  # no type checker finds an editable installation
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    lines = [line.split(":")[1] for line in done.stdout.splitlines() if ": error: " in line]
    assert lines == ["4", "5", "6"], done.stdout + done.stderr


def test_the_keywords_of_both_clients_are_their_settings() -> None:
    assert get_type_hints(SettingsKeywords) | {"url": str} == get_type_hints(Settings)


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


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("server", ["triton", "torchserve"])
def test_a_token_goes_with_every_call_to_either_server(
    request: pytest.FixtureRequest, scheme: str, server: str
) -> None:
    authorized: list[str | None] = []
    serve = request.getfixturevalue(f"{scheme}_server")
    url = serve(lambda *_: Reply(400, b"no", "INVALID_ARGUMENT"), authorized=authorized)
    classify_both_ways(url, server=server, token="secret")
    assert detect_server(url, token="secret") == "torchserve"
    assert authorized == ["Bearer secret"] * 3
    classify_both_ways(url, server=server)
    assert authorized[3:] == [None] * 2


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


@pytest.mark.parametrize("status", [502, 503, 504])
def test_behind_a_proxy_a_server_that_is_away_for_a_moment_is_asked_again(
    http_server: Callable[[Answer], str], status: int
) -> None:
    tries: list[str] = []

    def answer(path: str, _: bytes) -> Reply:
        tries.append(path)
        return Reply(status, b"<html>Bad Gateway</html>") if len(tries) % 2 else answers(CLOCK)

    assert classify_both_ways(http_server(answer)) == [CLOCK, CLOCK]
    assert len(tries) == 4
    away = http_server(lambda *_: Reply(status, b"<html>Bad Gateway</html>"))
    for error in classify_both_ways(away, attempts=1):
        assert isinstance(error, ServerUnavailableError)
        assert str(error).endswith(f"({status}): Bad Gateway")


def test_what_a_proxy_says_for_a_server_is_passed_on(http_server: Callable[[Answer], str]) -> None:
    url = http_server(lambda *_: Reply(413, b"<html>\r\n<h1>Request Entity\r\nToo Large</h1></html>"))
    for error in classify_both_ways(url):
        assert isinstance(error, RequestRefusedError)
        assert str(error).endswith("413: Request Entity Too Large")


@pytest.mark.parametrize("server", ["triton", "torchserve"])
@pytest.mark.parametrize(("status", "kind"), [(413, RequestRefusedError), (302, BadAnswerError), (500, BadAnswerError)])
def test_what_a_proxy_says_for_a_server_over_grpc_counts_as_over_http(
    grpc_server: Callable[[Answer], str], server: str, status: int, kind: type[ClientError]
) -> None:
    words = f"Received http2 header with status: {status}"  # gRPC's own, which it has no code for
    for error in classify_both_ways(grpc_server(lambda *_: Reply(500, words.encode(), "UNKNOWN")), server=server):
        assert type(error) is kind
        assert str(error) == f"the server answered {status}: {words}"


def test_a_grpc_server_that_gives_no_details_is_known_by_its_code(grpc_server: Callable[[Answer], str]) -> None:
    for error in classify_both_ways(grpc_server(lambda *_: Reply(500, b"", "UNKNOWN"))):
        assert str(error) == "the server answered 500: UNKNOWN"


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


def test_a_certificate_for_another_name_is_refused(
    http_server: Callable[..., str], grpc_server: Callable[..., str], certificate: Tls
) -> None:
    for serve in (http_server, grpc_server):
        url = serve(lambda *_: answers(CLOCK), certificate).replace("127.0.0.1", "localhost")
        assert [type(error) for error in classify_both_ways(url, ca=certificate[0])] == [TlsError, TlsError]


def test_certificates_may_have_comments_in_any_language(
    http_server: Callable[..., str], certificate: Tls, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes("# Eigene Zertifikate für Prüfungen\n".encode() + certificate[0].read_bytes())
    assert classify_both_ways(http_server(lambda *_: answers(CLOCK), certificate), ca=bundle) == [CLOCK, CLOCK]


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


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_proxy_of_the_environment_is_asked(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    serve = request.getfixturevalue(f"{scheme}_server")
    for error in classify_both_ways(serve(lambda *_: Reply(400, b"it was reached", "INVALID_ARGUMENT"))):
        assert "it was reached" in str(error)


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


def test_the_command_line_asks_a_server_for_the_model_of_that_name(
    http_server: Callable[[Answer], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.jpg").write_bytes(b"x")
    drawn = {"/predictions/pets": json.dumps([wire(CLOCK)]).encode(), "/explanations/pets": DRAWING}
    torchserve = http_server(lambda path, _: Reply(200, drawn[path]) if path in drawn else Reply(404, b""))
    triton_paths = ("/v2", "/v2/models/pets/infer")
    triton = http_server(lambda path, _: answers(CLOCK) if path in triton_paths else Reply(404, b""))
    for url, more in ((torchserve, ["--explain", str(tmp_path / "heat.png")]), (triton, [])):
        with pytest.raises(SystemExit) as end:
            main(["classify", str(tmp_path / "picture.jpg"), "--server", url, "--name", "pets", *more])
        assert end.value.code in (0, None)
        assert "wall clock" in capsys.readouterr().out
    assert (tmp_path / "heat.png").read_bytes() == DRAWING


def test_the_command_line_asks_no_server_to_classify_what_it_would_not_explain(
    http_server: Callable[[Answer], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.jpg").write_bytes(b"x")
    asked: list[str] = []

    def answer(path: str, _: bytes) -> Reply:
        asked.append(path)
        return answers(CLOCK)

    picture, drawing = str(tmp_path / "picture.jpg"), str(tmp_path / "heat.png")
    with pytest.raises(SystemExit) as end:
        main(["classify", picture, "--server", http_server(answer), "--explain", drawing])
    assert end.value.code == 2
    assert "explanations are given by TorchServe" in capsys.readouterr().err
    assert asked == ["/v2"]


def test_a_call_without_a_body_is_a_get(http_server: Callable[[Answer], str]) -> None:
    assert Call("/v2").body == b""
    assert detect_server(http_server(lambda path, _: Reply(200 if path == "/v2" else 404, b""))) == "triton"
