"""What a real TorchServe with the default model does when things go wrong, and whether every answer stays right.

    python benchmarks/faults.py [--server torchserve] [--scenarios NAME,NAME...] [--out DIR] [--seconds 30]
                                [--soak-seconds 60] [--workers N] [--model NAME]

Each answer is compared with what `Pipeline` says in this process for the same bytes, bit for bit; bad input must get
its own refusal. "right", "refused" (bad input, as it should be), "WRONG", "failed" (good input, by HTTP status) and
"lost" (no answer) are numbers of requests; "recovery" is the time in seconds from the last fault until all workers are
ready and answer right; "MiB" says how far the memory of the server's processes rose (proportional set size). Requests
come from 4 connections in a closed loop. One server is asked in all scenarios, but for the update and the logs, which
start their own, and the full disk, which needs none.

Ends with status 1 if an answer was wrong, a request was lost, a server did not recover, or what a scenario promises did
not hold. Writes ``faults.json`` and the soak's plot. Needs Linux, and the extras ``torchserve`` and ``plots``.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from fault_scenarios.bench import Bench, Outcome
from fault_scenarios.clients import idle_connections, poisoned_mix, queue_overflow, slow_clients
from fault_scenarios.disk import full_disk, full_logs
from fault_scenarios.questions import endpoint_of
from fault_scenarios.soak import soak
from fault_scenarios.traffic import under_load
from fault_scenarios.update import update_and_roll_back
from fault_scenarios.workers import kill_workers, out_of_memory
from machine import cpu_name, memory
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from afd_serve.export import export_classifier
from afd_serve.exported import exported_files
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.pipeline import Pipeline
from afd_serve.sample import sample_picture
from afd_serve.servers import torchserve
from afd_serve.servers.java import find_java

SCENARIOS: dict[str, Callable[[Bench], Awaitable[Outcome]]] = {
    "kill": kill_workers,
    "memory": out_of_memory,
    "slow": slow_clients,
    "idle": idle_connections,
    "overflow": queue_overflow,
    "poison": poisoned_mix,
    "soak": soak,
    "update": update_and_roll_back,
    "disk": full_disk,
    "logs": full_logs,
}

Row = dict[str, object]


def run(bench: Bench, name: str) -> Row:
    """One scenario, as it goes into the report."""
    pid = bench.endpoint.server.pid
    before, start = parts(pid), time.monotonic()
    outcome = asyncio.run(SCENARIOS[name](bench))  # type: ignore[arg-type]
    tally = outcome.tally
    return {
        "requests": tally.requests,
        "right": tally.right,
        "refused": tally.refused.total(),
        "wrong": tally.wrong,
        "failed": {str(status): count for status, count in sorted(tally.failed.items())},
        "lost": tally.lost,
        "recovery": outcome.recovery if outcome.recovery is None else round(outcome.recovery, 2),
        "memory": {part: round(size - before[part], 1) for part, size in parts(pid).items()} if outcome.shared else {},
        "seconds": round(time.monotonic() - start, 1),
        "figures": outcome.figures,
        "complaints": outcome.all_complaints(),
        "examples": tally.examples,
    }


def parts(pid: int) -> dict[str, float]:
    """MiB of the frontend, and of its workers together."""
    sizes = memory(pid)
    return {"frontend": sizes.pop(pid), "workers": sum(sizes.values())}


def show(rows: dict[str, Row], console: Console) -> None:
    table = Table(
        "scenario", "requests", "right", "refused", "WRONG", "failed", "lost", "recovery, s", "MiB frontend", "workers"
    )
    for name, row in rows.items():
        failed = ", ".join(f"{count} x {status}" for status, count in row["failed"].items()) or "0"  # type: ignore[attr-defined]
        values = [row[key] for key in ("requests", "right", "refused", "wrong")]
        memory_columns = [f"{size:+}" for size in row["memory"].values()] or ["-", "-"]  # type: ignore[attr-defined]
        recovery = "never" if row["recovery"] is None else row["recovery"]
        table.add_row(name, *map(str, values), failed, str(row["lost"]), str(recovery), *memory_columns)
    console.print(table)
    for name, row in rows.items():
        console.print(f"{name}: " + "; ".join(f"{key} {value}" for key, value in row["figures"].items()))  # type: ignore[attr-defined]
        for complaint in row["complaints"]:  # type: ignore[attr-defined]
            console.print(f"  [red]{name}: {complaint}[/]")


def facts() -> Row:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "java": find_java().version,
        **{name: version(name) for name in ("torch", "torchserve", "afd-serve")},
    }


@contextmanager
def serving(arguments: argparse.Namespace, scratch: Path, say: Callable[[str], None]) -> Iterator[Bench]:
    """The server that most scenarios ask, warm."""
    say("exporting, packaging, starting")
    exported = Path(arguments.model)
    if exported_files(exported) is None:
        exported = export_classifier(arguments.model, scratch / "exported").folder
    archive = package_torchserve(exported, scratch)
    workers = arguments.workers or os.cpu_count() or 1
    state, ports = scratch / "state", torchserve.Ports.free()
    server = torchserve.start(archive, state, probe=sample_picture(), ports=ports, workers=workers)
    try:
        pipeline = Pipeline.load(exported, threads=1)
        endpoint = endpoint_of(server, pipeline)
        seconds, soak_seconds = arguments.seconds, arguments.soak_seconds
        bench = Bench(
            endpoint, workers, pipeline, exported, archive, scratch, arguments.out, seconds, soak_seconds, say
        )
        asyncio.run(_warm_up(bench))
        yield bench
    finally:
        torchserve.TorchServe.stop(state)


async def _warm_up(bench: Bench) -> None:
    """What a server takes once, it should not take during a scenario."""
    async with under_load(bench.endpoint, bad_share=0.3):
        await bench.wait(10, "warming up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["torchserve"], default="torchserve")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="separated by commas; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("faults"))
    parser.add_argument("--seconds", type=float, default=30, help="how long a fault lasts")
    parser.add_argument("--soak-seconds", type=float, default=60)
    parser.add_argument("--workers", type=int, default=0, help="of the server; 0 for one per core")
    parser.add_argument("--model", default="efficientnet-lite0", help="a shipped name, or an exported model's folder")
    arguments = parser.parse_args()
    names = arguments.scenarios.split(",")
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"no such scenarios: {', '.join(sorted(unknown))}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="afd-faults-") as scratch, Progress(*columns) as progress:
        task = progress.add_task("")
        state = {"scenario": "the server"}

        def say(text: str) -> None:
            progress.update(task, description=f"{state['scenario']}: {text}")

        with serving(arguments, Path(scratch), say) as bench:
            for name in names:
                state["scenario"] = name
                rows[name] = run(bench, name)
                (arguments.out / "faults.json").write_text(json.dumps(facts() | {"scenarios": rows}, indent=1))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(", ".join(f"{key} {value}" for key, value in facts().items()), highlight=False)
    show(rows, console)
    sys.exit(any(row["complaints"] for row in rows.values()))


if __name__ == "__main__":
    main()
