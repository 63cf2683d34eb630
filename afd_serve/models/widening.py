"""Feature maps padded with unused channels, so that their number fills the processor's tiles.

Where tiles of 32 values are multiplied, a convolution that reads 144 channels takes four times as long as one that
reads 160, and a gate's shift is added to 24 channels in four times the time that it takes for 32. Nothing depends on
the unused channels: whoever reads them multiplies them by zero, which changes no answer.
"""

import copy
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from afd_serve.models.attach import has_hooks, owns_kernel
from afd_serve.models.folding import PARTS, GatedActivation, GatedConv, GateParts, uses

__all__ = ["widened"]

_Conv = nn.Conv2d | GatedConv

_Modules = Mapping[fx.Node, nn.Module]

_Convs = Mapping[fx.Node, _Conv]

_SUMS: Final = (operator.add, operator.iadd, torch.add)

_CHANNELWISE: Final = (nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.ZeroPad2d)


class _WideParts(nn.Module):
    """What `GateParts` cuts, for a single picture, each part with so many values more; which ones is of no matter.

    Args:
        parts: What it takes the place of.
        more: Values by a part's number.
    """

    bias: Tensor
    order: Tensor

    def __init__(self, parts: GateParts, more: Mapping[int, int]) -> None:
        super().__init__()
        self.channels = [channels + more.get(index, 0) for index, channels in enumerate(parts.channels)]
        first = torch.zeros(1, dtype=torch.int64)
        numbers = torch.split(torch.arange(len(parts.bias)), parts.channels)
        order = [torch.cat((part, first.expand(more.get(index, 0)))) for index, part in enumerate(numbers)]
        self.register_buffer("bias", parts.bias)
        self.register_buffer("order", torch.cat(order))

    def forward(self, shift: Tensor) -> list[Tensor]:
        """Biases [C] of all gated convolutions from the shifts [1, sum of C]."""
        return list(torch.split_with_sizes((self.bias + shift)[0][self.order], self.channels))


@dataclass
class _Maps:
    """Feature maps that have the same channels, because each is worked out channel by channel from another.

    Attributes:
        nodes: What makes them.
        writers: The convolutions among that whose kernels have a row per channel.
        readers: The convolutions that read all channels of them at once.
    """

    nodes: set[fx.Node] = field(default_factory=set)
    writers: set[fx.Node] = field(default_factory=set)
    readers: set[fx.Node] = field(default_factory=set)


def widened(trunk: fx.GraphModule, multiple: int) -> fx.GraphModule:
    """A copy of a trunk for single pictures in which feature maps have a multiple of so many channels.

    Maps keep the channels that they have where they would have twice as many or more, and where anything else than
    convolutions and what works channel by channel has to do with them.

    Args:
        trunk: With its norms folded.
        multiple: Of how many channels.
    """
    wide = copy.deepcopy(trunk)
    modules = {node: wide.get_submodule(str(node.target)) for node in wide.graph.nodes if node.op == "call_module"}
    convs = _convolutions(modules, uses(wide.graph))
    done: set[fx.Node] = set()
    more: dict[int, int] = {}
    for node in convs:
        maps = None if node in done else _maps_with(node, modules, convs)
        if maps is not None:
            done |= maps.nodes
            more |= _widen(maps, convs, multiple)
    if more:
        parts = wide.get_submodule(PARTS)
        assert isinstance(parts, GateParts)
        setattr(wide, PARTS, _WideParts(parts, more))
    return wide


def _convolutions(modules: _Modules, counts: Counter[str]) -> dict[fx.Node, _Conv]:
    """The calls of convolutions, of all channels at once or of each alone, whose kernels can be replaced."""
    parts = {node: module.conv if isinstance(module, GatedActivation) else module for node, module in modules.items()}
    return {
        node: conv
        for node, conv in parts.items()
        if isinstance(conv, _Conv) and counts[str(node.target)] == 1
        if conv.groups == 1 or _is_depthwise(conv)
        if isinstance(conv, GatedConv) or owns_kernel(conv)
    }


def _is_depthwise(conv: _Conv) -> bool:
    return conv.groups > 1 and conv.weight.shape[:2] == (conv.groups, 1)


def _maps_with(start: fx.Node, modules: _Modules, convs: _Convs) -> _Maps | None:
    """The maps that have the channels of what a convolution makes; None where they cannot have more."""
    maps, waiting = _Maps(), [start]
    while waiting:
        node = waiting.pop()
        if node in maps.nodes:
            continue
        maps.nodes.add(node)
        if node in convs:
            maps.writers.add(node)
            if _is_depthwise(convs[node]):
                waiting.append(node.all_input_nodes[0])
        elif _is_channelwise(node, modules):
            waiting += node.all_input_nodes
        else:
            return None
        for user in node.users:
            if user in convs and not _is_depthwise(convs[user]):
                maps.readers.add(user)
            else:
                waiting.append(user)
    return maps


def _is_channelwise(node: fx.Node, modules: _Modules) -> bool:
    if node.op == "call_function":
        return node.target in _SUMS
    module = modules.get(node)
    return isinstance(module, _CHANNELWISE) and not has_hooks(module)


def _widen(maps: _Maps, convs: _Convs, multiple: int) -> dict[int, int]:
    """Widen maps in place; how many values more each part of the gates' shifts must have, by its number."""
    channels = {convs[node].weight.shape[0] for node in maps.writers}
    more = -max(channels) % multiple
    if len(channels) > 1 or not 0 < more < max(channels):  # a sum may be of one channel and of many
        return {}
    for node in maps.writers:
        conv = convs[node]
        if _is_depthwise(conv):
            conv.groups += more
        _set(conv, "weight", F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, more)))
        if conv.bias is not None:
            _set(conv, "bias", F.pad(conv.bias, (0, more)))
    for node in maps.readers:
        _set(convs[node], "weight", F.pad(convs[node].weight, (0, 0, 0, 0, 0, more)))
    return {_part_of(node): more for node in maps.writers if isinstance(convs[node], GatedConv)}


def _part_of(node: fx.Node) -> int:
    """The number of the part of all shifts that a gated convolution takes."""
    part = node.args[1]
    assert isinstance(part, fx.Node)
    number = part.args[1]
    assert isinstance(number, int)
    return number


def _set(conv: _Conv, name: str, values: Tensor) -> None:
    setattr(conv, name, nn.Parameter(values.detach(), requires_grad=False))
