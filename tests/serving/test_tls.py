"""The client and a real TorchServe in TLS, with the settings of docs/security.md."""

import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from afd_serve.errors import ClientError, ServerUnavailableError, TlsError
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.results import Prediction
from afd_serve.sample import sample_picture
from afd_serve.servers.http import ask
from afd_serve.servers.java import find_java
from afd_serve.servers.launch import launch, short_temporary_folder, store_archive, write_settings
from afd_serve.servers.ports import Ports
from afd_serve.servers.processes import end, read_log

pytest.importorskip("tritonclient.grpc")

from afd_serve.client import Client

pytestmark = pytest.mark.serving


@pytest.fixture
def encrypted(certificate: tuple[Path, Path], tiny_run: Path, tmp_path: Path) -> Iterator[tuple[Path, Ports]]:
    """A server with the settings that docs/security.md gives for TLS: its state folder and its ports."""
    state, ports = tmp_path / "state", Ports.free()
    for name in ("workflow_store", "logs"):
        (state / name).mkdir(parents=True)
    archive = package_torchserve(tiny_run, tmp_path)
    store_archive(archive, state, sealed=True)
    write_settings(state, ports, workers=1)
    settings = (state / "config.properties").read_text().replace("_address=http:", "_address=https:")
    settings += f"certificate_file={certificate[0]}\nprivate_key_file={certificate[1]}\nenable_grpc_ssl=true\n"
    (state / "config.properties").write_text(settings)
    with tempfile.TemporaryDirectory(prefix="afd-ts-", dir=short_temporary_folder()) as scratch:
        pid = launch(archive, state, Path(scratch), find_java().path)
        try:
            yield state, ports
        finally:
            end(pid, 30)


def test_tls_lets_in_only_those_who_speak_it(encrypted: tuple[Path, Ports], certificate: tuple[Path, Path]) -> None:
    state, ports = encrypted
    url, deadline, answer = f"https://127.0.0.1:{ports.inference}", time.monotonic() + 120, None
    while not isinstance(answer, Prediction):
        assert time.monotonic() < deadline, read_log(state)
        with suppress(OSError, ValueError, ClientError):  # not ready yet: no key, or no answer
            token = json.loads((state / "key_file.json").read_text())["inference"]["key"]
            with Client(url, server="torchserve", token=token, ca=certificate[0]) as client:
                answer = client.classify(sample_picture(), timeout=10)
        time.sleep(0.2)
    with Client(url, server="torchserve", token=token) as client, pytest.raises(TlsError, match="self-signed"):
        client.classify(sample_picture())
    over_grpc = f"grpcs://127.0.0.1:{ports.grpc_inference}"
    with Client(over_grpc, server="torchserve", token=token, ca=certificate[0]) as client:
        assert client.classify(sample_picture()) == answer
    for port in (ports.grpc_inference, ports.grpc_management):
        client = Client(f"grpc://127.0.0.1:{port}", server="torchserve", token=token, attempts=1)
        with client, pytest.raises(ServerUnavailableError):
            client.classify(sample_picture())
    for port in (ports.inference, ports.management, ports.metrics):
        refusal = ask(urllib.request.Request(f"http://127.0.0.1:{port}/ping"), 10)
        assert (refusal.status, "only accepts HTTPS" in refusal.body.decode()) == (403, True)
