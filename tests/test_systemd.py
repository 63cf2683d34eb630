"""What a service of systemd tells it, with a socket in systemd's place."""

import socket
from pathlib import Path

import pytest

from afd_serve.servers.systemd import tell_ready


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_says_once_that_it_works(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@{tmp_path}/notify" if abstract else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        tell_ready()
        assert systemd.recv(100) == b"READY=1"


def test_what_the_service_writes_is_for_its_account_alone() -> None:
    unit = (Path(__file__).parents[1] / "deploy" / "afd-serve.service").read_text().splitlines()
    assert {"UMask=0077", "StateDirectoryMode=0700"} <= set(unit)


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    tell_ready()
    monkeypatch.setenv("NOTIFY_SOCKET", "/nobody/listens")
    tell_ready()
