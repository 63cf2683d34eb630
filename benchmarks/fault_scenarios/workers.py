"""Workers that are killed, and workers that run out of memory."""

import asyncio
import os
import random
import resource
import signal
import time
from contextlib import suppress

import psutil

from fault_scenarios.bench import Bench, Outcome
from fault_scenarios.questions import large_picture, question
from fault_scenarios.traffic import Connection, Tally, ready_workers, recovered, under_load

__all__ = ["kill_workers", "out_of_memory"]

BETWEEN_KILLS = 5.0
HEADROOM = 16 << 20


async def kill_workers(bench: Bench) -> Outcome:
    """SIGKILL to a worker every five seconds under load."""
    choice, killed = random.Random(0), list[tuple[int, float]]()
    async with under_load(bench.endpoint) as traffic:
        end = time.monotonic() + bench.seconds
        while time.monotonic() < end:
            if ready := await ready_workers(bench.endpoint.server):
                pid, moment = choice.choice(sorted(ready)), time.monotonic()
                with suppress(ProcessLookupError):  # it has ended since it said that it is ready
                    os.kill(pid, signal.SIGKILL)
                    killed.append((pid, moment))
            await bench.wait(BETWEEN_KILLS, f"{len(killed)} killed")
        waited = time.monotonic() - killed[-1][1] if killed else 0.0
        recovery = await recovered(bench.endpoint, bench.workers, [pid for pid, _ in killed])
    gaps = [_next_right(traffic.tally, moment) for _, moment in killed]
    figures = {"kills": len(killed), "longest wait for a right answer, s": round(max(gaps, default=0.0), 2)}
    complaints = [] if killed else ["no worker was ever ready to be killed"]
    return Outcome(traffic.tally, None if recovery is None else waited + recovery, figures, complaints)


def _next_right(tally: Tally, moment: float) -> float:
    """Seconds from a moment until the next right answer."""
    return min((answered - moment for answered, _ in tally.answered if answered > moment), default=float("inf"))


async def out_of_memory(bench: Bench) -> Outcome:
    """Workers that may not grow, and pictures that need more; then they may again."""
    large = question("48 megapixels", large_picture(), bench.endpoint.server, bench.pipeline)
    pids = sorted(await ready_workers(bench.endpoint.server))
    starved, fed = Tally(), Tally()
    async with under_load(bench.endpoint) as traffic:
        await bench.wait(2, "load")
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                _limit(pid, psutil.Process(pid).memory_info().vms + HEADROOM)
        connection = Connection(bench.endpoint)
        end = time.monotonic() + bench.seconds / 2
        while time.monotonic() < end:
            await connection.ask(large, starved)
            bench.say(f"{starved.requests} large pictures for workers without memory")
            await asyncio.sleep(0.2)
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                _limit(pid, resource.RLIM_INFINITY)
        lifted = time.monotonic()
        recovery = await recovered(bench.endpoint, bench.workers)
        for _ in range(3):
            await connection.ask(large, fed)
        connection.close()
    replaced = len(set(pids) - await ready_workers(bench.endpoint.server))
    figures = {
        "large pictures while starved": f"failed {dict(starved.failed)}, right {starved.right}",
        "large pictures afterwards": f"{fed.right} of {fed.requests} right",
        "workers replaced": replaced,
        "first right answer after, s": round(_next_right(traffic.tally, lifted), 2),
    }
    complaints = [f"{traffic.tally.failed.total()} neighbours failed"] if traffic.tally.failed else []
    complaints += [] if fed.right == fed.requests else ["a large picture failed when there was memory again"]
    traffic.tally.add(starved)
    traffic.tally.add(fed)
    return Outcome(traffic.tally, recovery, figures, complaints)


def _limit(pid: int, size: int) -> None:
    """Set the soft limit on a process's address space."""
    process = psutil.Process(pid)
    process.rlimit(psutil.RLIMIT_AS, (size, process.rlimit(psutil.RLIMIT_AS)[1]))
