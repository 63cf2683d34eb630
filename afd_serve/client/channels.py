"""One exchange of bytes with a server, over HTTP or gRPC, blocking or not. What the bytes mean is not known here."""

import io
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from afd_serve.errors import (
    ConfigError,
    DeadlineExceededError,
    DependencyError,
    ServerUnavailableError,
    TlsError,
)

try:
    import aiohttp
    import grpc
    import urllib3

    from afd_serve.client.deadlines import POOLS
except ModuleNotFoundError as error:
    raise DependencyError(f"the client needs {error.name}: pip install 'afd-serve[client]'") from error

__all__ = ["Address", "AsyncChannel", "Call", "Channel", "Reply", "open_async_channel", "open_channel"]


@dataclass(frozen=True)
class Call:
    """What to send.

    Attributes:
        target: The path of a URL, or the full name of a gRPC method.
        body: The body, or the serialized message.
        headers: HTTP headers, or gRPC metadata (names in lower case), beside those that the channel sends.
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

    @property
    def words(self) -> str:
        """What a reply that is no answer says: the details, or the beginning of the body, of a page its text."""
        said = self.message or self.body[:500].decode(errors="replace")
        if said.startswith("<"):
            said = " ".join(_TAG.sub(" ", said).split())
        return said if said.strip() else "an empty answer"


_TAG: Final = re.compile(r"<[^>]*>")


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


class Address(NamedTuple):
    """Where a server is, and how it is spoken to: gRPC or HTTP, in TLS or in the clear."""

    host: str
    grpc: bool
    tls: bool
    path: str = ""

    @classmethod
    def of(cls, url: str) -> "Address":
        """Take a URL apart: ``http``, ``https``, ``grpc`` or ``grpcs``, a host and a port.

        A path may follow where it is HTTP: proxies put servers below one.

        Raises:
            ConfigError: The URL has another form.
        """
        try:
            parts = urlsplit(url)
            named = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc  # nobody would send the user
        except ValueError:  # of urlsplit, and of port
            raise _not_a_server(url) from None
        over_grpc, tls = _SCHEMES.get(parts.scheme, (False, False))
        path = parts.path.rstrip("/")
        if parts.scheme not in _SCHEMES or not named or parts.query or parts.fragment or (over_grpc and path):
            raise _not_a_server(url)
        return cls(parts.netloc, over_grpc, tls, path)

    @property
    def base(self) -> str:
        """The beginning of an HTTP URL."""
        return f"http{'s' if self.tls else ''}://{self.host}{self.path}"


def _not_a_server(url: str) -> ConfigError:
    return ConfigError(f"a server is {', '.join(f'{scheme}://HOST:PORT' for scheme in _SCHEMES)}, not {url!r}")


_SCHEMES: Final = {"http": (False, False), "https": (False, True), "grpc": (True, False), "grpcs": (True, True)}
"""Of each scheme, whether it is gRPC and whether it is in TLS."""


def open_channel(url: str, ca: Path | None = None, token: str | None = None) -> Channel:
    """A channel to a server.

    Args:
        url: As of `Address.of`.
        token: What goes with every call as ``Authorization: Bearer``: the server's, or that of a proxy before it.
        ca: In TLS, the certificates (PEM) that vouch for the server; where None, for HTTP those that the system trusts,
            and for gRPC those that come with it or that ``GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`` names.

    Raises:
        ConfigError: The URL has another form, or ``ca`` holds no certificates.
    """
    address, authorities, own = Address.of(url), _read_authorities(ca), _authorization(token)
    return GrpcChannel(address, authorities, own) if address.grpc else HttpChannel(address, authorities, own)


def open_async_channel(url: str, ca: Path | None = None, token: str | None = None) -> AsyncChannel:
    """As `open_channel`, for use in the running event loop."""
    address, authorities, own = Address.of(url), _read_authorities(ca), _authorization(token)
    return AsyncGrpcChannel(address, authorities, own) if address.grpc else AsyncHttpChannel(address, authorities, own)


def _authorization(token: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def _read_authorities(ca: Path | None) -> str | None:
    """The certificates' text, once it is known that it holds some."""
    if ca is None:
        return None
    try:
        text = ca.read_text(encoding="ascii", errors="ignore")  # bundles have comments in every language
        ssl.create_default_context(cadata=text)
    except (OSError, ValueError) as error:  # ssl's errors are OSErrors
        raise ConfigError(f"{ca} holds no certificates in PEM that can be read: {error}") from error
    return text


_CONNECTIONS: Final = 64
_GRPC_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC waits up to two minutes before it tries again to reach a server that was away for a moment.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # As over HTTP, no proxy that the environment names: gRPC would ask one even for a server on loopback.
    ("grpc.enable_http_proxy", 0),
)
_HTTP_STATUS: Final = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 501,
}
_NO_TLS: Final = ("SSL_ERROR_SSL", "Hostname Verification Check failed", "is not in peer certificate")
"""What gRPC's details say where TLS is at fault; its code only says that the server is unavailable."""

_CLOSED: Final = "This protocol is restricted"
"""What Triton says of what it was told to keep closed, with the code of a server that is away."""

_BY_A_PROXY: Final = re.compile(r"Received http2 header with status: ([345]\d\d)")
"""What gRPC's details say where a proxy answered instead of the server; for most statuses there is no code."""

_UNAVAILABLE: Final = (429, 502, 503, 504)
"""What a server says that has no room, and a proxy that is asked too often, or whose server is away or silent."""


class HttpChannel:
    """HTTP/1.1 with kept connections."""

    def __init__(self, address: Address, authorities: str | None, own: Mapping[str, str]) -> None:
        self._base, self._own = address.base, own
        context = ssl.create_default_context(cadata=authorities) if address.tls else None
        self._pool = urllib3.PoolManager(maxsize=_CONNECTIONS, retries=False, ssl_context=context)
        self._pool.pool_classes_by_scheme = POOLS

    def exchange(self, call: Call, timeout: float) -> Reply:
        """See `Channel.exchange`."""
        try:
            response = self._pool.request(
                "POST" if call.body else "GET",
                self._base + call.target,
                body=call.body or None,
                headers={**self._own, **call.headers},
                timeout=urllib3.Timeout(total=timeout),
                redirect=False,  # before 2.5, the pool's retries=False does not see to that
            )
        except urllib3.exceptions.NewConnectionError as error:  # one of the timeouts, says urllib3
            raise ServerUnavailableError(f"{self._base} cannot be reached: {error}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineExceededError(f"no answer from {self._base} within {timeout:.3g} s") from error
        except urllib3.exceptions.SSLError as error:
            raise TlsError(f"no TLS with {self._base}: {error}") from error
        except urllib3.exceptions.HTTPError as error:
            raise ServerUnavailableError(f"{self._base} cannot be reached: {error}") from error
        return _checked(Reply(response.status, response.data), self._base)

    def close(self) -> None:
        """See `Channel.close`."""
        self._pool.clear()


class AsyncHttpChannel:
    """As `HttpChannel`."""

    def __init__(self, address: Address, authorities: str | None, own: Mapping[str, str]) -> None:
        self._base, self._own = address.base, own
        context = ssl.create_default_context(cadata=authorities) if address.tls else True
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=context))

    async def exchange(self, call: Call, timeout: float) -> Reply:
        """See `Channel.exchange`."""
        try:
            async with self._session.request(
                "POST" if call.body else "GET",
                self._base + call.target,
                data=io.BytesIO(call.body) if call.body else None,  # bytes would hold up the loop until all are sent
                headers={**self._own, **call.headers},
                timeout=aiohttp.ClientTimeout(total=timeout),
                allow_redirects=False,  # as urllib3 is told: a picture goes where it was sent
            ) as response:
                return _checked(Reply(response.status, await response.read()), self._base)
        except TimeoutError as error:
            raise DeadlineExceededError(f"no answer from {self._base} within {timeout:.3g} s") from error
        except aiohttp.ClientSSLError as error:
            raise TlsError(f"no TLS with {self._base}: {error}") from error
        except aiohttp.ClientError as error:
            raise ServerUnavailableError(f"{self._base} cannot be reached: {error}") from error

    async def close(self) -> None:
        """See `Channel.close`."""
        await self._session.close()


def _checked(reply: Reply, base: str) -> Reply:
    if reply.status in _UNAVAILABLE:
        raise ServerUnavailableError(f"{base} is unavailable ({reply.status}): {reply.words}")
    return reply


class GrpcChannel:
    """gRPC without generated stubs: messages are bytes here."""

    def __init__(self, address: Address, authorities: str | None, own: Mapping[str, str]) -> None:
        self._channel, self._own = _dial(grpc, address, authorities), own

    def exchange(self, call: Call, timeout: float) -> Reply:
        """See `Channel.exchange`."""
        try:
            ask = self._channel.unary_unary(call.target)
            metadata = (*self._own.items(), *call.headers.items())
            return Reply(200, ask(call.body, timeout=timeout, metadata=metadata))
        except grpc.RpcError as error:
            return _failed(error)

    def close(self) -> None:
        """See `Channel.close`."""
        self._channel.close()


class AsyncGrpcChannel:
    """As `GrpcChannel`."""

    def __init__(self, address: Address, authorities: str | None, own: Mapping[str, str]) -> None:
        self._channel, self._own = _dial(grpc.aio, address, authorities), own

    async def exchange(self, call: Call, timeout: float) -> Reply:
        """See `Channel.exchange`."""
        try:
            ask = self._channel.unary_unary(call.target)
            metadata = (*self._own.items(), *call.headers.items())
            return Reply(200, await ask(call.body, timeout=timeout, metadata=metadata))
        except grpc.RpcError as error:
            return _failed(error)

    async def close(self) -> None:
        """See `Channel.close`."""
        await self._channel.close()


def _dial(api: ModuleType, address: Address, authorities: str | None) -> Any:
    """A channel of ``grpc`` or of ``grpc.aio``."""
    if not address.tls:
        return api.insecure_channel(address.host, options=_GRPC_OPTIONS)
    credentials = grpc.ssl_channel_credentials(None if authorities is None else authorities.encode())
    return api.secure_channel(address.host, credentials, options=_GRPC_OPTIONS)


def _failed(error: grpc.RpcError) -> Reply:
    code = error.code().name
    details = error.details() or code
    if any(words in details for words in _NO_TLS):
        raise TlsError(f"no TLS with the server: {details}") from error
    if _CLOSED in details:
        return Reply(403, b"", details)
    if code in ("UNAVAILABLE", "CANCELLED"):
        raise ServerUnavailableError(f"the server is unavailable: {details}") from error
    if code == "DEADLINE_EXCEEDED":
        raise DeadlineExceededError(f"no answer in time: {details}") from error
    status = _HTTP_STATUS.get(code, 500)
    if code == "UNKNOWN" and (found := _BY_A_PROXY.search(details)):
        status = int(found[1])
    return Reply(status, b"", details)
