"""Prediction requests as bytes for connections that stay open; an HTTP library would cost more than it measures."""

import asyncio
from dataclasses import dataclass

from afd_serve.servers.torchserve import TorchServe

__all__ = ["Answer", "Connection", "prediction_request", "read_answer"]


@dataclass(frozen=True)
class Answer:
    """``last`` says that the server closes the connection: TorchServe does so behind every status of failure."""

    status: int
    body: bytes
    last: bool


def prediction_request(
    server: TorchServe, body: bytes, headers: str = "", content_type: str = "application/octet-stream"
) -> bytes:
    """All bytes of one request; ``headers`` are more header lines, each with its line end."""
    head = f"POST /predictions/{server.model} HTTP/1.1\r\nHost: localhost\r\n{headers}"
    head += f"Authorization: Bearer {server.token()}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
    return Answer(int(head.split(None, 2)[1]), body, b"connection: close" in head)


class Connection:
    """Asks the server at a port over a connection that stays open, and opens another after the server closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        self._streams = await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, request: bytes) -> Answer:
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            await self.open()
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(request)
        answer = await read_answer(reader)
        if answer.last:
            self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None
