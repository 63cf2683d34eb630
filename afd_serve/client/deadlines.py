"""Connections of urllib3 that keep a deadline: on its own, it grants the whole timeout anew to each step and each read.

A server that sends a byte now and then would so be waited for without end.
"""

import http.client
import io
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import urllib3

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["POOLS"]

_LEAST: Final = 0.001
"""Seconds that a step is given whose time is over: 0 would tell a socket not to wait for anything from then on."""


class _Arrival(io.RawIOBase):
    """What comes from a socket, until the timeout that this has at the beginning is over."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._sock = raw, sock
        timeout = sock.gettimeout()
        self._end = None if timeout is None else time.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int | None:
        # A socket's timeout holds for one read, and head and body may take any number, so each gets what is left. That
        # needs no thread, and in TLS it is the same: there, too, a read ends in time however little of a record came.
        if self._end is not None:
            left = self._end - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response whose head and body arrive within the timeout that the socket has at the beginning."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.fp = io.BufferedReader(_Arrival(self.fp.detach(), sock))


class _Connection(urllib3.connection.HTTPConnection):
    """A connection whose timeout is what is left of the one that it was given."""

    response_class = _Response
    _end: float | None = None

    @property
    def timeout(self) -> float | None:
        return None if self._end is None else max(_LEAST, self._end - time.monotonic())

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        sock.settimeout(self.timeout)  # what TLS, or the request, has left
        return sock

    def send(self, data: Any) -> None:
        try:
            super().send(data)
        except TimeoutError as error:  # urllib3 would take it for a connection that broke
            raise urllib3.exceptions.TimeoutError("the server did not take the whole request") from error


class _TlsConnection(_Connection, urllib3.connection.HTTPSConnection):
    """As `_Connection`."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


POOLS: Final = {"http": _Pool, "https": _TlsPool}
"""Of each scheme, the pool whose connections keep deadlines: for `urllib3.PoolManager.pool_classes_by_scheme`."""
