"""Wherever ports are written, they are the same ones."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import typer

pytest.importorskip("psutil")

from afd_serve.cli import app
from afd_serve.doctor import examine
from afd_serve.servers.ports import Ports, TritonPorts

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
