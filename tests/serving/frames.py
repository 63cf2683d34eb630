"""As much of HTTP/2 as it takes to call over gRPC with headers that no library sends."""

import socket
from collections.abc import Iterator, Sequence

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_PART = 16_384
"""Bytes of a frame, as many as every server takes."""

Header = tuple[bytes, bytes]


def call(connection: socket.socket, path: str, message: bytes, headers: Sequence[Header] = ()) -> list[bytes]:
    """Call a method over a new connection, with these headers last; the messages that come back.

    Args:
        connection: In the clear, or in TLS that speaks ``h2``.
        path: Service and method.
        message: With the five bytes before it that gRPC wants: whether it is compressed, and its length.
        headers: Any bytes.
    """
    own: list[Header] = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x")]
    own += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in (*own, *headers))
    parts = [message[start : start + _PART] for start in range(0, len(message), _PART)]
    data = [_frame(_DATA, _END_STREAM * (index == len(parts) - 1), 1, part) for index, part in enumerate(parts)]
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"")
    connection.sendall(opening + _frame(_HEADERS, _END_HEADERS, 1, block) + b"".join(data))
    answered = []
    for kind, flags, body in _frames(connection):
        if kind == _DATA and body:
            answered.append(body)
        if kind in (_RST_STREAM, _GOAWAY) or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            break
    return answered


def _text(text: bytes) -> bytes:
    """A string of HPACK, without Huffman's code."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    size, length = b"\x7f", len(text) - 127
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return size + bytes([length]) + text


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    with connection.makefile("rb") as file:
        while len(head := file.read(9)) == 9:
            yield head[3], head[4], file.read(int.from_bytes(head[:3], "big"))
