"""What each part of AFD is worth: one short fit per row, the same pictures, steps and seed for all.

    python benchmarks/ablation.py --images FOLDERS --labelled LABELLED.csv --split dev --out DIR [--rows gates,default]

Rows that are done lie in DIR/rows and are not computed again; an interrupted fit goes on. The table is printed and
written to DIR/ablation.md. The distance is that of the pooled embedding from the clean picture's, with AFD over
without, mean over the held-out pictures; the recovered share is that of top-1, protocol A.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from afd_serve.config import AfdConfig, FeSiteConfig, FitConfig
from afd_serve.evaluation.dataset import LabelledPicture, load_labelled
from afd_serve.evaluation.metrics import bootstrap_means, interval, recovered_share
from afd_serve.evaluation.protocols import Condition, compress
from afd_serve.models.attach import probe_shapes
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.fde import FREQUENCIES
from afd_serve.models.presets import preset_config
from afd_serve.preprocess import ClassifierInputs, prepare, stack
from afd_serve.runs import write_atomically
from afd_serve.training.fit import Trainer
from afd_serve.training.losses import FeatureLoss
from afd_serve.training.pictures import find_pictures

CLEAN = Condition("clean")
COMPRESSED = tuple(Condition("A", quality) for quality in (25, 15, 10, 7))
BATCH = 16


class TablesOnly(Trainer):
    """The descriptor sees the tables and the geometry, not how large the coefficients are."""

    def calibrate(self) -> FeatureLoss:
        loss = super().calibrate()
        self.afd.fde.statistics_std[:FREQUENCIES] = math.inf
        return loss


class EmbeddingOnly(Trainer):
    """No distances of intermediate features."""

    def compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        return self.loss.embedding_weight * self.loss.embedding_distance(student[-1], teacher[-1]).mean()


class WithLogits(Trainer):
    """Kullback-Leibler divergence of the classes' probabilities on top."""

    def compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        ours, theirs = (logits.float().log_softmax(dim=1) for logits in (student[0], teacher[0]))
        return super().compare(student, teacher) + F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


class WithoutScales(Trainer):
    """Adapters correct kernels and shift biases, and leave the channels' scales at one."""

    def calibrate(self) -> FeatureLoss:
        freeze(self.afd.adapters, "input_scale", "output_scale")
        return super().calibrate()


class WithoutCorrections(Trainer):
    """Adapters scale channels and shift biases, and correct no kernel's values."""

    def calibrate(self) -> FeatureLoss:
        freeze(self.afd.adapters, "left", "right")
        return super().calibrate()


class EveryPair(Trainer):
    """Fits on what the gate leaves alone, too."""

    def calibrate(self) -> FeatureLoss:
        self.data.recipe = replace(self.data.recipe, only_open=False)
        return super().calibrate()


def freeze(module: nn.Module, *names: str) -> None:
    """Leave all parameters with one of these last names as they are."""
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in names:
            parameter.requires_grad_(False)


Change = Callable[[AfdConfig, Backbone], AfdConfig]


@dataclass(frozen=True)
class Variant:
    """One row: a preset, changed in shape or in how it is fitted."""

    title: str
    preset: str
    change: Change = lambda config, _backbone: config
    trainer: type[Trainer] = Trainer


def with_rank(rank: int) -> Change:
    """Another rank for the kernels whose correction is not of full rank."""

    def change(config: AfdConfig, _backbone: Backbone) -> AfdConfig:
        return replace(config, adapters=tuple(replace(s, rank=s.rank and rank) for s in config.adapters))

    return change


def at_stride_4(config: AfdConfig, backbone: Backbone) -> AfdConfig:
    shapes = probe_shapes(backbone.module, backbone.blocks, backbone.preprocessing.size)
    last = [block for block in backbone.blocks if shapes[block].stride == 4][-1]
    return replace(config, fe=(FeSiteConfig(last, shapes[last].channels, 4),))


VARIANTS = {
    "gates": Variant("gates only", "default", lambda config, _: replace(config, adapters=())),
    "lite": Variant("adapters only (`lite`)", "lite"),
    "default": Variant("gates + adapters (`default`)", "default"),
    "full": Variant("+ FE-Net at stride 8 (`full`)", "full"),
    "stride-4": Variant("+ FE-Net at stride 4 instead", "full", at_stride_4),
    "tables-only": Variant("`full`, descriptor from the tables only", "full", trainer=TablesOnly),
    "embedding-only": Variant("`full`, embedding loss only", "full", trainer=EmbeddingOnly),
    "kl": Variant("`full`, with KL on logits", "full", trainer=WithLogits),
    "no-scales": Variant("`default`, adapters without scales", "default", trainer=WithoutScales),
    "no-corrections": Variant("`default`, adapters without corrections", "default", trainer=WithoutCorrections),
    "every-pair": Variant("`default`, fitted on closed gates' pictures too", "default", trainer=EveryPair),
    "rank-3": Variant("`default`, adapters of rank 3 instead of 1", "default", with_rank(3)),
    "rank-8": Variant("`default`, adapters of rank 8 instead of 1", "default", with_rank(8)),
}


@dataclass(frozen=True)
class Outcome:
    """What one row gave; ``recovered`` is a share with the ends of its 95% interval."""

    title: str
    parameters: int
    distance: float
    recovered: tuple[float, float, float]


def main() -> None:
    arguments = parse()
    rows = arguments.rows.split(",") if arguments.rows else list(VARIANTS)
    unknown = set(rows) - set(VARIANTS)
    if unknown:
        raise SystemExit(f"unknown rows {sorted(unknown)}; there are {', '.join(VARIANTS)}")
    backbone = load_backbone(arguments.backbone)
    outcomes = [outcome_of(name, arguments, backbone) for name in rows]
    table = "\n".join(markdown(outcomes, arguments))
    (arguments.out / "ablation.md").write_text(table + "\n")
    Console().print(table, markup=False, highlight=False)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folders of unlabelled pictures, separated by commas")
    parser.add_argument("--labelled", type=Path, required=True, help="a folder per class, or a CSV file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", help="rows of the CSV file to keep")
    parser.add_argument("--limit", type=int, default=250, help="so many labelled pictures")
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--rows", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=128, help="side of the crops for fitting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def outcome_of(name: str, arguments: argparse.Namespace, backbone: Backbone) -> Outcome:
    """Read a row, or compute it."""
    key = f"{name}-{arguments.steps}-{arguments.seed}-{backbone.fingerprint[:12]}-{inputs_digest(arguments)}"
    path = arguments.out / "rows" / f"{key}-{arguments.limit}.json"
    if not path.exists():
        outcome = compute(VARIANTS[name], arguments, backbone, arguments.out / "fits" / key)
        write_atomically(path, lambda target: target.write_text(json.dumps(asdict(outcome))))
    values = json.loads(path.read_text())
    return Outcome(**values | {"recovered": tuple(values["recovered"])})


def inputs_digest(arguments: argparse.Namespace) -> str:
    """A few letters for what a fit depends on besides what the names of rows spell out."""
    folders = [str(Path(folder).resolve()) for folder in arguments.images.split(",")]
    facts = [folders, str(arguments.labelled.resolve()), arguments.split, arguments.size]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def compute(variant: Variant, arguments: argparse.Namespace, backbone: Backbone, out: Path) -> Outcome:
    labelled = load_labelled(arguments.labelled, backbone.labels, split=arguments.split)
    config = FitConfig(
        backbone=arguments.backbone,
        images=tuple(Path(folder) for folder in arguments.images.split(",")),
        out=out,
        preset=variant.preset,
        steps=arguments.steps,
        sizes=(arguments.size,),
        seed=arguments.seed,
        workers=arguments.workers,
        exclude=tuple(picture.path for picture in labelled),
    )
    torch.manual_seed(config.seed)
    shape = variant.change(preset_config(variant.preset, backbone), backbone)
    trainer = variant.trainer(config, backbone, find_pictures(config.images, config.exclude), shape)
    Console().print(f"[bold]{variant.title}")
    trainer.run()
    held_out = load_labelled(arguments.labelled, backbone.labels, split=arguments.split, limit=arguments.limit)
    return measure(variant.title, trainer, backbone, held_out)


@torch.no_grad()
def measure(title: str, trainer: Trainer, backbone: Backbone, pictures: Sequence[LabelledPicture]) -> Outcome:
    """Distance and hits of the averaged weights on pictures that took no part in the fit."""
    trainer.afd.load_state_dict(trainer.average.state_dict())
    starts = track(range(0, len(pictures), BATCH), "measuring")
    parts = [measure_batch(trainer, backbone, pictures[start : start + BATCH]) for start in starts]
    hits, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    resampled = bootstrap_means(hits)
    recovered = interval(float(recovered_share(*hits.mean(axis=0))), recovered_share(*resampled.T))
    left_alone = sum(parameter.numel() for parameter in trainer.afd.parameters() if not parameter.requires_grad)
    trainer.average.reparameterize()
    return Outcome(
        title,
        parameters=sum(parameter.numel() for parameter in trainer.average.parameters()) - left_alone,
        distance=float(distances[:, 1].sum() / distances[:, 0].sum()),
        recovered=(recovered.value, recovered.low, recovered.high),
    )


def measure_batch(
    trainer: Trainer, backbone: Backbone, pictures: Sequence[LabelledPicture]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each picture its hits [N, 3], clean, without and with AFD, and its distances [N, 2], without and with."""
    labels = torch.tensor([picture.label for picture in pictures])
    clean = inputs_of(pictures, CLEAN, backbone)
    logits, *_, wanted = trainer.teacher(trainer.normalize(clean.rgb))
    hits, distances = [(logits.argmax(dim=1) == labels).double()], []
    for condition in COMPRESSED:
        inputs = inputs_of(pictures, condition, backbone)
        rgb, descriptor = trainer.normalize(inputs.rgb), trainer.afd.describe(*inputs[1:4])
        for outputs in (
            trainer.teacher(rgb),
            trainer.student(rgb, *trainer.afd.guide(descriptor, inputs.dequantized), descriptor),
        ):
            hits.append((outputs[0].argmax(dim=1) == labels).double())
            distances.append(trainer.loss.embedding_distance(outputs[-1], wanted).double())
    bare, protected = (torch.stack(hits[first::2]).mean(dim=0) for first in (1, 2))
    means = [torch.stack(distances[first::2]).mean(dim=0) for first in (0, 1)]
    return torch.stack([hits[0], bare, protected], dim=1).numpy(), torch.stack(means, dim=1).numpy()


def inputs_of(pictures: Sequence[LabelledPicture], condition: Condition, backbone: Backbone) -> ClassifierInputs:
    preprocessing = backbone.preprocessing
    files = (
        compress(picture.path.read_bytes(), condition, preprocessing, picture_id=picture.id, seed=0)
        for picture in pictures
    )
    return stack([prepare(file, preprocessing, crop=condition.crop) for file in files], [True] * len(pictures))


def markdown(outcomes: Sequence[Outcome], arguments: argparse.Namespace) -> Iterator[str]:
    yield "| variant | parameters | embedding distance, with / without | recovered (A) |"
    yield "| --- | --: | --: | --: |"
    for outcome in outcomes:
        share, low, high = (f"{100 * value:.0f}" for value in outcome.recovered)
        yield f"| {outcome.title} | {outcome.parameters:,} | {outcome.distance:.3f} | {share}% [{low}, {high}] |"
    yield ""
    qualities = ", ".join(str(condition.level) for condition in COMPRESSED)
    yield (
        f"{arguments.backbone}, {arguments.steps} steps at {arguments.size} px, seed {arguments.seed}; "
        f"up to {arguments.limit} held-out pictures of {arguments.labelled.name}, QF {qualities}."
    )


if __name__ == "__main__":
    main()
