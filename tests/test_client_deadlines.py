"""The blocking client keeps its deadlines over HTTP, however slowly a server sends, and whether or not it reads."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from afd_serve.errors import DeadlineExceededError

pytest.importorskip("urllib3")
pytest.importorskip("tritonclient.grpc")

from afd_serve.client import AsyncClient, Client, Failure, Prediction
from afd_serve.client.deadlines import POOLS
from tests.client_answers import CLOCK, answers
from tests.client_servers import Tls, http_servers

BODY = answers(CLOCK).body
HEAD = b"HTTP/1.1 200 OK\r\n"
SIZED = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY)
SLOW = {
    "head": (b"", SIZED + BODY),
    "body": (SIZED, BODY),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "body without a size": (HEAD + b"Connection: close\r\n\r\n", BODY),
    "head of an answer still to come": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED + BODY),
}
"""Answers, each with what of it comes at once and what byte by byte."""

Converse = Callable[[socket.socket], None]


@pytest.fixture(params=["http", "https"])
def serve(request: pytest.FixtureRequest, certificate: Tls) -> Iterator[Callable[[Converse], str]]:
    """What has each connection to a URL carried out, in a thread of its own, in TLS or in the clear."""
    listening: list[socket.socket] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def carry_out(connection: socket.socket, converse: Converse) -> None:
        with suppress(OSError), connection:  # the client ends it half-way
            if request.param == "http":
                converse(connection)
            else:
                with context.wrap_socket(connection, server_side=True) as encrypted:
                    converse(encrypted)

    def accept(listener: socket.socket, converse: Converse) -> None:
        with suppress(OSError):  # the test is over
            while True:
                connection = listener.accept()[0]
                threading.Thread(target=carry_out, args=(connection, converse), daemon=True).start()

    def start(converse: Converse) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)
        threading.Thread(target=accept, args=(listener, converse), daemon=True).start()
        return f"{request.param}://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listening:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def receive_request(connection: socket.socket) -> bytes:
    """Its body; empty where the client has ended the connection."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (more := connection.recv(1 << 16)):
            return b""
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < size:
        body += connection.recv(1 << 16)
    return body


@pytest.mark.parametrize("part", SLOW)
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for_beyond_the_deadline(
    serve: Callable[[Converse], str], certificate: Tls, part: str
) -> None:
    connections: list[socket.socket] = []
    answered: dict[bytes, int] = {}
    at_once, slowly = SLOW[part]

    def converse(connection: socket.socket) -> None:
        connections.append(connection)
        number = len(connections)
        while body := receive_request(connection):
            if not body.endswith(b"slow"):
                answered[body[-5:]] = number
                connection.sendall(SIZED + BODY)
                continue
            connection.sendall(at_once)
            for index in range(len(slowly)):
                connection.sendall(slowly[index : index + 1])
                time.sleep(0.05)
            return

    with Client(serve(converse), ca=certificate[0], attempts=1) as client:
        assert client.classify(b"first") == CLOCK
        with pytest.raises(DeadlineExceededError):  # the answer is a good one, were it waited for
            client.classify(b"slow", timeout=0.5)
        assert client.classify(b"third") == CLOCK
    assert answered == {b"first": 1, b"third": 2}, "connections are kept, but not where an answer is still to come"


def test_a_server_that_takes_no_picture_is_not_waited_for_beyond_the_deadline(
    serve: Callable[[Converse], str], certificate: Tls
) -> None:
    over = threading.Event()

    def converse(_: socket.socket) -> None:
        over.wait(60)

    with Client(serve(converse), ca=certificate[0], timeout=1) as client, pytest.raises(DeadlineExceededError):
        client.classify(bytes(24 << 20))  # more than the system buffers
    over.set()


def test_a_large_picture_does_not_hold_up_the_event_loop_whose_deadlines_would_pass() -> None:
    """aiohttp warns of what it is to send in one go, and warnings are errors here."""

    async def ask(url: str) -> Prediction | Failure:
        async with AsyncClient(url) as client:
            return await client.classify(bytes(24 << 20))

    with http_servers() as serve_http:
        assert asyncio.run(ask(serve_http(lambda *_: answers(CLOCK)))) == CLOCK


def test_what_it_took_to_connect_is_not_granted_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = POOLS["http"].ConnectionCls("127.0.0.1", listener.getsockname()[1])
        connection.timeout = 10
        connection.connect()
        assert 0 < connection.sock.gettimeout() < 10
        connection.timeout = -1
        assert 0 < connection.timeout < 1, "0 would be a socket that never waits"
        connection.close()
