"""A real nginx in front of real servers, set up as deploy/ shows it."""

import gzip
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from afd_serve.pipeline import Pipeline
from afd_serve.servers.ports import free_ports
from afd_serve.servers.torchserve import TorchServe
from afd_serve.servers.triton import Triton
from tests.serving.frames import Header, call
from tests.serving.pictures import BAD, GOOD
from tests.serving.protobuf import field

pytest.importorskip("tritonclient.grpc")

import grpc

from afd_serve.client import Client, Mode, Options, detect_server
from afd_serve.errors import RequestRefusedError, ServerUnavailableError

pytestmark = pytest.mark.serving

FOLDER = Path(__file__).parents[2] / "deploy"
KEY = "89abcdef" * 8  # as long as `openssl rand -hex 32` makes it
BYTES = ("Content-Type", "application/octet-stream")
PICTURES = [GOOD["sample"], BAD["truncated"], GOOD["png"]]

_MAIN = """
daemon off;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    {temporary}
    include site.conf;
}}
"""


_BLOCK = re.compile(r"\n( *)(?:upstream|location) .*\{\n(?:\1 +.*\n)*\1\}\n")


def write_token(server: TorchServe, folder: Path) -> None:
    subprocess.run([FOLDER / "pass-token.sh", server.state_dir, folder / "token.conf"], check=True)


class Nginx:
    """A process of nginx, at a port of this machine."""

    def __init__(self, program: str, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"]
        self.process = subprocess.Popen(self._command)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while not (self.folder / "nginx.pid").exists():
            assert self.process.poll() is None, (self.folder / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def pass_token(self, server: TorchServe) -> None:
        """What the service does after each start of TorchServe, and a reload, which takes a moment."""
        write_token(server, self.folder)
        subprocess.run([*self._command, "-s", "reload"], check=True)

    def asked(
        self, ca: Path, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()
    ) -> tuple[int, bytes]:
        """Status and body of what an HTTP client with a key gets for this very path, with these headers in order."""
        encrypted = ssl.create_default_context(cafile=str(ca))
        with closing(HTTPSConnection("127.0.0.1", self.port, context=encrypted, timeout=60)) as connection:
            connection.putrequest(method, path)
            own = [("Authorization", f"Bearer {KEY}"), ("Content-Length", str(len(body)))]
            for header in (*own, *headers):
                connection.putheader(*header)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.read()

    def called(self, ca: Path, path: str, message: bytes, headers: Sequence[Header] = ()) -> list[bytes]:
        """What a gRPC client with a key gets."""
        encrypted = ssl.create_default_context(cafile=str(ca))
        encrypted.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection,
            encrypted.wrap_socket(connection, server_hostname="127.0.0.1") as speaking,
        ):
            return call(speaking, path, message, [(b"authorization", f"Bearer {KEY}".encode()), *headers])

    def client(self, ca: Path, key: str = KEY, scheme: str = "https") -> Client:
        url = f"{scheme}://127.0.0.1:{self.port}"
        return Client(url, server=detect_server(url, ca=ca, token=KEY), token=key, ca=ca)


class StartNginx(Protocol):
    """Starts nginx in front of a ``torchserve`` or a ``triton``, without what is for the other one."""

    def __call__(self, kind: str, http: int, grpc: int, rate: str = "100r/s", burst: int = 100) -> Nginx:
        """The server's two ports, and how often a client may ask. A token that has been written is used."""


@pytest.fixture
def start_nginx(certificate: tuple[Path, Path], tmp_path: Path) -> Iterator[StartNginx]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not on PATH; `make test` unpacks Debian's package where it can be had")
    (port,) = free_ports(1)
    started: list[Nginx] = []

    def start(kind: str, http: int, grpc: int, rate: str = "100r/s", burst: int = 100) -> Nginx:
        other = {"torchserve": "afd_triton", "triton": "afd_torchserve"}[kind]
        site = (FOLDER / "nginx.conf").read_text()
        site = _BLOCK.sub(lambda block: "\n" if other in block[0] else block[0], site)
        assert other not in site
        for written, ours in (
            ("127.0.0.1:80[08]0", f"127.0.0.1:{http}"),
            ("127.0.0.1:(7070|8001)", f"127.0.0.1:{grpc}"),
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("rate=100r/s", f"rate={rate}"),
            ("burst=100", f"burst={burst}"),
            ("/etc/nginx/afd-certificate.pem", str(certificate[0])),
            ("/etc/nginx/afd-key.pem", str(certificate[1])),
            ("include /etc/nginx/afd-keys.conf", "include keys.conf"),
        ):
            site, found = re.subn(written, ours, site)
            assert found == 1, written
        site = site.replace("include /etc/nginx/afd-token.conf", "include token.conf")  # for TorchServe alone
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {kind};" for kind in kinds)
        user = "user root;" if os.geteuid() == 0 else ""
        (tmp_path / "nginx.conf").write_text(user + _MAIN.format(temporary=temporary))
        (tmp_path / "site.conf").write_text(site)
        (tmp_path / "keys.conf").write_text(f'"Bearer {KEY}" tests;\n"Bearer {KEY}2" others;\n')
        if not (tmp_path / "token.conf").exists():
            (tmp_path / "token.conf").write_text('proxy_set_header Authorization "Bearer old";\n')
        started.append(Nginx(program, tmp_path, port))
        return started[0]

    yield start
    for nginx in started:
        nginx.process.terminate()
        nginx.process.wait()


def test_clients_with_a_key_get_the_answers_of_torchserve(
    server: TorchServe,
    pipeline: Pipeline,
    start_nginx: StartNginx,
    certificate: tuple[Path, Path],
) -> None:
    ca, nginx = certificate[0], start_nginx("torchserve", server.ports.inference, server.ports.grpc_inference)
    with nginx.client(ca) as client, pytest.raises(RequestRefusedError, match="Token Authorization failed"):
        client.classify(GOOD["sample"])
    nginx.pass_token(server)
    deadline = time.monotonic() + 20
    with nginx.client(ca) as client:
        while not client.healthy():
            assert time.monotonic() < deadline
        assert client.classify_many(PICTURES) == pipeline.predict(PICTURES)
        assert (
            client.classify(GOOD["sample"], Options(Mode.OFF, top_k=3))
            == pipeline.predict([GOOD["sample"]], afd=Mode.OFF, top_k=3)[0]
        )
        assert client.explain(GOOD["sample"]) != b""
    with nginx.client(ca, scheme="grpcs") as client:
        assert client.classify_many(PICTURES) == pipeline.predict(PICTURES)
    for scheme in ("https", "grpcs"):
        for wrong in (server.token(), "", KEY + "x"):
            with nginx.client(ca, wrong, scheme) as client, pytest.raises(RequestRefusedError, match="401"):
                client.classify(GOOD["sample"])
    for name in ("top_k", "top-k"):
        for method in ("POST", "PUT"):  # curl -T
            status, answer = nginx.asked(ca, method, "/predictions/afd", GOOD["sample"], [BYTES, (name, "2")])
            assert (status, len(json.loads(answer)["predictions"])) == (200, 2)
    form = [("Content-Type", "application/x-www-form-urlencoded")]  # as curl says of all bytes
    assert nginx.asked(ca, "POST", "/predictions/afd", GOOD["sample"], form)[0] == 200
    assert nginx.asked(ca, "POST", "/predictions/afd", bytes((32 << 20) + 1), [BYTES])[0] == 413


@pytest.fixture
def torchserve_proxy(server: TorchServe, start_nginx: StartNginx, tmp_path: Path) -> Nginx:
    write_token(server, tmp_path)
    return start_nginx("torchserve", server.ports.inference, server.ports.grpc_inference)


def test_of_torchserve_clients_reach_what_classifies_and_nothing_else(
    torchserve_proxy: Nginx, certificate: tuple[Path, Path]
) -> None:
    ca = certificate[0]

    def asked(method: str, path: str) -> tuple[int, bytes]:
        return torchserve_proxy.asked(ca, method, path, GOOD["sample"] if method == "POST" else b"", [BYTES])

    for path in ("/ping", "/models", "/", "/predictions/../models", "/predictions/afd/1.0", "/predictions/.."):
        assert {asked(method, path)[0] for method in ("GET", "POST", "OPTIONS")} == {404}
    paths = ("/predictions/afd", "/explanations/afd", "/ping/../predictions/afd")
    for method in ("GET", "OPTIONS", "DELETE", "PATCH"):
        assert {asked(method, path)[0] for path in paths} == {403}
    # TorchServe reads the path as it comes, in which these are other routes of its own.
    for other in ("/ping/..", "/wfpredict/evil/../..", "/wfpredict/evil/%2e%2e/%2E%2E", "/api-description/x/../.."):
        status, answer = asked("POST", f"{other}/predictions/afd")
        assert status == 200, other
        assert json.loads(answer)["model"]["name"] == "afd", other


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_clients_with_a_key_get_the_answers_of_triton(
    scheme: str,
    triton_server: Triton,
    pipeline: Pipeline,
    start_nginx: StartNginx,
    certificate: tuple[Path, Path],
) -> None:
    ca, nginx = certificate[0], start_nginx("triton", triton_server.ports.http, triton_server.ports.grpc)
    with nginx.client(ca, scheme=scheme) as client:
        client.probe(timeout=30)
        assert client.classify_many(PICTURES, Options(top_k=3)) == pipeline.predict(PICTURES, top_k=3)
        bulky = [GOOD["sample"] + bytes(12 << 20)] * 4  # more than passes at once; what follows a picture is skipped
        assert client.classify_many(bulky, timeout=60) == pipeline.predict([GOOD["sample"]]) * 4
        with pytest.raises(RequestRefusedError, match="413"):
            client.classify(GOOD["sample"] + bytes(32 << 20))
    with nginx.client(ca, "another", scheme) as client, pytest.raises(RequestRefusedError, match="401"):
        client.classify(GOOD["sample"])


@pytest.fixture
def triton_proxy(triton_server: Triton, start_nginx: StartNginx) -> Nginx:
    return start_nginx("triton", triton_server.ports.http, triton_server.ports.grpc)


INFER = "/v2/models/afd_classify/infer"
ALL_BYTES = ("Inference-Header-Content-Length", "0")


def test_of_triton_clients_reach_what_classifies_and_nothing_else(
    triton_proxy: Nginx, certificate: tuple[Path, Path]
) -> None:
    ca = certificate[0]
    for path in ("/v2/", "/v2/health/ready", "/v2/models/afd_classify", "/v2/repository/index", f"{INFER}/"):
        assert {triton_proxy.asked(ca, method, path)[0] for method in ("GET", "POST", "OPTIONS")} == {404}
    for method, path in (("POST", "/v2"), ("OPTIONS", "/v2"), ("GET", INFER), ("OPTIONS", INFER)):
        assert triton_proxy.asked(ca, method, path)[0] == 403
    assert triton_proxy.asked(ca, "GET", "/v2/logging/../../v2")[1] == triton_proxy.asked(ca, "GET", "/v2")[1] != b""
    detour = "/v2/repository/index/../../models/afd_classify/infer"
    assert triton_proxy.asked(ca, "POST", detour, GOOD["sample"], [BYTES, ALL_BYTES])[0] == 200
    service = "/inference.GRPCInferenceService"
    assert triton_proxy.called(ca, f"{service}/ServerMetadata", bytes(5))
    for method in ("RepositoryIndex", "ServerMetadata/../RepositoryIndex", "RepositoryIndex/../ServerMetadata"):
        answered = b"".join(triton_proxy.called(ca, f"{service}/{method}", bytes(5)))
        assert not answered or answered.startswith(b"<html>"), "nginx answers pages, Triton messages"


HIDING = ([], [("Content_Encoding", "")], [("Content_Encoding", "identity")], [("Content-Encoding", "identity")])
"""Headers that come before the one that they hide from nginx, whose variable is the same for all."""


@pytest.mark.parametrize("before", HIDING, ids=str)
def test_nothing_behind_the_proxy_inflates_a_body(
    triton_proxy: Nginx, certificate: tuple[Path, Path], before: list[tuple[str, str]]
) -> None:
    """A thousandth of what a picture may have could otherwise fill the memory of the server."""
    ca, plain = certificate[0], [BYTES, ALL_BYTES]
    assert triton_proxy.asked(ca, "POST", INFER, GOOD["sample"], plain)[0] == 200
    for kind in ("gzip", "deflate"):
        body = gzip.compress(GOOD["sample"]) if kind == "gzip" else zlib.compress(GOOD["sample"])
        headers = [*plain, *before, ("Content-Encoding", kind)]
        status, answer = triton_proxy.asked(ca, "POST", INFER, body, headers)
        assert status == 415 or (before and status == 400 and b"not_an_image" in answer)


@pytest.mark.parametrize("before", [[], [(b"grpc_encoding", b"")], [(b"grpc_encoding", b"identity")]], ids=str)
def test_nothing_behind_the_proxy_inflates_a_message(
    triton_proxy: Nginx, certificate: tuple[Path, Path], before: list[Header]
) -> None:
    ca, picture = certificate[0], GOOD["sample"]
    # ModelInferRequest: model_name = 1, inputs = 5 (name = 1, datatype = 2, shape = 3), raw_input_contents = 7.
    described = field(1, b"picture") + field(2, b"BYTES") + field(3, bytes([1, 1]))
    raw = len(picture).to_bytes(4, "little") + picture
    message = field(1, b"afd_classify") + field(5, described) + field(7, raw)

    def answered(body: bytes, headers: list[Header], *, compressed: bool) -> bytes:
        prefix = bytes([compressed]) + len(body).to_bytes(4, "big")
        path = "/inference.GRPCInferenceService/ModelInfer"
        return b"".join(triton_proxy.called(ca, path, prefix + body, headers))

    assert b"wall clock" in answered(message, before, compressed=False)
    for kind, body in ((b"gzip", gzip.compress(message)), (b"deflate", zlib.compress(message))):
        assert b"wall clock" not in answered(body, [*before, (b"grpc-encoding", kind)], compressed=True)


def test_a_grpc_client_that_compresses_is_told_why_not(triton_proxy: Nginx, certificate: tuple[Path, Path]) -> None:
    credentials: Any = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{triton_proxy.port}", credentials) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        metadata = (("authorization", f"Bearer {KEY}"),)
        with pytest.raises(grpc.RpcError, match="415"):
            infer(bytes(100), metadata=metadata, compression=grpc.Compression.Gzip, timeout=60)


NESTED = b'{"id":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
LENGTH = "Inference-Header-Content-Length"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(LENGTH, str(len(NESTED)))],
        [(LENGTH, "0"), (LENGTH, str(len(NESTED)))],
        [(LENGTH, ""), (LENGTH, str(len(NESTED)))],
        [(LENGTH.replace("-", "_"), "0"), (LENGTH, str(len(NESTED)))],
        [(LENGTH.replace("-", "_"), ""), (LENGTH, str(len(NESTED)))],
        [(LENGTH, f"+{len(NESTED)}")],
    ],
    ids=str,
)
def test_no_nested_json_ends_triton(
    triton_server: Triton, triton_proxy: Nginx, certificate: tuple[Path, Path], headers: list[tuple[str, str]]
) -> None:
    before = psutil.Process(triton_server.pid).children()
    status, answer = triton_proxy.asked(certificate[0], "POST", INFER, NESTED, [BYTES, *headers])
    assert status == 413 or (status == 400 and b"not_an_image" in answer)  # the header that counts says: no JSON
    assert psutil.Process(triton_server.pid).children() == before
    with triton_proxy.client(certificate[0]) as client:
        client.classify(GOOD["sample"])


def test_json_that_is_short_may_be_all_of_a_body(triton_proxy: Nginx, certificate: tuple[Path, Path]) -> None:
    def asked(size: int) -> tuple[int, bytes]:
        said = {"name": "picture", "shape": [1, 1], "datatype": "BYTES", "data": ["no picture"]}
        return triton_proxy.asked(certificate[0], "POST", INFER, json.dumps({"inputs": [said]}).ljust(size).encode())

    assert asked(9_999)[0] == 400
    assert b"not_an_image" in asked(9_999)[1]
    assert asked(10_000)[0] == 413


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_client_that_asks_too_often_is_told_so_and_others_are_not(
    scheme: str, server: TorchServe, start_nginx: StartNginx, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    write_token(server, tmp_path)
    ports = server.ports
    ca, nginx = certificate[0], start_nginx("torchserve", ports.inference, ports.grpc_inference, "1r/m", burst=3)
    url = f"{scheme}://127.0.0.1:{nginx.port}"
    with Client(url, server="torchserve", token=KEY, ca=ca, attempts=1) as client:
        for _ in range(4):
            client.classify(GOOD["sample"])
        with pytest.raises(ServerUnavailableError, match="429"):
            client.classify(GOOD["sample"])
    with Client(url, server="torchserve", token=KEY + "2", ca=ca) as client:
        client.classify(GOOD["sample"])


def test_a_token_that_is_none_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "inference.header").write_text('Authorization: Bearer x"; load_module evil.so; #\n')
    command = [FOLDER / "pass-token.sh", tmp_path, tmp_path / "token.conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"{tmp_path}/inference.header holds no token\n")
    (tmp_path / "inference.header").unlink()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert list(tmp_path.iterdir()) == []
