"""The TCP ports of the servers that we start: those unless others are asked for, and whether they are free.

Nothing else is imported here, because the command line's options have their defaults from here.
"""

import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from typing import Self

from afd_serve.errors import ServingError

__all__ = ["Ports", "TritonPorts", "check_ports", "free_ports", "is_free"]


@dataclass(frozen=True)
class _ServerPorts:
    """The TCP ports of one server, all on loopback."""

    @classmethod
    def free(cls) -> Self:
        """Ports that nobody listens on right now."""
        return cls(*free_ports(len(fields(cls))))


@dataclass(frozen=True)
class Ports(_ServerPorts):
    """The TCP ports of one TorchServe, all on loopback."""

    inference: int = 8080
    management: int = 8081
    metrics: int = 8082
    grpc_inference: int = 7070
    grpc_management: int = 7071


@dataclass(frozen=True)
class TritonPorts(_ServerPorts):
    """The TCP ports of one Triton, all on loopback."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def check_ports(ports: _ServerPorts, held: _ServerPorts | None = None) -> None:
    """Make sure that no port is wanted twice, and every one is free or one of ``held``: of a server that makes way.

    Raises:
        ServingError: One is not; the message names it.
    """
    passed_on = asdict(held).values() if held is not None else ()
    wanted: dict[int, str] = {}
    for name, port in asdict(ports).items():
        if wanted.setdefault(port, name) != name:
            raise ServingError(f"port {port} is wanted twice ({wanted[port]}, {name}): choose another for one of them")
        if port not in passed_on:
            _check_port(name, port)


def _check_port(name: str, port: int) -> None:
    try:
        _bind(port)
    except PermissionError as error:
        raise ServingError(f"port {port} ({name}) is for root alone: choose one from 1024 on") from error
    except OSError as error:
        from afd_serve.servers.processes import listener  # noqa: PLC0415 - the command line's options do without

        raise ServingError(
            f"port {port} ({name}) is taken{listener(port)}: choose other ports or stop its owner"
        ) from error


def is_free(port: int) -> bool:
    """Whether a server could listen there right now."""
    try:
        _bind(port)
    except OSError:
        return False
    return True


def _bind(port: int) -> None:
    """Listen there for a moment, or raise what the system raises."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
