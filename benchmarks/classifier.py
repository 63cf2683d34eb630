"""What AFD costs: the deployed classifier against the bare backbone, same engine, one thread, interleaved.

    python benchmarks/classifier.py [--model efficientnet-lite0] [--rounds 40] [--batch 1]

The bare backbone is scripted and frozen as the deployed classifier is. Each round times every form once, in turn, so
that whatever else the machine does falls on all of them alike; the ratio of medians is what counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from afd_serve.export import deploy, example_inputs, freeze
from afd_serve.models.backbones import load_backbone
from afd_serve.models.classifier import Normalize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet-lite0", help="a shipped name or a fitted run's folder")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times = measure(forms(arguments.model, arguments.batch), arguments.rounds)
    show(times, arguments.batch)


def forms(model: str, batch: int) -> dict[str, Callable[[], object]]:
    """What is timed, the bare backbone first."""
    deployed = deploy(model)
    backbone = load_backbone(deployed.signature.backbone)
    bare = freeze(torch.nn.Sequential(Normalize(backbone.preprocessing), backbone.module))
    inputs = example_inputs(backbone.preprocessing.size, batch)
    opened = inputs._replace(gate=torch.ones(batch))
    closed = inputs._replace(gate=torch.zeros(batch))
    return {
        "bare backbone": lambda: bare(inputs.rgb),
        "AFD, gate closed": lambda: deployed.module(*closed),
        "AFD, gate open": lambda: deployed.module(*opened),
    }


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` times in turn, after warming up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for index in range(rounds + 5):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if index >= 5:
                    times[name].append(time.perf_counter() - start)
    return times


def show(times: dict[str, list[float]], batch: int) -> None:
    table = Table("form", "ms per picture (median)", "best", "times the bare backbone (median)", "(best)")
    reference = next(iter(times.values()))
    for name, values in times.items():
        table.add_row(
            name,
            f"{statistics.median(values) / batch * 1e3:.2f}",
            f"{min(values) / batch * 1e3:.2f}",
            f"{statistics.median(values) / statistics.median(reference):.3f}",
            f"{min(values) / min(reference):.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
