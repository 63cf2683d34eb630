"""One exchange of bytes with a server, over HTTP or gRPC, blocking or not. What the bytes mean is not known here."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

from afd_serve.errors import ConfigError, DeadlineExceededError, DependencyError, ServerUnavailableError

try:
    import aiohttp
    import grpc
    import urllib3
except ModuleNotFoundError as error:
    raise DependencyError(f"the client needs {error.name}: pip install 'afd-serve[client]'") from error

__all__ = ["AsyncChannel", "Call", "Channel", "Reply", "open_async_channel", "open_channel"]


@dataclass(frozen=True)
class Call:
    """What to send.

    Attributes:
        target: The path of a URL, or the full name of a gRPC method.
        body: The body, or the serialized message.
        headers: HTTP headers, or gRPC metadata (names in lower case).
    """

    target: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: The HTTP status, or the one that a gRPC status stands for.
        body: The body, or the serialized message; empty where a gRPC call failed.
        message: The details of a gRPC status.
    """

    status: int
    body: bytes
    message: str = ""


class Channel(Protocol):
    """A way to one server that several threads may use at once."""

    def exchange(self, call: Call, timeout: float) -> Reply:
        """Send a call and wait for the reply.

        Raises:
            ServerUnavailableError: The server cannot be reached or says that it is busy.
            DeadlineExceededError: Nothing came within ``timeout`` seconds.
        """

    def close(self) -> None:
        """End all connections."""


class AsyncChannel(Protocol):
    """As `Channel`, for one event loop."""

    async def exchange(self, call: Call, timeout: float) -> Reply:
        """Send a call and wait for the reply; raises what `Channel.exchange` raises."""

    async def close(self) -> None:
        """End all connections."""


def open_channel(url: str) -> Channel:
    """A channel to ``http://host:port`` or ``grpc://host:port``.

    Raises:
        ConfigError: The URL is neither.
    """
    scheme, address = _split(url)
    return HttpChannel(f"http://{address}") if scheme == "http" else GrpcChannel(address)


def open_async_channel(url: str) -> AsyncChannel:
    """As `open_channel`, for use in the running event loop."""
    scheme, address = _split(url)
    return AsyncHttpChannel(f"http://{address}") if scheme == "http" else AsyncGrpcChannel(address)


def _split(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "grpc") or not parts.netloc or parts.path.strip("/") or parts.query:
        raise ConfigError(f"a server is http://HOST:PORT or grpc://HOST:PORT, not {url!r}")
    return parts.scheme, parts.netloc


_CONNECTIONS: Final = 64
_GRPC_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC waits up to two minutes before it tries again to reach a server that was away for a moment.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_HTTP_STATUS: Final = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 501,
}
_BUSY: Final = 503


class HttpChannel:
    """HTTP/1.1 with kept connections."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._pool = urllib3.PoolManager(maxsize=_CONNECTIONS, retries=False)

    def exchange(self, call: Call, timeout: float) -> Reply:
        """See `Channel.exchange`."""
        try:
            response = self._pool.request(
                "POST" if call.body else "GET",
                self._base + call.target,
                body=call.body or None,
                headers=dict(call.headers),
                timeout=urllib3.Timeout(total=timeout),
            )
        except urllib3.exceptions.NewConnectionError as error:  # one of the timeouts, says urllib3
            raise ServerUnavailableError(f"{self._base} cannot be reached: {error}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineExceededError(f"no answer from {self._base} within {timeout:.3g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise ServerUnavailableError(f"{self._base} cannot be reached: {error}") from error
        return _checked(Reply(response.status, response.data), self._base)

    def close(self) -> None:
        """See `Channel.close`."""
        self._pool.clear()


class AsyncHttpChannel:
    """As `HttpChannel`."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_CONNECTIONS))

    async def exchange(self, call: Call, timeout: float) -> Reply:
        """See `Channel.exchange`."""
        try:
            async with self._session.request(
                "POST" if call.body else "GET",
                self._base + call.target,
                data=call.body or None,
                headers=dict(call.headers),
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                return _checked(Reply(response.status, await response.read()), self._base)
        except asyncio.TimeoutError as error:
            raise DeadlineExceededError(f"no answer from {self._base} within {timeout:.3g} s") from error
        except aiohttp.ClientError as error:
            raise ServerUnavailableError(f"{self._base} cannot be reached: {error}") from error

    async def close(self) -> None:
        """See `Channel.close`."""
        await self._session.close()


def _checked(reply: Reply, base: str) -> Reply:
    if reply.status == _BUSY:
        raise ServerUnavailableError(f"{base} is busy: {reply.body[:500].decode(errors='replace')}")
    return reply


class GrpcChannel:
    """gRPC without generated stubs: messages are bytes here."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_GRPC_OPTIONS)

    def exchange(self, call: Call, timeout: float) -> Reply:
        """See `Channel.exchange`."""
        try:
            ask = self._channel.unary_unary(call.target)
            return Reply(200, ask(call.body, timeout=timeout, metadata=tuple(call.headers.items())))
        except grpc.RpcError as error:
            return _failed(error)

    def close(self) -> None:
        """See `Channel.close`."""
        self._channel.close()


class AsyncGrpcChannel:
    """As `GrpcChannel`."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_GRPC_OPTIONS)

    async def exchange(self, call: Call, timeout: float) -> Reply:
        """See `Channel.exchange`."""
        try:
            ask = self._channel.unary_unary(call.target)
            return Reply(200, await ask(call.body, timeout=timeout, metadata=tuple(call.headers.items())))
        except grpc.RpcError as error:
            return _failed(error)

    async def close(self) -> None:
        """See `Channel.close`."""
        await self._channel.close()


def _failed(error: grpc.RpcError) -> Reply:
    code, details = error.code().name, error.details() or ""
    if code in ("UNAVAILABLE", "CANCELLED"):
        raise ServerUnavailableError(f"the server is unavailable: {details}") from error
    if code == "DEADLINE_EXCEEDED":
        raise DeadlineExceededError(f"no answer in time: {details}") from error
    return Reply(_HTTP_STATUS.get(code, 500), b"", details)
