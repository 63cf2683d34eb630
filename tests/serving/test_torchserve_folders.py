"""What a running TorchServe keeps in its folders, and for how long."""

import socket
import stat
import struct
import time
from contextlib import suppress
from dataclasses import astuple
from xml.etree import ElementTree

import pytest

from afd_serve.servers.torchserve import TorchServe
from tests.serving.pictures import GOOD

pytestmark = pytest.mark.serving


def test_keys_are_for_the_owner_only(server: TorchServe) -> None:
    for name in ("key_file.json", server.header_file.name):
        assert (server.state_dir / name).stat().st_mode & 0o077 == 0


def test_pictures_model_and_logs_are_for_the_owner_only(server: TorchServe) -> None:
    for folder in (*(server.state_dir / name for name in ("logs", "model_store", "workflow_store")), server.scratch):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (server.state_dir / "logs").glob("*_log.log"))


def test_requests_are_logged_where_logs_have_an_end(server: TorchServe) -> None:
    def sizes() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (server.state_dir / "logs").iterdir()}

    before = sizes()
    for _ in range(20):
        server.post(GOOD["sample"])
    after = sizes()
    files = list(ElementTree.parse(server.state_dir / "log4j2.xml").iter("RollingFile"))
    assert all(file.find("SizeBasedTriggeringPolicy") is not None for file in files)
    rolled = {file.get("fileName", "").rpartition("/")[2] for file in files}
    grpc = {"grpc_log.0.log", "grpc_log.0.log.lck"}  # as logging.properties says
    assert rolled | {"console.log"} <= set(after) <= rolled | {"console.log"} | grpc
    assert "access_log.log" in {name for name in after if after[name] != before.get(name)} <= rolled


def test_junk_on_any_port_is_logged_where_logs_have_an_end(server: TorchServe) -> None:
    logs = server.state_dir / "logs"
    console = (logs / "console.log").read_bytes()
    unfinished = b"POST /predictions/afd HTTP/1.1\r\nContent-Length: 9\r\n\r\n"
    for port in astuple(server.ports):
        for junk in (b"GET /%zz HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 50, unfinished):
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(junk)
                with suppress(OSError):  # some are answered, some are reset, and some wait for more
                    connection.recv(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not closed
    time.sleep(1)
    assert not any(b"Transport" in log.read_bytes() for log in logs.iterdir()), "gRPC's library would quote it"
    assert (logs / "console.log").read_bytes() == console


def test_the_unpacked_model_is_safe_from_the_cleaning_of_temporary_folders(server: TorchServe) -> None:
    files = [path for path in server.scratch.rglob("*") if path.is_file()]
    assert "model.pt" in {path.name for path in files}
    assert all(path.stat().st_mode & stat.S_ISVTX for path in files)
