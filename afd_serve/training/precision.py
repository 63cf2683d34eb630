"""Fitting in bfloat16, where it is faster: everywhere but in strided depthwise convolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from afd_serve.engines import torchscript
from afd_serve.models.attach import conv_arguments

__all__ = ["autocast_to_bfloat16", "strided_depthwise_in_float32"]

_Sides = tuple[int, int]


def autocast_to_bfloat16(wanted: bool) -> torch.autocast:
    """What computes in bfloat16 inside its ``with`` block, if that is wanted and the CPU has it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted and torch.bfloat16 in torchscript.precisions())


def _float32_conv(
    x: Tensor, kernel: Tensor, bias: Tensor | None, stride: _Sides, padding: _Sides, dilation: _Sides, groups: int
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        inputs = x.float().contiguous(memory_format=torch.channels_last)
        return F.conv2d(inputs, kernel, bias, stride, padding, dilation, groups)


def _suffers(stride: Sequence[int], groups: int) -> bool:
    return groups > 1 and max(stride) > 1


def strided_depthwise_in_float32(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Let strided grouped convolutions compute in float32 whatever autocast says; changed in place and returned.

    On a CPU their backward pass is ten times slower in bfloat16 than in float32.
    """
    graph, modules = graph_module.graph, dict(graph_module.named_modules())
    for node in list(graph.nodes):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros" and _suffers(conv.stride, conv.groups):
            with graph.inserting_before(node):
                call = graph.call_function(_float32_conv, conv_arguments(node, conv))
            node.replace_all_uses_with(call)
            graph.erase_node(node)
        elif node.op == "call_function" and node.target is F.conv2d and _suffers(node.args[3], node.args[-1]):
            node.target = _float32_conv
    graph_module.recompile()
    return graph_module
