"""Kernel adapters: corrections to the backbone's own kernels, which cost nothing once they are fused.

An adapter is a branch beside one convolution of the frozen backbone. Both are linear in the same input, so the branch
is a correction of the kernel and the bias; for deployment it is added to a copy of them, as RepConv's branches are.
"""

import torch
from torch import Tensor, nn

from afd_serve.config import AdapterSiteConfig

__all__ = ["KernelAdapter"]


class KernelAdapter(nn.Module):
    """A correction, in units of each output channel's own kernel, that starts at zero.

    Args:
        config: The kernel's shape and the correction's rank.
    """

    def __init__(self, config: AdapterSiteConfig) -> None:
        super().__init__()
        outputs, *rest = config.shape
        inner = torch.Size(rest).numel()
        self.shape = config.shape
        self.shift = nn.Parameter(torch.zeros(outputs))
        self.left = nn.Parameter(torch.zeros(outputs, config.rank or inner))
        self.right = nn.Parameter(torch.randn(config.rank, inner)) if config.rank else None

    def forward(self, kernel: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The corrected kernel [O, I, kh, kw] and bias [O] of a convolution; ``bias`` None counts as zero."""
        correction = self.left if self.right is None else self.left @ self.right
        scale = kernel.flatten(1).square().mean(dim=1, keepdim=True).sqrt()
        corrected = kernel + (correction * scale).view(self.shape)
        return corrected, self.shift if bias is None else bias + self.shift
