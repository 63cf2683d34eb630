"""A model's update and rollback under load: a second server beside the first, then the clients go over."""

import asyncio
import time
from contextlib import suppress

from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.servers import torchserve
from fault_scenarios.bench import Bench, Outcome
from fault_scenarios.questions import Endpoint
from fault_scenarios.traffic import Traffic, recovered, under_load

__all__ = ["update_and_roll_back"]

VERSIONS = ("1.0", "2.0")


async def update_and_roll_back(bench: Bench) -> Outcome:
    """From version 1.0 to 2.0 and back, each on a server of its own, while requests go on; none may fail."""
    figures: dict[str, float | int | str] = {}
    current = await _start(bench, VERSIONS[0])
    try:
        async with under_load(current) as traffic:
            for step, version in (("update", VERSIONS[1]), ("rollback", VERSIONS[0])):
                start = time.monotonic()
                current = await _replace(bench, traffic, current, version)
                figures[f"{step}, s"] = round(time.monotonic() - start, 1)
                await bench.wait(bench.seconds / 6, f"version {version} answers")
            recovery = await recovered(current, bench.workers)
    finally:
        await asyncio.to_thread(_stop_all, bench)
    complaints = [f"{traffic.tally.failed.total()} failed"] if traffic.tally.failed else []
    return Outcome(traffic.tally, recovery, figures, complaints, shared=False)


async def _replace(bench: Bench, traffic: Traffic, old: Endpoint, version: str) -> Endpoint:
    """Start the new server, send all further requests to it, wait for what the old one still owes, stop that one."""
    bench.say(f"version {version} starts beside the old one")
    new = await _start(bench, version)
    traffic.endpoint = new
    bench.say("the old server finishes what it has")
    while old.under_way:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(old.server.end)
    return new


async def _start(bench: Bench, version: str) -> Endpoint:
    """A server from an archive of this version; it has answered a request when this returns."""
    folder = bench.scratch / version
    archive = await asyncio.to_thread(package_torchserve, bench.exported, folder, version=version)
    return await bench.start(archive, folder / "state", version)


def _stop_all(bench: Bench) -> None:
    for version in VERSIONS:
        with suppress(OSError):
            torchserve.TorchServe.stop(bench.scratch / version / "state")
