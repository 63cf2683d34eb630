"""What deployment computes beforehand: norms, adapters and gates go into the kernels of a copy of the backbone."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from afd_serve.models.adapters import KernelAdapter
from afd_serve.models.attach import KernelChange, trace
from afd_serve.models.gates import ChannelGate

__all__ = ["GatedConv", "fold_gates", "fold_kernels", "fold_norms"]


def fold_norms(backbone: nn.Module) -> nn.Module:
    """A copy of an inference-mode backbone with every BatchNorm folded into the convolution before it.

    The norms stay as identities, so that every attach site keeps its name. The rounding is that of `torch.jit.freeze`.
    """
    folded = copy.deepcopy(backbone)
    modules = dict(folded.named_modules())
    for node in trace(folded)[0].nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if isinstance(norm, nn.BatchNorm2d) else None
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        conv = modules.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(conv, nn.Conv2d):
            _fold_norm(conv, norm)
            _replace(folded, str(node.target), nn.Identity())
    return folded


def _fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded")
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    _set_kernel(conv, weight, bias)


def _set_kernel(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach(), requires_grad=False)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


@torch.no_grad()
def fold_kernels(backbone: nn.Module, changes: Sequence[KernelChange]) -> None:
    """Apply changes of kernels to a backbone in place; give it a copy."""
    for change in changes:
        conv = backbone.get_submodule(change.site)
        if not isinstance(conv, nn.Conv2d) or not isinstance(change.module, KernelAdapter):
            raise TypeError(f"{change.site} is no convolution, or its change is no adapter")
        _set_kernel(conv, *change.module(conv.weight, conv.bias))


class GatedConv(nn.Module):
    """A convolution, the channel gate behind it, and the activation behind that.

    For a single picture the gate goes into the kernel and the bias, which is less work than to pass once more over the
    features. The activation is in here because an engine can join it to the convolution, but not across the condition.
    """

    def __init__(self, conv: nn.Conv2d, gate: ChannelGate, activation: nn.Module) -> None:
        super().__init__()
        if conv.bias is None:
            raise ValueError("only a convolution with a bias can take a gate; fold the norm first")
        self.kernel, self.bias = conv.weight, conv.bias
        self.gate = gate
        self.activation = activation
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.padding = [int(side) for side in conv.padding]
        self.folds = True

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Features [N, O, H', W'] of features [N, I, H, W], gated by the pictures' whole modulation."""
        if modulation.shape[0] != 1 or not self.folds:  # not of x: a pad before it would have to be computed
            several: Tensor = self.activation(self.gate(self._convolve(x, self.kernel, self.bias), modulation))
            return several
        scale, shift = self.gate.part(modulation[0])
        kernel, bias = self.kernel * scale[:, None, None, None], torch.addcmul(shift, self.bias, scale)
        one: Tensor = self.activation(self._convolve(x, kernel, bias))
        return one

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, kernel, bias, self.stride, self.padding, self.dilation, self.groups)


_WORTH_FOLDING = 8
"""Features per value of the kernel from which folding a gate saves time."""


def fold_gates(trunk: fx.GraphModule, features: dict[str, int]) -> None:
    """Join gates with the convolutions before them, where the features are much larger than the kernel.

    Args:
        trunk: A folded backbone with gates attached; changed in place.
        features: For each gate's module name in the trunk, how many values leave it for one picture.
    """
    modules = dict(trunk.named_modules())
    for node in list(trunk.graph.nodes):
        gate = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(gate, ChannelGate):
            continue
        conv_node = _convolution_before(node.args[0], modules)
        conv = None if conv_node is None else modules[str(conv_node.target)]
        if conv_node is None or not isinstance(conv, nn.Conv2d) or conv.bias is None or conv.padding_mode != "zeros":
            continue
        if features[str(node.target)] >= _WORTH_FOLDING * conv.weight.numel():
            node.args = (conv_node.args[0], *node.args[1:])
            setattr(trunk, str(node.target), GatedConv(conv, gate, _take_activation(node, modules)))
    trunk.graph.eliminate_dead_code()
    trunk.delete_all_unused_submodules()
    trunk.recompile()


def _take_activation(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module:
    """The activation that alone reads a node's output, removed from the graph; an identity where there is none."""
    reader = next(iter(node.users))
    module = modules.get(str(reader.target)) if reader.op == "call_module" else None
    if len(node.users) > 1 or not isinstance(module, (nn.ReLU, nn.ReLU6)):
        return nn.Identity()
    reader.replace_all_uses_with(node)
    reader.graph.erase_node(reader)
    return module


def _convolution_before(node: object, modules: dict[str, nn.Module]) -> fx.Node | None:
    while isinstance(node, fx.Node) and node.op == "call_module" and len(node.users) == 1:
        module = modules[str(node.target)]
        if isinstance(module, nn.Conv2d):
            return node
        if not isinstance(module, nn.Identity):
            return None
        node = node.args[0]
    return None
