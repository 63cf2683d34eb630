"""A real nginx in front of real servers, set up as deploy/ shows it."""

import json
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path
from typing import Protocol

import pytest

from afd_serve.pipeline import Pipeline
from afd_serve.servers.processes import free_ports
from afd_serve.servers.torchserve import TorchServe
from afd_serve.servers.triton import Triton
from tests.serving.pictures import BAD, GOOD

pytest.importorskip("tritonclient.grpc")

from afd_serve.client import Client, Mode, Options, detect_server
from afd_serve.errors import RequestRefusedError, ServerUnavailableError

pytestmark = pytest.mark.serving

FOLDER = Path(__file__).parents[2] / "deploy"
KEY = "89abcdef" * 8  # as long as `openssl rand -hex 32` makes it
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


_BLOCK = re.compile(r"\n( *)(?:upstream|location) [^{}]*\{[^{}]*\n\1\}\n")


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

    def asked(method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        encrypted = ssl.create_default_context(cafile=str(ca))
        with closing(HTTPSConnection("127.0.0.1", nginx.port, context=encrypted, timeout=60)) as connection:
            own = {"Authorization": f"Bearer {KEY}", "Content-Type": "image/jpeg"}
            connection.request(method, path, body, own | headers)
            response = connection.getresponse()
            return response.status, response.read()

    for name in ("top_k", "top-k"):
        status, answer = asked("POST", "/predictions/afd", GOOD["sample"], **{name: "2"})
        assert (status, len(json.loads(answer)["predictions"])) == (200, 2)
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl says of all bytes
    assert asked("POST", "/predictions/afd", GOOD["sample"], **form)[0] == 200
    for method, path in (("GET", "/ping"), ("GET", "/models"), ("OPTIONS", "/"), ("GET", "/predictions/../models")):
        assert asked(method, path)[0] == 404
    assert asked("POST", "/predictions/afd", bytes((32 << 20) + 1))[0] == 413


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
    assert not (tmp_path / "token.conf").exists()
