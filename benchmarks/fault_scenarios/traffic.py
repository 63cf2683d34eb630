"""Load whose every answer is judged, and how long a server takes to be well again."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import http_load
import numpy as np

from afd_serve.errors import ServingError
from afd_serve.servers.torchserve import TorchServe
from fault_scenarios.questions import Endpoint, Question

__all__ = ["Connection", "Tally", "Traffic", "milliseconds", "ready_workers", "recovered", "under_load"]

TIMEOUT = 60.0
PATIENCE = 120.0
"""Seconds until a request counts as lost, and until a server counts as not recovered."""


def milliseconds(seconds: Sequence[float], share: float) -> float:
    """What this share of some times is at most."""
    return round(float(np.quantile(seconds, share)) * 1e3, 1) if seconds else float("nan")


@dataclass
class Tally:
    """What became of requests.

    Attributes:
        right: Answered as the pipeline answers; for bad input that is its own refusal, counted in ``refused``.
        refused: Bad input that got its own status and code, by code.
        wrong: Answered 200 with anything else, or bad input with another refusal than its own.
        failed: Good input that was answered with a status of failure, by status.
        lost: Not answered at all: connection closed, or nothing in time.
        examples: What was wrong or lost, the first few.
        answered: When each right answer to good input came, and after how many seconds.
    """

    right: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    failed: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    examples: list[str] = field(default_factory=list)
    answered: list[tuple[float, float]] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return self.right + self.refused.total() + self.wrong + self.failed.total() + self.lost

    def judge(self, question: Question, answer: http_load.Answer | Exception, sent: float) -> None:
        if isinstance(answer, Exception):
            self.lost += 1
            self._keep(f"{question.name}: {answer!r}")
        elif not question.right(answer.status, answer.body):
            self._count_other(question, answer.status, answer.body)
        elif question.status == 200:
            self.right += 1
            self.answered.append((time.monotonic(), time.monotonic() - sent))
        else:
            self.refused[question.answer if isinstance(question.answer, str) else str(question.status)] += 1

    def _count_other(self, question: Question, status: int, body: bytes) -> None:
        if status >= 500 or (status != 200 and question.status == 200):
            self.failed[status] += 1
        else:
            self.wrong += 1
        self._keep(f"{question.name}: {status} {body[:200].decode(errors='replace')}")

    def _keep(self, example: str) -> None:
        if len(self.examples) < 20:
            self.examples.append(example)

    def add(self, other: "Tally") -> None:
        """Count another's requests as well."""
        self.right += other.right
        self.refused += other.refused
        self.wrong += other.wrong
        self.failed += other.failed
        self.lost += other.lost
        self.answered += other.answered
        for example in other.examples:
            self._keep(example)

    def latency(self, share: float) -> float:
        """Milliseconds that this share of the right answers took at most."""
        return milliseconds([seconds for _, seconds in self.answered], share)


class Connection(http_load.Connection):
    """One whose answers are judged."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint.port)
        self.endpoint = endpoint

    async def ask(self, question: Question, tally: Tally) -> None:
        sent = time.monotonic()
        self.endpoint.under_way += 1
        try:
            answer: http_load.Answer | Exception = await asyncio.wait_for(self.send(question.request), TIMEOUT)
        except (OSError, EOFError, TimeoutError) as error:
            answer = error
            self.close()
        finally:
            self.endpoint.under_way -= 1
        tally.judge(question, answer, sent)


@dataclass
class Traffic:
    """Requests in a closed loop; ``endpoint`` may be replaced at any time, and what is under way stays where it is."""

    endpoint: Endpoint
    bad_share: float = 0.0
    tally: Tally = field(default_factory=Tally)
    stopped: bool = False
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    async def worker(self) -> None:
        connection = Connection(self.endpoint)
        while not self.stopped:
            if connection.endpoint is not self.endpoint:
                connection.close()
                connection = Connection(self.endpoint)
            bad = self._random.random() < self.bad_share
            await connection.ask(
                self._random.choice(connection.endpoint.bad if bad else connection.endpoint.good), self.tally
            )
            await asyncio.sleep(0)
        connection.close()


@asynccontextmanager
async def under_load(endpoint: Endpoint, *, concurrency: int = 4, bad_share: float = 0.0) -> AsyncIterator[Traffic]:
    """So many requests under way while the context lasts; those under way at its end are waited for."""
    traffic = Traffic(endpoint, bad_share)
    tasks = [asyncio.create_task(traffic.worker()) for _ in range(concurrency)]
    try:
        yield traffic
    finally:
        traffic.stopped = True
        await asyncio.gather(*tasks)


async def ready_workers(server: TorchServe) -> set[int]:
    """Process ids of the workers that say that they are ready."""
    with suppress(ServingError, LookupError):
        workers = await asyncio.to_thread(server.workers)
        return {int(worker["pid"]) for worker in workers if worker["status"] == "READY"}
    return set()


async def recovered(endpoint: Endpoint, workers: int, gone: Sequence[int] = ()) -> float | None:
    """Seconds from now until all workers are ready, none of those that are gone among them, and answer right."""
    start = time.monotonic()
    while time.monotonic() < start + PATIENCE:
        ready = await ready_workers(endpoint.server)
        if len(ready) >= workers and not ready & set(gone):
            tally, connection = Tally(), Connection(endpoint)
            await connection.ask(endpoint.good[0], tally)
            connection.close()
            if tally.right:
                return time.monotonic() - start
        await asyncio.sleep(0.1)
    return None
