"""From which quality on a picture is better left alone, by how far the classifier sees it reduced.

    python benchmarks/gate.py --images FOLDERS [--model efficientnet-lite0] [--pictures 100] --out DIR

Photographs, at least twice and better four times as large as the model sees them, are reduced to multiples of its size
and compressed. Each cell is the KL divergence of the protected classifier's probabilities from those of the
uncompressed picture, over that of the bare classifier's: below 1, AFD helps. Writes DIR/gate.md, and DIR/gate.png with
the line above which the gate stays closed.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from afd_serve.evaluation.protocols import encode
from afd_serve.pipeline import Pipeline
from afd_serve.preprocess import prepare, stack
from afd_serve.quality import harmless_from
from afd_serve.training.pictures import find_pictures

REDUCTIONS = (0.7, 1.0, 1.2, 1.45, 2.0, 2.8, 4.0)
QUALITIES = (15, 25, 30, 35, 40, 50, 60, 65, 70, 75, 80, 85, 90)
LEAST_CONTRAST = 25.0
"""Standard deviation of the grey levels; less is a drawing, a scan or a sky."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pipeline = Pipeline.load(arguments.model, threads=1)
    preprocessing = pipeline.signature.preprocessing
    short_side = preprocessing.size / preprocessing.crop_fraction
    paths = np.random.default_rng(0).permutation(find_pictures(arguments.images))
    sums, seen = np.zeros((len(REDUCTIONS), len(QUALITIES), 2)), np.zeros(len(REDUCTIONS), int)
    least = round(2 * short_side)
    for photograph in track(photographs(paths, least), total=arguments.pictures):
        for row, reduction in enumerate(REDUCTIONS):
            scale = reduction * short_side / min(photograph.size)
            if scale <= 1:
                scene = photograph.resize([round(scale * side) for side in photograph.size], Image.Resampling.LANCZOS)
                sums[row] += divergences(pipeline, scene)
                seen[row] += 1
        if seen.max() == arguments.pictures:
            break
    if not seen.any():
        sys.exit(f"none of {len(paths)} pictures is a colour photograph whose shorter side has {least} pixels or more")
    arguments.out.mkdir(parents=True, exist_ok=True)
    ratios = sums[..., 1] / sums[..., 0]
    table = as_table(ratios, seen)
    (arguments.out / "gate.md").write_text(table)
    draw(ratios).savefig(arguments.out / "gate.png", dpi=110, bbox_inches="tight")
    print(table)


def photographs(paths: NDArray[np.object_], least_side: int) -> Iterator[Image.Image]:
    """The colour pictures that are large enough and no drawings."""
    for path in paths:
        try:
            with Image.open(path) as picture:
                suitable = picture.mode == "RGB" and min(picture.size) >= least_side
                if suitable and np.std(picture.reduce(8).convert("L")) >= LEAST_CONTRAST:
                    yield picture.copy()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue


def divergences(pipeline: Pipeline, scene: Image.Image) -> NDArray[np.float64]:
    """KL divergence [qualities, 2] of a compressed picture's probabilities, without AFD and with it."""
    original = io.BytesIO()
    scene.save(original, "BMP")
    clean = log_probabilities(pipeline, original.getvalue(), protect=False)
    compressed = [encode(scene, quality) for quality in QUALITIES]
    return np.array(
        [
            [
                float((clean.exp() * (clean - log_probabilities(pipeline, data, protect=on))).sum())
                for on in (False, True)
            ]
            for data in compressed
        ]
    )


def log_probabilities(pipeline: Pipeline, data: bytes, *, protect: bool) -> Tensor:
    logits, _ = pipeline.logits(stack([prepare(data, pipeline.signature.preprocessing)], [protect]))
    return torch.log_softmax(logits[0], dim=0)


def as_table(ratios: NDArray[np.float64], seen: NDArray[np.int_]) -> str:
    """Rows of reductions; cells that the gate keeps closed are in brackets."""
    lines = [f"| reduced | pictures | {' | '.join(f'QF {quality}' for quality in QUALITIES)} |"]
    lines.append("|" + " --: |" * (2 + len(QUALITIES)))
    for reduction, row, count in zip(REDUCTIONS, ratios, seen, strict=True):
        cells = [
            f"({ratio:.2f})" if reduction >= harmless_from(quality) else f"{ratio:.2f}"
            for quality, ratio in zip(QUALITIES, row, strict=True)
        ]
        lines.append(f"| {reduction} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(ratios: NDArray[np.float64]) -> Figure:
    """The table as a heat map, blue where AFD helps, with the gate's line."""
    figure = Figure(figsize=(8, 5))
    axes = figure.add_subplot(xscale="log", xlabel="picture pixels per model pixel", ylabel="QF")
    mesh = axes.pcolormesh(REDUCTIONS, QUALITIES, ratios.T, norm=LogNorm(1 / 4, 4), cmap="RdBu_r", shading="nearest")
    qualities = np.arange(min(QUALITIES), 86)
    axes.plot([harmless_from(int(quality)) for quality in qualities], qualities, color="black")
    axes.annotate("gate closed", (2.4, 78), weight="bold", color="white")
    axes.annotate("gate open", (0.72, 30), weight="bold")
    axes.set_xticks(REDUCTIONS, [f"{reduction:g}" for reduction in REDUCTIONS])
    axes.minorticks_off()
    axes.set_xlim(0.65, 4.4)
    bar = figure.colorbar(mesh, label="divergence with AFD / without")
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"], minor=False)
    bar.minorticks_off()
    return figure


if __name__ == "__main__":
    main()
