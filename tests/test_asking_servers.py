"""What is asked of a server that answers half, or in no HTTP at all, as one does that dies: an error in words."""

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("psutil")

from afd_serve.errors import ServingError
from afd_serve.servers.http import ask
from afd_serve.servers.triton import Triton, TritonPorts, probe

Says = Callable[[bytes], int]


@pytest.fixture
def says() -> Iterator[Says]:
    """Starts a server that reads a request and sends these bytes, whatever it was asked; returns its port."""
    with ExitStack() as stack:

        def start(answer: bytes) -> int:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as request:
                    length = 0
                    while line := request.readline().strip():
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.partition(b":")[2])
                    request.read(length)
                    connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return int(listening.getsockname()[1])

        yield start


BROKEN = {
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
    "half an error's body": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 100\r\n\r\nabc",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
    "no status": b"HELLO\r\n\r\n",
    "nothing": b"",
    "an endless header": b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=list(BROKEN))
def test_an_answer_that_is_none_is_an_error_in_words(says: Says, answer: bytes) -> None:
    url = f"http://127.0.0.1:{says(answer)}/"
    with pytest.raises(ServingError, match=f"no answer from {url}: "):
        ask(urllib.request.Request(url), 30)


@pytest.mark.parametrize("answer", BROKEN.values(), ids=list(BROKEN))
def test_a_probe_of_a_triton_that_dies_while_it_answers_says_so(says: Says, answer: bytes, tmp_path: Path) -> None:
    """Its supervisor asks, and has to outlive it."""
    ports = replace(TritonPorts(), http=says(answer))
    server = Triton(state_dir=tmp_path, repository=tmp_path, python=tmp_path, prefix="afd_triton_", ports=ports)
    assert "no answer from" in str(probe(server, timeout=30))


def test_an_answer_may_be_an_error(says: Says) -> None:
    port = says(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc")
    answer = ask(urllib.request.Request(f"http://127.0.0.1:{port}/"), 30)
    assert (answer.status, answer.content_type, answer.body) == (404, "text/plain", b"abc")
