"""Find the stem, the blocks and the embedding of a classifier: by names that are known, or in its graph."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from afd_serve.errors import AttachError
from afd_serve.models.attach import grey_picture
from afd_serve.models.bottlenecks import find_bottlenecks
from afd_serve.models.recording import Trace, trace

__all__ = ["Sites", "feature_maps", "find_sites", "logits_of"]


@dataclass(frozen=True)
class Sites:
    """Where AFD can attach: qualified module names, ``blocks`` in order of execution.

    ``stem`` and each of ``blocks`` put out a feature map ``[N, C, H, W]``; ``embedding`` is the last layer, whose
    *input* is the pooled embedding ``[N, D]``, or becomes that when it is averaged over places.
    """

    stem: str
    blocks: tuple[str, ...]
    embedding: str


@dataclass(frozen=True)
class _Family:
    """Names that the stem's last module may have, and the class names of the blocks (empty: no spatial blocks)."""

    stems: tuple[str, ...]
    blocks: frozenset[str]


_FAMILIES = (
    # ResNet, ResNeXt, Wide ResNet: torchvision and timm
    _Family(("relu", "act1"), frozenset({"BasicBlock", "Bottleneck"})),
    # MobileNetV2, MobileNetV3, EfficientNet, ConvNeXt: torchvision
    _Family(("features.0",), frozenset({"InvertedResidual", "MBConv", "FusedMBConv", "CNBlock"})),
    # timm puts the activation into the BatchNorm or behind it
    _Family(
        ("act1", "bn1"),
        frozenset({"DepthwiseSeparableConv", "InvertedResidual", "EdgeResidual", "ConvBnAct", "GhostBottleneck"}),
    ),
    # RegNet of both libraries, RepVGG and ConvNeXt of timm, EfficientNet-Lite of our own
    _Family(
        ("stem",),
        frozenset({"ResBottleneckBlock", "Bottleneck", "RepVggBlock", "ConvNeXtBlock", "InvertedResidual"}),
    ),
    # Vision transformers: only the patch embedding is a feature map
    _Family(("conv_proj", "patch_embed.proj"), frozenset()),
)


def find_sites(module: nn.Module, classes: int, size: int) -> Sites:
    """Find the attach sites of a classifier.

    Those of a ResNet, MobileNet, EfficientNet, ConvNeXt, RegNet, RepVGG or ViT are known by name, all others' are where
    `find_bottlenecks` says, and so are those of a network that has such names and does something else with them.

    Args:
        module: a classifier in eval mode, RGB float ``[N, 3, size, size]`` to logits ``[N, classes]``.
        classes: length of the logits.
        size: side of the input in pixels.

    Raises:
        AttachError: there are none, or no layer gives the logits; the message names the modules that could be used. Or
            the classifier cannot be recorded as a graph.
    """
    recorded = trace(module)
    places = {node: place for place, node in enumerate(recorded.graph.nodes)}
    embedding = _last_layer(module, recorded, places, classes)
    for family in _FAMILIES:
        for stem, blocks in _matches(module, family):
            if (blocks or not family.blocks) and _are_on_the_way(recorded, (stem, *blocks)):
                ordered = sorted(blocks, key=lambda block: places[recorded.outputs[block]])
                if not ordered or places[recorded.outputs[stem]] < places[recorded.outputs[ordered[0]]]:
                    return Sites(stem, tuple(ordered), embedding)
    found = [name for name in find_bottlenecks(module, recorded, size) if name != embedding]
    if not found:
        raise AttachError(
            f"{type(module).__name__} has no convolution whose output alone goes on, so name its stem and blocks "
            "yourself (a `file:` backbone may return them); modules that put out feature maps: "
            f"{_candidates(module, size)}"
        )
    return Sites(found[0], tuple(found[1:]), embedding)


def _matches(module: nn.Module, family: _Family) -> Iterator[tuple[str, tuple[str, ...]]]:
    named = dict(module.named_modules())
    for stem in family.stems:
        if stem in named:
            found = (name for name, child in named.items() if type(child).__name__ in family.blocks)
            yield stem, tuple(name for name in found if name != stem and not name.startswith(f"{stem}."))


def _are_on_the_way(recorded: Trace, sites: Sequence[str]) -> bool:
    """Whether all are called, and only once: what leaves the second call is somewhere else in the network."""
    return all(recorded.calls[site] == 1 and site in recorded.outputs for site in sites)


def logits_of(layer: nn.Module) -> int | None:
    """How many logits a layer puts out if it is a classifier's last; None where it is of no kind that can be."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) else None


def _last_layer(module: nn.Module, recorded: Trace, places: dict[fx.Node, int], classes: int) -> str:
    """The one as wide as the logits whose output is nearest to them, of several the one that is called last.

    Auxiliary heads, whose outputs are reduced, weighted or dropped before they are added, are farther away.
    """
    named = dict(module.named_modules())
    steps = _steps_to_the_end(recorded.graph)
    fitting = [n for n, node in recorded.outputs.items() if logits_of(named[n]) == classes and node in steps]
    if not fitting:
        linear = {name: child for name, child in named.items() if isinstance(child, nn.Linear)}
        seen = ", ".join(f"{name} ({child.out_features} outputs)" for name, child in linear.items()) or "none"
        raise AttachError(
            f"no linear layer or 1x1 convolution that is called puts out {classes} logits, one per label; linear "
            f"layers: {seen}" + _on_torchscript(named)
        )
    return min(fitting, key=lambda n: (steps[recorded.outputs[n]], -places[recorded.outputs[n]]))


def _steps_to_the_end(graph: fx.Graph) -> dict[fx.Node, int]:
    """How many nodes lie between a node and what the classifier puts out, at least; what it drops is left out."""
    steps: dict[fx.Node, int] = {}
    front, count = {node for node in graph.nodes if node.op == "output"}, 0
    while front:
        steps |= dict.fromkeys(front, count)
        front, count = {source for node in front for source in node.all_input_nodes} - steps.keys(), count + 1
    return steps


def _on_torchscript(named: dict[str, nn.Module]) -> str:
    """A hint for the error of a classifier that holds another one in TorchScript."""
    closed = next((name for name, child in named.items() if isinstance(child, torch.jit.ScriptModule)), None)
    return "" if closed is None else f"; {closed} is TorchScript, whose layers are not seen: use what it was made from"


def _candidates(module: nn.Module, size: int, limit: int = 24) -> str:
    """The outermost modules, whose names are shortest, so that a deep network's blocks are among them."""
    shapes = feature_maps(module, size)
    outermost = set(sorted(shapes, key=lambda name: name.count("."))[:limit])
    shown = [f"{name} ({'x'.join(map(str, shape))})" for name, shape in shapes.items() if name in outermost]
    if len(shapes) > limit:
        shown.append(f"and {len(shapes) - limit} more")
    return ", ".join(shown) or "none"


@torch.inference_mode()
def feature_maps(module: nn.Module, size: int) -> dict[str, tuple[int, int, int]]:
    """Run the classifier once and return ``{name: (C, H, W)}`` of each feature map, in order of execution.

    Args:
        module: takes RGB float ``[1, 3, size, size]``; left as it was.
        size: side of the input in pixels.
    """
    shapes: dict[str, tuple[int, int, int]] = {}
    handles = []
    for name, child in module.named_modules():

        def record(_module: nn.Module, _inputs: object, output: object, name: str = name) -> None:
            if name and isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1:
                shapes[name] = (output.shape[1], output.shape[2], output.shape[3])

        handles.append(child.register_forward_hook(record))
    try:
        module(grey_picture(module, size))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
