"""Wherever ports are written, they are the same ones; and what is said where one is not free."""

import os
import re
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import typer

pytest.importorskip("psutil")

from afd_serve.cli import app
from afd_serve.doctor import examine
from afd_serve.errors import ServingError
from afd_serve.servers.ports import Ports, TritonPorts, check_ports

ROOT = Path(__file__).parents[1]


def test_the_proxy_asks_where_the_servers_listen() -> None:
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    asked = dict(re.findall(r"upstream (\w+) \{\n\s+server 127\.0\.0\.1:(\d+);", text))
    assert {name: int(port) for name, port in asked.items()} == {
        "afd_torchserve": Ports().inference,
        "afd_torchserve_grpc": Ports().grpc_inference,
        "afd_triton": TritonPorts().http,
        "afd_triton_grpc": TritonPorts().grpc,
    }


def test_a_torchserve_of_ones_own_listens_where_ours_does() -> None:
    lines = (ROOT / "handlers" / "config.properties").read_text().splitlines()
    settings = {name: value for name, _, value in (line.partition("=") for line in lines) if "#" not in name}
    found = {
        name: settings[f"{name}_port" if name.startswith("grpc") else f"{name}_address"].removeprefix(
            "http://127.0.0.1:"
        )
        for name in asdict(Ports())
    }
    assert {name: int(port) for name, port in found.items()} == asdict(Ports())


@pytest.mark.parametrize(
    ("server", "ports", "options"),
    [
        ("torchserve", Ports(), ["port", "management_port", "metrics_port", "grpc_port", "grpc_management_port"]),
        ("triton", TritonPorts(), ["port", "grpc_port", "metrics_port"]),
    ],
)
def test_the_command_line_has_the_same(server: str, ports: Ports | TritonPorts, options: list[str]) -> None:
    command = typer.main.get_command(app)
    for word in ("serve", server):
        assert isinstance(command, typer.core.TyperGroup)
        command = command.commands[word]
    defaults = {parameter.name: parameter.default for parameter in command.params}
    assert [defaults[name] for name in options] == list(asdict(ports).values())


def test_the_doctor_looks_at_all_of_them() -> None:
    (check,) = (check for check in examine() if check.name == "ports")
    wanted = {*asdict(Ports()).values(), *asdict(TritonPorts()).values()}
    assert {int(port) for port in re.findall(r"\d{4}", check.detail)} <= wanted
    assert not check.ok or {int(port) for port in re.findall(r"\d{4}", check.detail)} == wanted


def test_no_port_is_for_two_purposes() -> None:
    free = TritonPorts.free()
    with pytest.raises(ServingError, match=f"port {free.http} is wanted twice \\(http, grpc\\)"):
        check_ports(replace(free, grpc=free.http))


def test_ports_of_the_server_that_makes_way_may_be_taken(listener: socket.socket) -> None:
    free = TritonPorts.free()
    held = replace(free, http=listener.getsockname()[1])
    check_ports(replace(free, grpc=held.http), held=held)
    with pytest.raises(ServingError, match=f"port {held.http} "):
        check_ports(held, held=free)


def test_who_holds_a_port_is_named(listener: socket.socket) -> None:
    taken = replace(TritonPorts.free(), grpc=listener.getsockname()[1])
    with pytest.raises(ServingError, match=rf"port {taken.grpc} \(grpc\) is taken by process {os.getpid()} \(.+\):"):
        check_ports(taken)


def test_a_port_that_the_system_keeps_for_root_is_not_called_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refused)
    with pytest.raises(ServingError, match=r"port 80 \(http\) is for root alone: choose one from 1024 on"):
        check_ports(TritonPorts(80))
