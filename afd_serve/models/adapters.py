"""Kernel adapters: changes of the backbone's own kernels, which cost nothing once they are made in a copy of them.

The backbone's convolutions stay frozen. Beside them an adapter learns what their kernels and biases should be instead,
and what it learned becomes the kernel of the deployed copy, as RepConv's branches do.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from afd_serve.config import AdapterSiteConfig

__all__ = ["KernelAdapter"]


class KernelAdapter(nn.Module):
    """A scale for each channel that a kernel reads or writes, a correction of its values, and a shift of its bias.

    All of them start at zero, which changes nothing. The kernel W [O, I, kh, kw] and the bias b [O] become
    ``(1 + output_scale) * (W + correction) * (1 + input_scale)`` and ``b + shift``: two numbers per channel move whole
    feature maps, which the correction alone would have to learn value by value.

    Args:
        config: The kernel's shape and the correction's rank.
    """

    unit: Final[float] = 0.3
    """Size of a correction of 1, in root mean squares of an output channel's kernel: it learns slower than a scale."""

    def __init__(self, config: AdapterSiteConfig) -> None:
        super().__init__()
        outputs, inputs, *_ = self.shape = config.shape
        inner = math.prod(config.shape[1:])
        self.shift = nn.Parameter(torch.zeros(outputs))
        self.output_scale = nn.Parameter(torch.zeros(outputs))
        # Of a kernel that reads one channel this would be the other scale once more.
        self.input_scale = nn.Parameter(torch.zeros(inputs)) if inputs > 1 else None
        self.left = nn.Parameter(torch.zeros(outputs, config.rank or inner))
        self.right = nn.Parameter(torch.randn(config.rank, inner)) if config.rank else None

    def forward(self, kernel: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The adapted kernel [O, I, kh, kw] and bias [O] of a convolution; ``bias`` None counts as zero."""
        correction = self.left if self.right is None else self.left @ self.right
        unit = self.unit * kernel.flatten(1).square().mean(dim=1, keepdim=True).sqrt()
        adapted = (kernel + (correction * unit).view(self.shape)) * (1 + self.output_scale).view(-1, 1, 1, 1)
        if self.input_scale is not None:
            adapted = adapted * (1 + self.input_scale).view(-1, 1, 1)
        return adapted, self.shift if bias is None else bias + self.shift
