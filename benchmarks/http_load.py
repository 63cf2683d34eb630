"""Prediction requests as bytes for connections that stay open; an HTTP library would cost more than it measures."""

import asyncio

from afd_serve.servers.torchserve import TorchServe

__all__ = ["prediction_request", "read_answer"]


def prediction_request(
    server: TorchServe, body: bytes, headers: str = "", content_type: str = "application/octet-stream"
) -> bytes:
    """All bytes of one request; ``headers`` are more header lines, each with its line end."""
    head = f"POST /predictions/{server.model} HTTP/1.1\r\nHost: localhost\r\n{headers}"
    head += f"Authorization: Bearer {server.token()}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
    return int(head.split(None, 2)[1]), body
