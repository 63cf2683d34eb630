"""What AFD costs: the deployed classifier against the bare backbone, same engine, one thread, interleaved.

    python benchmarks/afd_latency.py [--model efficientnet-lite0] [--rounds 100] [--batch 1] [--cpu-time]

TorchScript in float32, as it is deployed, and where the CPU has it with the trunks of both in bfloat16.
`afd_serve.evaluation.latency` says how it is measured. Run it on a quiet machine; on a busy one, `--cpu-time` leaves
out the waiting.
"""

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from afd_serve.engines import torchscript
from afd_serve.evaluation.latency import Forms, Latency, bfloat16_forms, deployed_forms, measure
from afd_serve.evaluation.metrics import Interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet-lite0", help="a shipped name or a fitted run's folder")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="time on the CPU instead of by the clock on the wall")
    arguments = parser.parse_args()
    forms: dict[str, Forms] = {"float32": deployed_forms(arguments.model, arguments.batch)}
    if torch.bfloat16 in torchscript.precisions():
        forms["bfloat16"] = bfloat16_forms(arguments.model, arguments.batch)
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    show({precision: measure(form, arguments.rounds, clock) for precision, form in forms.items()})


def show(found: dict[str, Latency]) -> None:
    table = Table("precision", "bare, ms", "closed, times bare", "open, times bare")
    for precision, latency in found.items():
        table.add_row(precision, f"{latency.bare_ms:.2f}", _times(latency.closed), _times(latency.opened))
    console = Console()
    console.print(table)
    console.print("Milliseconds per picture; ratios of medians, with 95% bootstrap intervals over rounds.")


def _times(ratio: Interval) -> str:
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


if __name__ == "__main__":
    main()
