"""What deployment computes beforehand: norms, adapters and gates become a copy's kernels and biases."""

import copy
import operator
from collections import Counter
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from afd_serve.models.adapters import KernelAdapter
from afd_serve.models.attach import KernelChange, has_hooks, owns_kernel
from afd_serve.models.gates import ChannelGate
from afd_serve.models.recording import trace

__all__ = ["PARTS", "GateParts", "GatedActivation", "GatedConv", "fold_gates", "fold_kernels", "fold_norms", "uses"]


def fold_norms(backbone: nn.Module) -> nn.Module:
    """A copy of an inference-mode backbone with every BatchNorm folded into the convolution before it.

    The norms stay as identities, so that every attach site keeps its name. The rounding is that of `torch.jit.freeze`.
    Norms stay as they are where they or the convolution are called more than once or have hooks, where they have no
    running statistics, and where the kernel is computed anew at each call (`torch.nn.utils.parametrize`).
    """
    folded = copy.deepcopy(backbone)
    modules = dict(folded.named_modules())
    graph = trace(folded).graph
    counts = uses(graph)
    for node in graph.nodes:
        pair = _convolution_and_norm(node, modules, counts)
        if pair is not None:
            _fold_norm(*pair)
            _replace(folded, pair[1], nn.Identity())
    return folded


def uses(graph: fx.Graph) -> Counter[str]:
    """How often a graph calls each module or reads a tensor of it; keyed by the module's first name."""
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    reads = [str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"]
    return Counter(calls + reads)


def _convolution_and_norm(
    node: fx.Node, modules: dict[str, nn.Module], counts: Counter[str]
) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """A convolution and the norm behind it that a node calls, if nothing else would notice that they become one."""
    before = node.args[0] if node.op == "call_module" and node.args else None
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
        return None
    conv, norm = modules[str(before.target)], modules[str(node.target)]
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        return None
    alone = counts[str(before.target)] == counts[str(node.target)] == 1
    plain = owns_kernel(conv) and norm.running_mean is not None and not has_hooks(norm)
    return (conv, norm) if alone and plain else None


def _fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias)
    _set_kernel(conv, weight, bias)


def _set_kernel(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach(), requires_grad=False)


def _replace(root: nn.Module, module: nn.Module, other: nn.Module) -> None:
    """Put another module in the place of one, under each of its names."""
    names = [name for name, child in root.named_modules(remove_duplicate=False) if child is module]
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(root.get_submodule(parent), leaf, other)


@torch.no_grad()
def fold_kernels(backbone: nn.Module, changes: Sequence[KernelChange]) -> None:
    """Apply changes of kernels to a backbone in place; give it a copy."""
    for change in changes:
        conv = backbone.get_submodule(change.site)
        if not isinstance(conv, nn.Conv2d) or not isinstance(change.module, KernelAdapter):
            raise TypeError(f"{change.site} is no convolution, or its change is no adapter")
        _set_kernel(conv, *change.module(conv.weight, conv.bias))


class GateParts(nn.Module):
    """Cuts the shifts of all gates into what the convolutions before them take, for all of them at once.

    Args:
        biases: For each gate the bias [C] of the convolution before it.
    """

    bias: Tensor

    def __init__(self, biases: Sequence[Tensor]) -> None:
        super().__init__()
        self.channels = [len(bias) for bias in biases]
        self.register_buffer("bias", torch.cat(list(biases)))

    def forward(self, shift: Tensor) -> list[Tensor]:
        """Each gate's part of the shifts of all [N, sum of C], see `GateHeads`.

        For a single picture that is a bias [C] instead of the convolution's own, for several a shift [N, C, 1, 1].
        """
        if shift.shape[0] == 1:
            return list(torch.split_with_sizes((self.bias + shift)[0], self.channels))
        return list(torch.split_with_sizes(shift[:, :, None, None], self.channels, dim=1))


class GatedConv(nn.Module):
    """A convolution and the channel gate behind it, which for a single picture is no more than another bias."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.padding = [int(side) for side in conv.padding]

    def forward(self, x: Tensor, part: Tensor) -> Tensor:
        """Features [N, O, H', W'] of features [N, I, H, W] and the gate's part, see `GateParts`."""
        y = self.convolve(x, part if part.dim() == 1 else self.bias)
        return y if part.dim() == 1 else y + part

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution alone."""
        return F.conv2d(x, self.weight, bias, self.stride, self.padding, self.dilation, self.groups)


class GatedActivation(nn.Module):
    """A convolution, the channel gate behind it, and the activation behind that.

    An engine can join an activation to a convolution, but not across the condition: so each case has its own.
    """

    def __init__(self, conv: GatedConv, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.activation = activation

    def forward(self, x: Tensor, part: Tensor) -> Tensor:
        """What `GatedConv` gives, activated."""
        if part.dim() == 1:
            one: Tensor = self.activation(self.conv.convolve(x, part))
            return one
        several: Tensor = self.activation(self.conv(x, part))
        return several


PARTS: Final = "afd_parts"
"""The name of a trunk's `GateParts`, each of which a call of ``getitem`` hands to a gated convolution."""


def fold_gates(trunk: fx.GraphModule, gates: Sequence[ChannelGate]) -> None:
    """Let the convolutions before gates do the gates' work; a gate with none before it stays.

    Args:
        trunk: A folded backbone with gates attached; changed in place. It may end before the last of them.
        gates: All gates, in order.
    """
    modules = dict(trunk.named_modules())
    calls = {modules[str(node.target)]: node for node in trunk.graph.nodes if node.op == "call_module"}
    befores = [_convolution_before(calls[gate].args[0], modules) if gate in calls else None for gate in gates]
    convs = [None if before is None else GatedConv(before[1]) for before in befores]
    zeros = [torch.zeros(gate.channels) for gate in gates]
    biases = [zero if conv is None else conv.bias for conv, zero in zip(convs, zeros, strict=True)]
    parts: fx.Node | None = None
    for index, (gate, before, conv) in enumerate(zip(gates, befores, convs, strict=True)):
        if before is None or conv is None:
            continue
        call = calls[gate]
        parts = parts or _cut_shifts(trunk, call.args[1], GateParts(biases))
        with trunk.graph.inserting_before(call):
            part = trunk.graph.call_function(operator.getitem, (parts, index))
        call.args = (before[0].args[0], part)
        activation = _take_activation(call, modules)
        setattr(trunk, str(call.target), conv if activation is None else GatedActivation(conv, activation))
    trunk.graph.eliminate_dead_code()
    trunk.delete_all_unused_submodules()
    trunk.recompile()


def _cut_shifts(trunk: fx.GraphModule, shift: Argument, parts: GateParts) -> fx.Node:
    trunk.add_module(PARTS, parts)
    with trunk.graph.inserting_before(next(node for node in trunk.graph.nodes if node.op != "placeholder")):
        return trunk.graph.call_module(PARTS, (shift,))


def _take_activation(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The activation that alone reads a node's output, removed from the graph."""
    reader = next(iter(node.users))
    module = modules.get(str(reader.target)) if reader.op == "call_module" else None
    if len(node.users) > 1 or not isinstance(module, (nn.ReLU, nn.ReLU6)):
        return None
    reader.replace_all_uses_with(node)
    reader.graph.erase_node(reader)
    return module


def _convolution_before(node: object, modules: dict[str, nn.Module]) -> tuple[fx.Node, nn.Conv2d] | None:
    """The convolution whose output a node is, if nothing else reads that, and the call of it."""
    while isinstance(node, fx.Node) and node.op == "call_module" and len(node.users) == 1:
        module = modules[str(node.target)]
        if isinstance(module, nn.Conv2d):
            plain = module.padding_mode == "zeros" and not isinstance(module.padding, str) and not has_hooks(module)
            return (node, module) if plain else None
        if not isinstance(module, nn.Identity):
            return None
        node = node.args[0]
    return None
