"""Clients that are closed, forked or taken into another event loop, and what then becomes of their calls and memory."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from concurrent import futures

import pytest

from afd_serve.errors import ClientClosedError

grpc = pytest.importorskip("grpc")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")

from afd_serve.client import AsyncClient, Client  # noqa: E402
from afd_serve.client.channels import Reply  # noqa: E402
from afd_serve.client.dialects import serialize  # noqa: E402
from tests.client_answers import CLOCK, answers, wire  # noqa: E402
from tests.client_servers import Answer  # noqa: E402


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_closed_client_asks_nobody(request: pytest.FixtureRequest, scheme: str) -> None:
    asked: list[str] = []

    def answer(target: str, _: bytes) -> Reply:
        asked.append(target)
        return Reply(400, b"no", "INVALID_ARGUMENT")

    async def ask(url: str) -> None:
        client = AsyncClient(url)
        await client.close()
        await client.close()
        for call in (client.classify(b"x"), client.healthy()):
            with pytest.raises(ClientClosedError):
                await call

    url = request.getfixturevalue(f"{scheme}_server")(answer)
    client = Client(url)
    client.close()
    client.close()
    for call in (lambda: client.classify(b"x"), client.healthy):
        with pytest.raises(ClientClosedError):
            call()
    asyncio.run(ask(url))
    assert not asked


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_closing_a_client_ends_what_it_asks_again_and_cancels_no_task(
    request: pytest.FixtureRequest, scheme: str
) -> None:
    asked, closed = threading.Semaphore(0), threading.Event()

    def answer(*_: object) -> Reply:
        asked.release()
        closed.wait(10)
        return Reply(503, b"busy", "UNAVAILABLE")

    async def ask() -> None:
        client = AsyncClient(url)
        asking = asyncio.create_task(client.classify(b"x"))
        assert await asyncio.to_thread(asked.acquire)
        await client.close()
        closed.set()
        with pytest.raises(ClientClosedError):
            await asking

    url = request.getfixturevalue(f"{scheme}_server")(answer)
    with Client(url) as client, futures.ThreadPoolExecutor() as pool:
        asking = pool.submit(client.classify, b"x")
        assert asked.acquire()
        client.close()
        closed.set()
        assert isinstance(asking.exception(), ClientClosedError)
    closed.clear()
    asyncio.run(ask())


def answers_to_shared_memory(target: str, _: bytes) -> Reply:
    """What a Triton answers over HTTP or gRPC, to whatever a client with shared memory asks."""
    texts = [json.dumps(wire(CLOCK)).encode()]
    if target.endswith("ModelInfer"):
        return Reply(200, service_pb2.ModelInferResponse(raw_output_contents=[serialize(texts)]).SerializeToString())
    return answers(CLOCK) if target.endswith("/infer") else Reply(200, b"")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_client_with_shared_memory_may_be_closed_again_and_asked_in_between(
    request: pytest.FixtureRequest, scheme: str
) -> None:
    async def ask() -> None:
        async with AsyncClient(url, shared_memory=True) as client:
            assert await client.classify(b"x") == CLOCK
            await client.close()
            with pytest.raises(ClientClosedError):
                await client.classify(b"x")

    url = request.getfixturevalue(f"{scheme}_server")(answers_to_shared_memory)
    with Client(url, shared_memory=True) as client:
        assert client.classify(b"x") == CLOCK
        client.close()
        with pytest.raises(ClientClosedError):
            client.classify(b"x")
    asyncio.run(ask())


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_client_that_is_closed_twice_at_once_gives_its_shared_memory_back(
    request: pytest.FixtureRequest, scheme: str
) -> None:
    asked: list[str] = []
    meanwhile: list[Client] = []

    def answer(target: str, body: bytes) -> Reply:
        if "nregister" not in target:
            return answers_to_shared_memory(target, body)
        asked.append(target)
        for client in meanwhile:
            client.close()
        in_use = Reply(400, b'{"error": "it is currently in use"}', "INVALID_ARGUMENT")
        return in_use if len(asked) % 2 else Reply(200, b"")

    async def ask() -> None:
        client = AsyncClient(url, shared_memory=True)
        assert await client.classify(b"x") == CLOCK
        await asyncio.gather(client.close(), client.close())

    url = request.getfixturevalue(f"{scheme}_server")(answer)
    with Client(url, shared_memory=True) as client:
        assert client.classify(b"x") == CLOCK
        meanwhile.append(client)
    meanwhile.clear()
    asyncio.run(ask())
    assert len(asked) == 4


def status_of_a_fork(work: Callable[[], int]) -> int:
    """What a forked process returns from its work; 99 where that fails."""
    child = os.fork()
    if not child:
        try:
            os._exit(work())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_write_into_its_parents_shared_memory(
    http_server: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr("afd_serve.client.regions.Region.write", lambda _, data: written.append(data))
    with Client(http_server(answers_to_shared_memory), shared_memory=True) as client:
        assert client.classify(b"x") == CLOCK

        def ask() -> int:
            with pytest.raises(ClientClosedError):
                client.classify(b"y")
            return len(written) - 1

        assert status_of_a_fork(ask) == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_client_is_not_for_the_processes_that_are_forked_from_its_own(http_server: Callable[[Answer], str]) -> None:
    asked: list[str] = []
    client = Client(http_server(lambda path, _: asked.append(path) or answers(CLOCK)))
    assert client.classify(b"x") == CLOCK

    def ask() -> int:
        with pytest.raises(ClientClosedError):
            client.classify(b"x")
        client.close()
        return 0

    assert status_of_a_fork(ask) == 0
    assert client.classify(b"x") == CLOCK
    client.close()
    assert len(asked) == 2


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_client_is_not_for_another_event_loop(request: pytest.FixtureRequest, scheme: str) -> None:
    async def make() -> AsyncClient:
        return AsyncClient(request.getfixturevalue(f"{scheme}_server")(lambda *_: answers(CLOCK)))

    async def ask(client: AsyncClient) -> None:
        with pytest.raises(ClientClosedError):
            await client.classify(b"x")
        await client.close()

    asyncio.run(ask(asyncio.run(make())))
