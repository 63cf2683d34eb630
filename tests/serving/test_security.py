"""Attacks on a real TorchServe over the network; docs/security.md says what each one stands for."""

import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.sample import sample_picture
from afd_serve.servers import torchserve
from afd_serve.servers.folders import make_state_dir
from afd_serve.servers.http import Answer, ask
from afd_serve.servers.processes import read_log
from afd_serve.servers.torchserve import TorchServe
from tests.serving.protobuf import field

pytestmark = pytest.mark.serving

SPECIFICATION = """
models:
  min-workers: 1
  max-workers: 1
dag:
  first: [second]
"""


def make_workflow(path: Path, marker: Path) -> None:
    """A workflow's archive with code that makes a file as soon as it is loaded."""
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    code += "def first(data, context):\n    return data\n\n\ndef second(data, context):\n    return data\n"
    workflow = {"workflowName": path.stem, "specFile": "spec.yaml", "handler": "code.py"}
    manifest = {"createdOn": "now", "runtime": "python", "workflow": workflow, "archiverVersion": "0.2.15"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("WAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("code.py", code)
        archive.writestr("spec.yaml", SPECIFICATION)


@pytest.fixture(scope="module")
def lair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attacker's folder."""
    return tmp_path_factory.mktemp("lair")


@pytest.fixture(scope="module")
def small(tiny_run: Path, lair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A server of the tiny classifier, in whose workflow store an archive lay before it was started."""
    state = tmp_path_factory.mktemp("small")
    make_state_dir(state)
    (state / "workflow_store").mkdir()
    make_workflow(state / "workflow_store" / "planted.war", lair / "executed")
    archive = package_torchserve(tiny_run, tmp_path_factory.mktemp("store"))
    running = torchserve.start(archive, state, probe=sample_picture(), ports=torchserve.Ports.free(), workers=1)
    yield running
    TorchServe.stop(state)


@pytest.fixture(scope="module")
def elsewhere(lair: Path) -> Iterator[str]:
    """The attacker's folder as a web site on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(lair))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def send(server: TorchServe, kind: str, method: str, path: str, token: str | None) -> Answer:
    headers = {"Content-Type": "application/octet-stream"} | ({"Authorization": f"Bearer {token}"} if token else {})
    url = f"http://127.0.0.1:{getattr(server.ports, kind)}{path}"
    body = sample_picture() if method == "POST" and kind == "inference" else b""
    return ask(urllib.request.Request(url, data=body, method=method, headers=headers), 30)


@pytest.mark.parametrize("credential", [None, "wrong", "of the other address"])
@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        ("inference", "POST", "/predictions/afd"),
        ("inference", "POST", "/explanations/afd"),
        ("inference", "POST", "/invocations"),
        ("inference", "POST", "/v1/models/afd:predict"),
        ("inference", "GET", "/ping"),
        ("management", "GET", "/models"),
        ("management", "GET", "/models/afd?customized=true"),
        ("management", "PUT", "/models/afd?min_worker=0"),
        ("management", "DELETE", "/models/afd"),
        ("management", "POST", "/models?url=afd.mar"),
        ("management", "POST", "/workflows?url=planted.war"),
    ],
)
def test_nothing_is_done_without_the_right_token(
    small: TorchServe, kind: str, method: str, path: str, credential: str | None
) -> None:
    other = small.token("inference" if kind == "management" else "management")
    answer = send(small, kind, method, path, other if credential == "of the other address" else credential)
    assert answer.status == 400
    assert answer.json()["type"] == "InvalidKeyException"
    assert len(small.workers()) == 1


@pytest.mark.parametrize("url", ["{web}/evil.mar", "file://{lair}/evil.mar", "{lair}/evil.mar", "../../evil.mar"])
def test_no_model_is_registered_from_elsewhere(small: TorchServe, lair: Path, elsewhere: str, url: str) -> None:
    shutil.copyfile(small.state_dir / "model_store" / "afd.mar", lair / "evil.mar")
    path = f"/models?initial_workers=1&url={url.format(web=elsewhere, lair=lair)}"
    assert send(small, "management", "POST", path, small.token("management")).status == 405
    assert [model["modelName"] for model in small.get("management", "/models").json()["models"]] == ["afd"]


def test_no_model_is_registered_or_removed_over_grpc(small: TorchServe, elsewhere: str) -> None:
    grpc = pytest.importorskip("grpc")
    target = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"
    # RegisterModelRequest: model_name = 5, url = 9. UnregisterModelRequest: model_name = 1.
    calls = [("RegisterModel", field(5, b"evil") + field(9, url.encode())) for url in (f"{elsewhere}/e.mar", "afd.mar")]
    with grpc.insecure_channel(f"127.0.0.1:{small.ports.grpc_management}") as channel:
        for method, body in [*calls, ("UnregisterModel", field(1, b"afd"))]:
            for token in (small.token("management"), "wrong"):
                metadata = (("authorization", f"Bearer {token}"),)
                with pytest.raises(grpc.RpcError) as refusal:
                    channel.unary_unary(target + method)(body, metadata=metadata, timeout=30)
                assert refusal.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    assert [model["modelName"] for model in small.get("management", "/models").json()["models"]] == ["afd"]


@pytest.mark.parametrize(
    "url", ["{web}/evil.war", "file://{lair}/evil.war", "{lair}/evil.war", "../../evil.war", "planted.war"]
)
def test_no_workflow_brings_code_in(small: TorchServe, lair: Path, elsewhere: str, url: str) -> None:
    make_workflow(lair / "evil.war", lair / "executed")
    path = f"/workflows?url={url.format(web=elsewhere, lair=lair)}"
    answer = send(small, "management", "POST", path, small.token("management"))
    assert (answer.status, answer.json()["type"]) == (404, "WorkflowNotFoundException")
    assert not (lair / "executed").exists()
    assert small.get("management", "/workflows").json()["workflows"] == []


FORGED = "[METRICS]afd_pictures_total.Count:777|#ModelName:forged|#type:COUNTER"


def forgeries() -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Requests that carry a line of a log: method, path, headers and body."""
    binary = {"Content-Type": "application/octet-stream"}
    escaped = urllib.request.quote(f"\r\n{FORGED}\r\n", safe="")
    for route in ("predictions", "explanations", "wfpredict"):
        yield "POST", f"/{route}/{escaped}", binary, sample_picture()
    yield "POST", f"/predictions/afd/{escaped}", binary, sample_picture()
    yield "POST", f"/predictions/afd?model_name={escaped}", binary, sample_picture()
    yield "POST", "/predictions/afd", binary | {"top_k": FORGED, "afd": FORGED, "X-Request-Id": FORGED}, b"no picture"
    yield "POST", "/explanations/afd", binary | {"Accept": FORGED, "format": FORGED}, sample_picture()
    yield "POST", "/predictions/afd", binary, f'{{"b64": "\n{FORGED}\n", "top_k": "\n{FORGED}\n"}}'.encode()
    yield "POST", "/predictions/afd", binary, f"{{\n{FORGED}\n".encode()
    yield "POST", "/predictions/afd", {"Content-Type": f"image/{FORGED}"}, f"\n{FORGED}\n".encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    yield "POST", "/predictions/afd", form, f"%zz=\n{FORGED}\n".encode()
    for line in ("\\r\\n", "\n"):
        part = f'--B\r\nContent-Disposition: form-data; name="{line}{FORGED}"; filename="{line}{FORGED}.jpg"\r\n\r\n'
        multipart = {"Content-Type": "multipart/form-data; boundary=B"}
        yield "POST", "/predictions/afd", multipart, part.encode() + sample_picture()[:900] + b"\r\n--B--\r\n"


CONTROLS = b"\x1b[2J\x7f\x85\x9b31m"
"""What ends a line for some readers of a log, or commands a terminal, and may stand in a path."""

LINE_ENDS = (b"", b"\n", b"\r", b"\r\n", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", CONTROLS)


def test_what_ends_a_line_or_commands_a_terminal_comes_into_no_log(small: TorchServe) -> None:
    for port in astuple(small.ports):
        for end in LINE_ENDS:
            request = b"GET /ping" + end + b"[METRICS]" + CONTROLS + b" HTTP/1.1\r\n\r\n"
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request)
                with suppress(OSError):  # some are answered, and some are reset
                    connection.recv(1)
    with socket.create_connection(("127.0.0.1", small.ports.inference), timeout=5) as connection:
        connection.sendall(b"GET /last" + CONTROLS + b" HTTP/1.1\r\n\r\n")
        connection.recv(1)
    deadline = time.monotonic() + 20
    while "/last?" not in read_log(small.state_dir, "access_log.log"):
        assert time.monotonic() < deadline, "its controls are not replaced, or it is not there"
        time.sleep(0.1)
    for log in (small.state_dir / "logs").iterdir():
        text = log.read_bytes().decode(errors="replace")
        assert not {character for character in text if not character.isprintable()} - {"\n", "\t", "\ufffd"}, log.name
        assert not any(line.startswith("[METRICS]") for line in text.splitlines()), log.name


def test_no_line_of_a_log_and_no_metric_can_be_forged(small: TorchServe) -> None:
    for method, path, headers, body in forgeries():
        url = f"http://127.0.0.1:{small.ports.inference}{path}"
        own = {"Authorization": f"Bearer {small.token()}"}
        ask(urllib.request.Request(url, data=body, method=method, headers=own | headers), 30)
    assert small.post(sample_picture(), {"X-Request-Id": "last"}).status == 200
    deadline = time.monotonic() + 20
    while read_log(small.state_dir, "access_log.log").count("POST") < len(list(forgeries())):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)  # workers' lines take a moment longer
    for log in (small.state_dir / "logs").iterdir():
        for line in log.read_text(errors="replace").splitlines():
            assert "ModelName:forged" not in line or "%0D%0A" in line, (log.name, line)
    metrics = small.get("metrics", "/metrics").body.decode()
    assert "afd_pictures_total" in metrics
    assert "forged" not in metrics
