"""The named shapes of AFD: which sites of a backbone they use."""

from torch import nn

from afd_serve.config import PRESETS, AfdConfig, FeSiteConfig, GateSiteConfig
from afd_serve.dct import BLOCK
from afd_serve.errors import AttachError, ConfigError
from afd_serve.models.attach import SiteShape, probe_shapes
from afd_serve.models.backbones import Backbone

__all__ = ["preset_config"]

_SHORTCUTS = ("downsample", "shortcut")


def preset_config(preset: str, backbone: Backbone) -> AfdConfig:
    """Choose the attach sites of a preset on a backbone.

    ``paper`` is one FE-Net before the stem's activation (arXiv 2401.01724); ``lite`` has channel gates only, after the
    last normalization of the stem and of every block; ``default`` adds an FE-Net after the last block at stride 4 and
    the last at stride 8.

    Raises:
        ConfigError: No preset has this name.
        AttachError: The backbone has no usable site.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    size = backbone.preprocessing.size
    stem = _last_norm(backbone.module, backbone.stem)
    gated = [] if preset == "paper" else [stem, *(_last_norm(backbone.module, block) for block in backbone.blocks)]
    shapes = probe_shapes(backbone.module, [*dict.fromkeys([stem, *gated, *backbone.blocks])], size)
    sites = [stem] if preset == "paper" else _enhanced_blocks(backbone, shapes) if preset == "default" else []
    return AfdConfig(
        preset=preset,
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        gates=tuple(GateSiteConfig(site, shapes[site].channels) for site in gated),
        fe=tuple(FeSiteConfig(site, shapes[site].channels, shapes[site].stride) for site in sites),
    )


def _last_norm(root: nn.Module, name: str) -> str:
    """The last BatchNorm on the main path of a module: its output is linear and has the module's channels."""
    norms = [
        f"{name}.{inner}" if inner else name
        for inner, module in root.get_submodule(name).named_modules()
        if isinstance(module, nn.BatchNorm2d) and not any(part in inner for part in _SHORTCUTS)
    ]
    return norms[-1] if norms else name


def _enhanced_blocks(backbone: Backbone, shapes: dict[str, SiteShape]) -> list[str]:
    last = {shapes[block].stride: block for block in backbone.blocks}
    sites = [last[stride] for stride in (BLOCK // 2, BLOCK) if stride in last]
    if not sites:
        raise AttachError(
            f"{backbone.name} has no block at stride 4 or 8 for an FE-Net (strides: {sorted(last)}); use preset 'lite'"
        )
    return sites
