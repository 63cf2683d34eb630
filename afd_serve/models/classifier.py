"""The deployed classifier: pixels and the JPEG's side in, logits out."""

import math
from typing import Final

import torch
from torch import Tensor, fx, nn

from afd_serve.dct import BLOCK
from afd_serve.models.afd import AfdNet
from afd_serve.models.attach import Insertion, KernelChange, attach, probe_shapes
from afd_serve.models.backbones import Backbone
from afd_serve.models.folding import fold_gates, fold_kernels, fold_norms
from afd_serve.models.gates import ChannelGate
from afd_serve.transforms import Preprocessing

__all__ = [
    "GUIDES",
    "INPUTS",
    "OUTPUTS",
    "AfdClassifier",
    "Normalize",
    "insertions",
    "kernel_changes",
    "map_site",
    "protected_trunk",
]

INPUTS: Final = ("rgb", "dequantized", "quant_tables", "geometry", "gate")
"""The classifier's inputs, in order; `AfdClassifier.forward` says what each holds."""

OUTPUTS: Final = ("logits", "drift")


_DESCRIPTOR: Final = "descriptor"

GUIDES: Final = ("shift", "fdm", _DESCRIPTOR)
"""What AFD gives the attach sites, see `AfdNet.guide`, and the drift descriptor."""


def insertions(afd: AfdNet) -> list[Insertion]:
    """The calls that an AFD module adds to its backbone, gates first."""
    config = afd.config
    gates = [Insertion(site.site, gate, ("shift",)) for site, gate in zip(config.gates, afd.gates, strict=True)]
    enhancers = [
        Insertion(site.site, enhancer, ("fdm", _DESCRIPTOR))
        for site, enhancer in zip(config.fe, afd.enhancers, strict=True)
    ]
    return gates + enhancers


def kernel_changes(afd: AfdNet) -> list[KernelChange]:
    """The corrections that an AFD module makes to its backbone's kernels."""
    return [KernelChange(site.site, adapter) for site, adapter in zip(afd.config.adapters, afd.adapters, strict=True)]


def map_site(backbone: Backbone) -> str:
    """The module whose output is mapped: the last block at stride 8, or at the stride nearest to it.

    The stem, where the backbone has no blocks that put out feature maps.
    """
    if not backbone.blocks:
        return backbone.stem
    shapes = probe_shapes(backbone.module, backbone.blocks, backbone.preprocessing.size)
    away = {block: abs(math.log2(shapes[block].stride / BLOCK)) for block in backbone.blocks}
    nearest = min(away.values())
    return [block for block in backbone.blocks if away[block] == nearest][-1]


def protected_trunk(backbone: Backbone, afd: AfdNet, until: str | None = None) -> fx.GraphModule:
    """A copy of the backbone with AFD in it, all that can be folded into its kernels; ``until`` as in `attach`."""
    folded = fold_norms(backbone.module)
    fold_kernels(folded, kernel_changes(afd))
    trunk = attach(folded, insertions(afd), inputs=GUIDES, until=until)
    if until is None:
        _sharpen(trunk, afd)
    fold_gates(trunk, [gate for gate in afd.gates if isinstance(gate, ChannelGate)])
    return trunk


def _sharpen(trunk: fx.GraphModule, afd: AfdNet) -> None:
    """Scale the logits, which are a trunk's first output or its only one."""
    trunk.add_module("afd_sharpness", afd.sharpness)
    (descriptor,) = (node for node in trunk.graph.nodes if node.op == "placeholder" and node.target == _DESCRIPTOR)
    output = trunk.graph.output_node()
    (returned,) = output.args
    logits = returned[0] if isinstance(returned, tuple) else returned
    with trunk.graph.inserting_before(output):
        scaled = trunk.graph.call_module("afd_sharpness", (logits, descriptor))
    output.args = ((scaled, *returned[1:]) if isinstance(returned, tuple) else scaled,)
    trunk.recompile()


class Normalize(nn.Module):
    """uint8 RGB [N, 3, S, S] to the backbone's float input."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """Normalize to float32 (x - mean) / std, in channels-last order in memory."""
        return ((rgb.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @torch.jit.unused
    def rows(self, pixels: Tensor) -> Tensor:
        """The same, [N, 3, S, S], from pixels as they were decoded, [N, S, S, 3].

        Row by row, because engines are slow at arrays whose last axis has three values, and transposed last, because
        that is where their convolutions want the channels.
        """
        size = pixels.shape[2]
        mean, std = self.mean.flatten().repeat(size), self.std.flatten().repeat(size)
        return ((pixels.flatten(2).float() - mean) / std).view(pixels.shape).permute(0, 3, 1, 2)


class AfdClassifier(nn.Module):
    """Normalization, AFD and the frozen backbone as one module.

    There are two trunks: the backbone as it is, for pictures that are good, and a folded copy with AFD in it.

    Args:
        backbone: Its module is shared, not changed; dropping the classifier detaches AFD.
        afd: The module for this backbone.
        until: A module of the backbone at which both trunks end: its output takes the place of the logits.
    """

    def __init__(self, backbone: Backbone, afd: AfdNet, *, until: str | None = None) -> None:
        super().__init__()
        self.normalize = Normalize(backbone.preprocessing)
        self.afd = afd
        self.bare = attach(backbone.module, until=until)
        self.protected = protected_trunk(backbone, afd, until)

    def forward(
        self, rgb: Tensor, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Classify N pictures.

        Args:
            rgb: uint8 [N, 3, S, S], the model's crop.
            dequantized: int16 [N, G, G, 192], G = ceil(S / 8): for each cell of the block grid the dequantized Y, Cb
                and Cr block that covers its centre, natural order.
            quant_tables: int32 [N, 3, 64], natural order, 1..65535.
            geometry: float32 [N, 3]: log2 of JPEG pixels per model pixel, log2 of horizontal and vertical chroma
                subsampling.
            gate: float32 [N]: 1 protects, 0 gives the bare backbone's logits bit for bit.

        Returns:
            Logits [N, K], or features [N, C, H', W'] where the trunks end early, and drift score [N], both float32. The
            drift score is the expected squared distance of the unprotected embedding from the clean one, in units of
            the embedding's variance.
        """
        descriptor = self.afd.describe(dequantized, quant_tables, geometry)
        logits = self._classify(self.normalize(rgb), dequantized, descriptor, gate > 0)
        return logits.float(), self.afd.drift_score(descriptor).float()

    @torch.jit.unused
    def closed(self, x: Tensor, descriptor: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` where every gate is closed, without a condition.

        Args:
            x: Normalized pictures, float32 [N, 3, S, S].
            descriptor: Their drift descriptors, [N, D].
        """
        return self._leave(x).float(), self.afd.drift_score(descriptor).float()

    @torch.jit.unused
    def opened(self, x: Tensor, dequantized: Tensor, descriptor: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` where every gate is open, without a condition; arguments as in `forward` and `closed`."""
        logits = self._protect(x, dequantized, descriptor)
        return logits.float(), self.afd.drift_score(descriptor).float()

    def _classify(self, x: Tensor, dequantized: Tensor, descriptor: Tensor, opened: Tensor) -> Tensor:
        if bool(opened.all()):
            return self._protect(x, dequantized, descriptor)
        if not bool(opened.any()):
            return self._leave(x)
        logits = self._leave(x)
        chosen = opened.nonzero()[:, 0]
        logits[chosen] = self._protect(x[chosen], dequantized[chosen], descriptor[chosen])
        return logits

    def _leave(self, x: Tensor) -> Tensor:
        logits: Tensor = self.bare(x)
        return logits

    def _protect(self, x: Tensor, dequantized: Tensor, descriptor: Tensor) -> Tensor:
        shift, fdm = self.afd.guide(descriptor, dequantized)
        logits: Tensor = self.protected(x, shift, fdm, descriptor)
        return logits
