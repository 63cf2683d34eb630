"""The named shapes of AFD: which sites of a backbone they use."""

import math
from dataclasses import replace
from typing import Final

from torch import nn

from afd_serve.config import PRESETS, AdapterSiteConfig, AfdConfig, FeSiteConfig, GateSiteConfig
from afd_serve.dct import BLOCK
from afd_serve.errors import AttachError, ConfigError
from afd_serve.models.attach import SiteShape, convolutions, probe_shapes
from afd_serve.models.backbones import Backbone

__all__ = ["preset_config"]

_SHORTCUTS = ("downsample", "shortcut")


def preset_config(preset: str, backbone: Backbone) -> AfdConfig:
    """Choose the attach sites of a preset on a backbone.

    ``default`` has channel gates after the last normalization of the stem and of every block, and kernel adapters;
    ``lite`` has the adapters alone, which cost nothing; ``full`` adds to ``default`` a small FE-Net, after the last
    block at stride 8, where it needs no resampling; ``paper`` is one FE-Net before the stem's activation (arXiv
    2401.01724).

    Raises:
        ConfigError: No preset has this name.
        AttachError: The backbone has no usable site.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    size = backbone.preprocessing.size
    stem = _last_norm(backbone.module, backbone.stem)
    normed = [stem, *(_last_norm(backbone.module, block) for block in backbone.blocks)]
    gated = normed if preset in ("default", "full") else []
    shapes = probe_shapes(backbone.module, [*dict.fromkeys([*normed, *backbone.blocks])], size)
    sites = [stem] if preset == "paper" else _enhanced_blocks(backbone, shapes) if preset == "full" else []
    enhancers = [FeSiteConfig(site, shapes[site].channels, shapes[site].stride) for site in sites]
    if preset == "full":
        enhancers = [replace(enhancer, width=_SMALL_WIDTH, low_blocks=1) for enhancer in enhancers]
    return AfdConfig(
        preset=preset,
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        gates=tuple(GateSiteConfig(site, shapes[site].channels) for site in gated),
        adapters=() if preset == "paper" else _adapters(backbone.module),
        fe=tuple(enhancers),
    )


def _last_norm(root: nn.Module, name: str) -> str:
    """The last BatchNorm on the main path of a module: its output is linear and has the module's channels."""
    norms = [
        f"{name}.{inner}" if inner else name
        for inner, module in root.get_submodule(name).named_modules()
        if isinstance(module, nn.BatchNorm2d) and not any(part in inner for part in _SHORTCUTS)
    ]
    return norms[-1] if norms else name


_FULL_RANK_KERNEL: Final = 10_000
"""Values of the largest kernel whose correction has full rank."""

_RANK: Final = 3
"""Rank of the corrections of larger kernels."""

_GROUPED_AREA: Final = 9
"""Larger grouped kernels are left alone: fitting them takes most of a step's time and gains nothing to speak of."""


_SMALL_WIDTH: Final = 24
"""Channels of the full preset's FE-Net: kernel adapters do most of the work beside it."""


def _adapters(module: nn.Module) -> tuple[AdapterSiteConfig, ...]:
    adapted = {
        name: conv.weight.shape
        for name, conv in convolutions(module).items()
        if conv.padding_mode == "zeros" and (conv.groups == 1 or math.prod(conv.kernel_size) <= _GROUPED_AREA)
    }
    return tuple(
        AdapterSiteConfig(name, (o, i, h, w), 0 if o * i * h * w <= _FULL_RANK_KERNEL else _RANK)
        for name, (o, i, h, w) in adapted.items()
    )


def _enhanced_blocks(backbone: Backbone, shapes: dict[str, SiteShape]) -> list[str]:
    last = {shapes[block].stride: block for block in backbone.blocks}
    for stride in (BLOCK, BLOCK // 2):
        if stride in last:
            return [last[stride]]
    raise AttachError(
        f"{backbone.name} has no block at stride 8 or 4 for an FE-Net (strides: {sorted(last)}); use preset 'default'"
    )
