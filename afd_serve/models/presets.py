"""The named shapes of AFD: which sites of a backbone they use."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from torch import nn

from afd_serve.config import PRESETS, AdapterSiteConfig, AfdConfig, FeSiteConfig, GateSiteConfig
from afd_serve.dct import BLOCK
from afd_serve.errors import AttachError, ConfigError
from afd_serve.models.attach import convolutions, probe_shapes
from afd_serve.models.backbones import Backbone
from afd_serve.models.recording import trace

__all__ = ["preset_config"]

_SHORTCUTS = ("downsample", "shortcut")


class _Parts(NamedTuple):
    """What a preset consists of; ``enhancers`` are its FE-Nets."""

    gates: bool
    adapters: bool
    enhancers: Callable[[Backbone], tuple[FeSiteConfig, ...]]


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
    if preset not in _PARTS:
        raise ConfigError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    parts = _PARTS[preset]
    return AfdConfig(
        preset=preset,
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        gates=_gates(backbone) if parts.gates else (),
        adapters=_adapters(backbone) if parts.adapters else (),
        fe=parts.enhancers(backbone),
    )


def _gates(backbone: Backbone) -> tuple[GateSiteConfig, ...]:
    calls = trace(backbone.module).calls
    norms = {name: _last_norm(backbone.module, calls, name) for name in (backbone.stem, *backbone.blocks)}
    shapes = probe_shapes(backbone.module, [*norms, *norms.values()], backbone.preprocessing.size)
    sites = [norm if shapes[norm].windows == 1 else name for name, norm in norms.items()]
    for site in sites:
        if shapes[site].windows > 1:
            raise AttachError(f"what leaves {site!r} are windows of a picture; choose the block that joins them again")
    return tuple(GateSiteConfig(site, shapes[site].channels) for site in sites)


def _last_norm(root: nn.Module, calls: Counter[str], name: str) -> str:
    """The last BatchNorm on the main path of a module: its output is linear and has the module's channels.

    One that is not called, or several times, is none; ``calls`` counts that, see `Trace`.
    """
    norms = [
        f"{name}.{inner}" if inner else name
        for inner, module in root.get_submodule(name).named_modules()
        if isinstance(module, nn.BatchNorm2d) and not any(part in inner for part in _SHORTCUTS)
    ]
    called = [norm for norm in norms if calls[norm] == 1]
    return called[-1] if called else name


_FULL_RANK_KERNEL: Final = 10_000
"""Values of the largest kernel whose correction has full rank."""

_RANK: Final = 1
"""Rank of the corrections of larger kernels."""

_GROUPED_AREA: Final = 9
"""Larger grouped kernels are left alone: fitting them takes most of a step's time and gains nothing to speak of."""


_SMALL_WIDTH: Final = 24
"""Channels of the full preset's FE-Net: kernel adapters do most of the work beside it."""

_FE_STRIDES: Final = (1, 2, 4, 8)
"""Strides at which an FE-Net can be, see `FeSiteConfig`."""


def _adapters(backbone: Backbone) -> tuple[AdapterSiteConfig, ...]:
    adapted = {
        name: conv.weight.shape
        for name, conv in convolutions(backbone.module).items()
        if name != backbone.embedding  # what it puts out is compared with nothing
        and conv.padding_mode == "zeros"
        and (conv.groups == 1 or math.prod(conv.kernel_size) <= _GROUPED_AREA)
    }
    return tuple(
        AdapterSiteConfig(name, (o, i, h, w), 0 if o * i * h * w <= _FULL_RANK_KERNEL else _RANK)
        for name, (o, i, h, w) in adapted.items()
    )


def _no_enhancer(_backbone: Backbone) -> tuple[FeSiteConfig, ...]:
    return ()


def _enhanced_stem(backbone: Backbone) -> tuple[FeSiteConfig, ...]:
    site = _last_norm(backbone.module, trace(backbone.module).calls, backbone.stem)
    shape = probe_shapes(backbone.module, [site], backbone.preprocessing.size)[site]
    if shape.stride not in _FE_STRIDES:
        raise AttachError(
            f"the stem of {backbone.name} has stride {shape.stride}, and an FE-Net works at {_FE_STRIDES}; use preset "
            "'default'"
        )
    return (FeSiteConfig(site, shape.channels, shape.stride),)


def _enhanced_block(backbone: Backbone) -> tuple[FeSiteConfig, ...]:
    shapes = probe_shapes(backbone.module, backbone.blocks, backbone.preprocessing.size)
    last = {shapes[block].stride: block for block in backbone.blocks}
    for stride in (BLOCK, BLOCK // 2):
        if stride in last:
            return (FeSiteConfig(last[stride], shapes[last[stride]].channels, stride, _SMALL_WIDTH, low_blocks=1),)
    raise AttachError(
        f"{backbone.name} has no block at stride 8 or 4 for an FE-Net (strides: {sorted(last)}); use preset 'default'"
    )


_PARTS: Final = {
    "default": _Parts(gates=True, adapters=True, enhancers=_no_enhancer),
    "lite": _Parts(gates=False, adapters=True, enhancers=_no_enhancer),
    "full": _Parts(gates=True, adapters=True, enhancers=_enhanced_block),
    "paper": _Parts(gates=False, adapters=False, enhancers=_enhanced_stem),
}
