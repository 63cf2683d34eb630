"""Mixed load for long, and what each process holds meanwhile."""

import asyncio
import json
import time

import numpy as np
from machine import memory
from matplotlib.figure import Figure

from fault_scenarios.bench import Bench, Outcome
from fault_scenarios.traffic import Traffic, ready_workers, recovered, under_load

__all__ = ["soak"]

SAMPLES = 120
SETTLED = 0.5
"""The share of the time after which memory should no longer grow: the slope is taken from there on."""

Series = dict[int, list[tuple[float, float]]]


async def soak(bench: Bench) -> Outcome:
    """Mixed load with 5 % bad input; memory of each process over time."""
    names = {pid: f"worker {index}" for index, pid in enumerate(sorted(await ready_workers(bench.endpoint.server)), 1)}
    names[bench.endpoint.server.pid] = "frontend"
    async with under_load(bench.endpoint, bad_share=0.05) as traffic:
        series = await _watch(bench, traffic)
        recovery = await recovered(bench.endpoint, bench.workers, ())
    series = {pid: points for pid, points in series.items() if pid in names}
    figures: dict[str, float | int | str] = {
        "p50, ms": traffic.tally.latency(0.5),
        "p99, ms": traffic.tally.latency(0.99),
    }
    for pid, points in series.items():
        figures[f"{names[pid]}: MiB at first, at last"] = f"{points[0][1]:.0f}, {points[-1][1]:.0f}"
        figures[f"{names[pid]}: MiB per minute, second half"] = round(_slope(points), 2)
    _draw(series, names, bench)
    complaints = [f"{traffic.tally.failed.total()} failed"] if traffic.tally.failed else []
    return Outcome(traffic.tally, recovery, figures, complaints)


async def _watch(bench: Bench, traffic: Traffic) -> Series:
    """Minutes and MiB, by process."""
    start, series = time.monotonic(), Series()
    while (passed := time.monotonic() - start) < bench.soak_seconds:
        for pid, size in (await asyncio.to_thread(memory, bench.endpoint.server.pid)).items():
            series.setdefault(pid, []).append((passed / 60, size))
        await bench.wait(bench.soak_seconds / SAMPLES, f"{traffic.tally.requests} requests in {passed:.0f} s")
    return series


def _slope(points: list[tuple[float, float]]) -> float:
    minutes, sizes = np.array(points[int(SETTLED * len(points)) :]).T
    return float(np.polyfit(minutes, sizes, 1)[0])


def _draw(series: Series, names: dict[int, str], bench: Bench) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for pid, points in series.items():
        axes.plot(*zip(*points, strict=True), label=names[pid])
    axes.set_xlabel("minutes of load")
    axes.set_ylabel("MiB (proportional set size)")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(bench.out / "soak.png", dpi=120)
    (bench.out / "soak.json").write_text(json.dumps({names[pid]: points for pid, points in series.items()}))
