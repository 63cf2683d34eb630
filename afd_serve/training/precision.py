"""Fitting in bfloat16, where it is faster: everywhere but in strided depthwise convolutions."""

from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from afd_serve.engines import torchscript
from afd_serve.models.attach import conv_arguments

__all__ = ["autocast_to_bfloat16", "strided_depthwise_in_float32"]

_Sides = int | tuple[int, int]

_CONV2D: Final = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
"""Arguments of `torch.nn.functional.conv2d`, in order, with their defaults."""


def autocast_to_bfloat16(wanted: bool) -> torch.autocast:
    """A context in which operations run in bfloat16, if that is wanted and the CPU has it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted and torch.bfloat16 in torchscript.precisions())


def _float32_conv(
    x: Tensor, kernel: Tensor, bias: Tensor | None, stride: _Sides, padding: _Sides, dilation: _Sides, groups: int
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        inputs = x.float().contiguous(memory_format=torch.channels_last)
        return F.conv2d(inputs, kernel, bias, stride, padding, dilation, groups)


def _suffers(stride: Any, groups: Any) -> bool:
    """Whether a convolution is strided and grouped; one that computes its stride or groups as it runs is not known."""
    sides = (stride,) if isinstance(stride, int) else stride
    known = isinstance(groups, int) and isinstance(sides, (tuple, list)) and all(isinstance(s, int) for s in sides)
    return known and groups > 1 and max(sides) > 1


def _conv_call(node: fx.Node) -> dict[str, Any]:
    """All arguments of a call of `torch.nn.functional.conv2d`, by name."""
    return _CONV2D | dict(zip(_CONV2D, node.args, strict=False)) | node.kwargs


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
        elif node.op == "call_function" and node.target is F.conv2d:
            arguments = _conv_call(node)
            if _suffers(arguments["stride"], arguments["groups"]):
                node.target, node.args, node.kwargs = _float32_conv, tuple(arguments.values()), {}
    graph_module.recompile()
    return graph_module
