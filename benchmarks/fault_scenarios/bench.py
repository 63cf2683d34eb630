"""What every scenario is given, and what it gives back."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from afd_serve.pipeline import Pipeline
from afd_serve.sample import sample_picture
from afd_serve.servers import torchserve
from fault_scenarios.questions import Endpoint, endpoint_of
from fault_scenarios.traffic import Tally

__all__ = ["Bench", "Outcome"]


@dataclass(frozen=True)
class Bench:
    """A server with the default model, and room to work.

    Attributes:
        endpoint: The server and its questions.
        workers: How many worker processes it has.
        pipeline: The same model in this process: what it says is right.
        exported: The exported model's folder.
        archive: What the server runs.
        scratch: A folder for files.
        out: Where results go.
        seconds: How long a fault lasts.
        soak_seconds: How long the soak lasts.
        say: Shows what is going on.
    """

    endpoint: Endpoint
    workers: int
    pipeline: Pipeline
    exported: Path
    archive: Path
    scratch: Path
    out: Path
    seconds: float
    soak_seconds: float
    say: Callable[[str], None]

    async def start(self, archive: Path, state_dir: Path, version: str = "1.0") -> Endpoint:
        """Another server; it has answered a request when this returns."""
        ports = torchserve.Ports.free()
        server = await asyncio.to_thread(
            torchserve.start, archive, state_dir, probe=sample_picture(), ports=ports, workers=self.workers
        )
        return await asyncio.to_thread(endpoint_of, server, self.pipeline, version)

    async def wait(self, seconds: float, what: str) -> None:
        """Let time pass and show how much is left."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            self.say(f"{what}, {left:.0f} s left")
            await asyncio.sleep(min(1, left))


@dataclass
class Outcome:
    """Attributes:
    tally: What became of the requests.
    recovery: Seconds until all was well again; None where it was never.
    figures: What else was measured, for the report.
    complaints: What should not be, besides wrong answers, lost requests and no recovery.
    shared: Whether it was the bench's server that was asked, whose memory then says something.
    """

    tally: Tally
    recovery: float | None
    figures: dict[str, float | int | str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    shared: bool = True

    def all_complaints(self) -> list[str]:
        found = list(self.complaints)
        if self.tally.wrong:
            found.append(f"{self.tally.wrong} wrong answers")
        if self.tally.lost:
            found.append(f"{self.tally.lost} requests lost")
        if self.recovery is None:
            found.append("no recovery")
        return found
