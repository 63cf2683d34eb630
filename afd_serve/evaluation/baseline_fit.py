"""Fit what AFD is compared with, on AFD's own batches: no labels, the same crops, the same compressions."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from afd_serve.config import FitConfig
from afd_serve.dct import BLOCK
from afd_serve.errors import ConfigError
from afd_serve.evaluation.baselines import ArCnn, DnCnn, FeatureRestorer
from afd_serve.models.attach import attach, probe_shapes
from afd_serve.models.backbones import Backbone
from afd_serve.models.classifier import Normalize
from afd_serve.models.folding import fold_norms
from afd_serve.progress import Step
from afd_serve.training.data import CompressedPairs, Pair, Recipe
from afd_serve.training.fit import rate_share, training_sizes
from afd_serve.training.precision import autocast_to_bfloat16

__all__ = ["BASELINES", "adapted_norms", "fit_baseline", "has_norms", "restorer"]

BASELINES: Final = ("arcnn", "dncnn", "ddp")
"""Names of the methods that `fit_baseline` fits."""

_RATE: Final = 1e-3
_NORM_BATCHES: Final = 16
_PATCH: Final = 64
"""Side of the patches for pixel losses; both papers train on patches."""


def restorer(name: str, backbone: Backbone) -> nn.Module:
    """An unfitted baseline network, for pixels or for the features of the backbone's stem."""
    if name == "ddp":
        shapes = probe_shapes(backbone.module, [backbone.stem], backbone.preprocessing.size)
        return FeatureRestorer(shapes[backbone.stem].channels)
    return ArCnn() if name == "arcnn" else DnCnn()


def fit_baseline(
    name: str, backbone: Backbone, pictures: Sequence[Path], config: FitConfig, step: Step | None = None
) -> nn.Module:
    """Fit one baseline.

    Args:
        name: One of `BASELINES`: ``arcnn`` and ``dncnn`` minimize the squared error of pixels, ``ddp`` that of the
            stem's features, each channel in units of its variance.
        backbone: Gives the preprocessing, and the features for ``ddp``.
        pictures: Fitting pictures.
        config: Steps, batch size, sizes, workers and the seed; the rest concerns AFD only.
        step: Called after each step.

    Returns:
        The network in evaluation mode.
    """
    torch.manual_seed(config.seed)
    module = restorer(name, backbone)
    data = CompressedPairs(
        pictures,
        backbone.preprocessing,
        sizes=training_sizes(config, backbone),
        batch_size=config.batch_size,
        batches=config.steps,
        seed=config.seed,
    )
    loss = _FeatureLoss(module, backbone) if name == "ddp" else _PixelLoss(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    for done, pair in enumerate(_loader(data, config.workers)):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * rate_share(done, config)
        optimizer.zero_grad()
        loss(pair, config.bf16).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step:
            step(done + 1, config.steps)
    return module.eval().requires_grad_(False)


def _loader(data: CompressedPairs, workers: int) -> Iterator[Pair]:
    yield from DataLoader(data, batch_size=None, num_workers=workers)


@dataclass
class _PixelLoss:
    module: nn.Module

    def __call__(self, pair: Pair, bf16: bool) -> Tensor:
        compressed, clean = _patches(pair.inputs.rgb, pair.clean)
        with autocast_to_bfloat16(bf16):
            restored = self.module(compressed)
        # In units of the mean squared error at about QF 10, so that the clipping of gradients means what it means
        # for features.
        return F.mse_loss(restored.float(), clean) / 0.003


def _patches(*pixels: Tensor) -> Iterator[Tensor]:
    """The same patch of each batch, uint8 [N, 3, S, S], as floats in 0..1: these networks see no further anyway."""
    side = pixels[0].shape[-1]
    top, left = (BLOCK * int(torch.randint(max(side - _PATCH, 0) // BLOCK + 1, ())) for _ in range(2))
    for batch in pixels:
        patch = batch[:, :, top : top + _PATCH, left : left + _PATCH].float() / 255.0
        yield patch.contiguous(memory_format=torch.channels_last)


class _FeatureLoss:
    def __init__(self, module: nn.Module, backbone: Backbone) -> None:
        self.module = module
        self.normalize = Normalize(backbone.preprocessing)
        self.shallow = _shallow(backbone)
        self.scale: Tensor | None = None

    def __call__(self, pair: Pair, bf16: bool) -> Tensor:
        with autocast_to_bfloat16(bf16):
            with torch.no_grad():
                clean, compressed = (self.shallow(self.normalize(x)) for x in (pair.clean, pair.inputs.rgb))
            restored = self.module(compressed)
        if self.scale is None:
            self.scale = 1 / clean.float().var(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)
        error: Tensor = (restored.float() - clean.float()).square() * self.scale
        return error.mean()


def _shallow(backbone: Backbone) -> fx.GraphModule:
    """The backbone up to its stem."""
    graph_module = attach(fold_norms(backbone.module), taps=[backbone.stem])
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    output.args = (output.args[0][1],)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def has_norms(backbone: Backbone) -> bool:
    """Whether there is any BatchNorm whose statistics could be estimated anew."""
    return any(isinstance(module, nn.BatchNorm2d) for module in backbone.module.modules())


@torch.no_grad()
def adapted_norms(
    backbone: Backbone, pictures: Sequence[Path], qualities: Sequence[int], config: FitConfig, step: Step | None = None
) -> list[nn.Module]:
    """Copies of a backbone, one per quality, with BatchNorm statistics of crops compressed at that quality.

    Source: Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS
    2020, with statistics of the fitting pictures instead of the tested ones.

    Raises:
        ConfigError: The backbone has no BatchNorm.
    """
    if not has_norms(backbone):
        raise ConfigError(f"{backbone.name} has no BatchNorm to adapt; leave the row batchnorm out")
    normalize, trunks = Normalize(backbone.preprocessing), []
    for number, quality in enumerate(qualities):
        trunk = copy.deepcopy(backbone.module)
        norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        for done, pair in enumerate(_loader(_at_quality(backbone, pictures, quality, config), config.workers)):
            trunk(normalize(pair.inputs.rgb))
            if step:
                step(number * _NORM_BATCHES + done + 1, len(qualities) * _NORM_BATCHES)
        trunks.append(trunk.eval())
    return trunks


def _at_quality(backbone: Backbone, pictures: Sequence[Path], quality: int, config: FitConfig) -> CompressedPairs:
    recipe = Recipe(
        p_turn=0,
        p_mix=0,
        p_native=0,
        p_clean=0,
        p_mild=0,
        p_again=0,
        p_resave=0,
        p_full_chroma=0,
        p_other_codec=0,
        p_colour=0,
        heavy=(quality, quality),
        only_open=False,
    )
    return CompressedPairs(
        pictures,
        backbone.preprocessing,
        sizes=[backbone.preprocessing.size],
        batch_size=config.batch_size,
        batches=_NORM_BATCHES,
        seed=config.seed,
        recipe=recipe,
    )
