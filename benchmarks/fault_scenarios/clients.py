"""Clients that are slow, idle, too many, or send what is no picture."""

import asyncio
import json
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from http_load import prediction_request

from afd_serve.request import MAX_PICTURES, MAX_TOP_K
from afd_serve.sample import sample_picture
from fault_scenarios.bench import Bench, Outcome
from fault_scenarios.traffic import Connection, Tally, Traffic, milliseconds, recovered, under_load

__all__ = ["idle_connections", "poisoned_mix", "queue_overflow", "slow_clients"]

SENDERS = 20
READERS = 8
IDLE = 1_000
BURST = 300

Disturbance = Callable[[Bench, dict[str, float | int | str]], AbstractAsyncContextManager[None]]


async def slow_clients(bench: Bench) -> Outcome:
    """Twenty clients that send one byte per second, and eight that stop reading the largest answer."""
    return await _compare(bench, _slow)


async def idle_connections(bench: Bench) -> Outcome:
    """A thousand connections on which nobody asks; afterwards each tenth does, and must get its answer."""
    return await _compare(bench, _idle)


async def _compare(bench: Bench, disturbance: Disturbance) -> Outcome:
    """Latency without and with a disturbance, twice each in turn, so that other work on the machine meets both."""
    figures: dict[str, float | int | str] = {}
    async with under_load(bench.endpoint) as traffic:
        spans: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(2):
            spans[False] += await _latencies(bench, traffic, "without")
            async with disturbance(bench, figures):
                spans[True] += await _latencies(bench, traffic, "with")
        recovery = await recovered(bench.endpoint, bench.workers)
    for title, index in (("p50", 0.5), ("p99", 0.99)):
        for disturbed in (False, True):
            figures[f"{title} {'with' if disturbed else 'without'}, ms"] = milliseconds(spans[disturbed], index)
    figures["right answers with / without"] = round(len(spans[True]) / len(spans[False]), 2)
    return Outcome(traffic.tally, recovery, figures)


async def _latencies(bench: Bench, traffic: Traffic, what: str) -> list[float]:
    start = time.monotonic()
    await bench.wait(bench.seconds / 2, what)
    return [seconds for moment, seconds in traffic.tally.answered if moment - seconds >= start]


@asynccontextmanager
async def _slow(bench: Bench, figures: dict[str, float | int | str]) -> AsyncIterator[None]:
    request = prediction_request(bench.endpoint.server, sample_picture())
    sockets = await asyncio.gather(*(_deaf(bench) for _ in range(READERS)))
    connection = Connection(bench.endpoint)
    for _ in range(2 * bench.workers):  # the queue is first come, first served: behind this, the large ones are done
        await connection.ask(bench.endpoint.good[0], Tally())
    connection.close()
    tasks = [asyncio.create_task(_dribble(bench.endpoint.port, request)) for _ in range(SENDERS)]
    try:
        yield
    finally:
        figures["still open"] = f"{sum(not task.done() for task in tasks)} of {SENDERS} senders"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in sockets:
            each.close()


async def _dribble(port: int, request: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for byte in request:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)
    finally:
        writer.close()


async def _deaf(bench: Bench) -> socket.socket:
    """Asks for the largest answer and reads its first bytes only."""
    picture = {"b64": b64encode(sample_picture()).decode()}
    body = json.dumps({"instances": [picture] * MAX_PICTURES, "top_k": MAX_TOP_K}).encode()
    request = prediction_request(bench.endpoint.server, body, content_type="application/json")
    loop, client = asyncio.get_running_loop(), socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await loop.sock_connect(client, ("127.0.0.1", bench.endpoint.port))
    await loop.sock_sendall(client, request)
    await loop.sock_recv(client, 100)
    return client


@asynccontextmanager
async def _idle(bench: Bench, figures: dict[str, float | int | str]) -> AsyncIterator[None]:
    connections = [Connection(bench.endpoint) for _ in range(IDLE)]
    for connection in connections:
        await connection.open()
    yield
    tally = Tally()
    for connection in connections[::10]:
        await connection.ask(bench.endpoint.good[0], tally)
    for connection in connections:
        connection.close()
    figures["still open"] = f"{tally.right} of {tally.requests} asked"


async def queue_overflow(bench: Bench) -> Outcome:
    """More requests at once than the queue holds."""
    connections, tally = [Connection(bench.endpoint) for _ in range(BURST)], Tally()
    await asyncio.gather(*(connection.open() for connection in connections))
    good = bench.endpoint.good
    refused_after: list[float] = []

    async def ask(index: int) -> None:
        one, sent = Tally(), time.monotonic()
        await connections[index].ask(good[index % len(good)], one)
        refused_after.extend([time.monotonic() - sent] * one.failed[503])
        tally.add(one)

    bench.say(f"{BURST} requests at once")
    await asyncio.gather(*map(ask, range(BURST)))
    recovery = await recovered(bench.endpoint, bench.workers)
    for connection in connections:
        connection.close()
    figures: dict[str, float | int | str] = {
        "at once": BURST,
        "slowest 503, ms": milliseconds(refused_after, 1),
        "slowest right answer, ms": tally.latency(1),
    }
    complaints = [] if refused_after else ["the queue did not overflow"]
    if others := tally.failed.total() - tally.failed[503]:
        complaints.append(f"{others} requests failed otherwise than with 503")
    return Outcome(tally, recovery, figures, complaints)


async def poisoned_mix(bench: Bench) -> Outcome:
    """Three requests of ten cannot be answered with a prediction."""
    async with under_load(bench.endpoint, bad_share=0.3) as traffic:
        await bench.wait(bench.seconds, "three of ten are bad")
        recovery = await recovered(bench.endpoint, bench.workers)
    figures: dict[str, float | int | str] = {"kinds of bad input": len(bench.endpoint.bad)}
    figures |= {f"refused: {code}": count for code, count in traffic.tally.refused.most_common()}
    complaints = [f"{traffic.tally.failed.total()} failed"] if traffic.tally.failed else []
    return Outcome(traffic.tally, recovery, figures, complaints)
