"""TensorFlow's padding, which depends on the size of what is padded: constant in a classifier of one input size."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from afd_serve.models.attach import grey_picture

__all__ = ["pad_constantly", "same_padding"]


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return the zeros before and after one axis so that the output has ``ceil(size / stride)`` places.

    The odd zero goes after, as in TensorFlow: an even ``size`` at stride 2 is padded asymmetrically.
    """
    total = max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def pad_constantly(module: nn.Module, size: int) -> None:
    """Replace, in place, timm's ``Conv2dSame`` by ``pad`` and ``conv`` that do the same for inputs of ``size`` pixels.

    It computes its padding from each input's shape, which `torch.fx` cannot record.
    """
    seen: dict[nn.Module, set[torch.Size]] = {}

    def see(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs:  # what takes its place has another name for a named one
            seen.setdefault(conv, set()).add(inputs[0].shape[2:])

    convs = [part for part in module.modules() if _is_timms(type(part))]
    if not convs:
        return
    handles = [conv.register_forward_pre_hook(see) for conv in convs]
    try:
        with torch.inference_mode():
            module(grey_picture(module, size))
    finally:
        for handle in handles:
            handle.remove()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and len(seen.get(child, ())) == 1:
                setattr(parent, name, _padded(child, *seen[child]))


def _is_timms(kind: type[nn.Module]) -> bool:
    """Whether it is timm's class: one of another's by that name may pad otherwise."""
    return kind.__name__ == "Conv2dSame" and kind.__module__.partition(".")[0] == "timm"


def _padded(conv: nn.Conv2d, shape: torch.Size) -> nn.Module:
    kernel, stride, dilation = ((sides[0], sides[1]) for sides in (conv.kernel_size, conv.stride, conv.dilation))
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, 0, dilation, conv.groups)
    plain.weight, plain.bias = conv.weight, conv.bias
    rows, columns = (same_padding(*axis) for axis in zip(shape, kernel, stride, dilation, strict=True))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if rows[0] == rows[1] and columns[0] == columns[1]:
        plain.padding = (rows[0], columns[0])
    else:
        layers["pad"] = nn.ZeroPad2d((*columns, *rows))
    layers["conv"] = plain
    return nn.Sequential(layers).train(conv.training)
