"""What AFD costs: the deployed classifier against the bare backbone, same engine, one thread, interleaved.

    python benchmarks/afd_latency.py [--model efficientnet-lite0] [--engine torchscript] [--rounds 100] [--batch 1]

In every engine that is installed, in float32 and where engine and CPU have it in bfloat16; the bare backbone as it
would be deployed there. `afd_serve.evaluation.latency` says how it is measured. Run it on a quiet machine; on a busy
one, `--cpu-time` leaves out the waiting.
"""

import argparse
import importlib.util
import time

import torch
from rich.console import Console
from rich.table import Table

from afd_serve.engines import ENGINES, torchscript
from afd_serve.evaluation.latency import Latency, exported_forms, measure
from afd_serve.evaluation.metrics import Interval

INSTALLED = [engine for engine in ENGINES if engine == "torchscript" or importlib.util.find_spec(engine)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet-lite0", help="a shipped name or a fitted run's folder")
    parser.add_argument("--engine", choices=INSTALLED, action="append", help="may be given again; all by default")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="time on the CPU instead of by the clock on the wall")
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    show(
        {
            choice: measure(exported_forms(arguments.model, *choice, arguments.batch), arguments.rounds, clock)
            for choice in choices(arguments.engine or INSTALLED)
        }
    )


def choices(engines: list[str]) -> list[tuple[str, str]]:
    """Engines and precisions that this CPU computes in."""
    native = ["float32", *(["bfloat16"] if torch.bfloat16 in torchscript.precisions() else [])]
    return [(name, precision) for name in engines for precision in native if precision in ENGINES[name].precisions]


def show(found: dict[tuple[str, str], Latency]) -> None:
    table = Table("engine", "precision", "bare, ms", "closed, times bare", "open, times bare")
    for choice, latency in found.items():
        table.add_row(*choice, f"{latency.bare_ms:.2f}", _times(latency.closed), _times(latency.opened))
    console = Console()
    console.print(table)
    console.print("Milliseconds per picture; ratios of medians, with 95% bootstrap intervals over rounds.")


def _times(ratio: Interval) -> str:
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


if __name__ == "__main__":
    main()
