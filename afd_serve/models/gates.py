"""Channel gates: a shift per channel, driven by the drift descriptor.

A gate that scaled its channels too would win back no more than a shift does, and the bias of a convolution takes a
shift for nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ChannelGate", "GateHeads"]


class GateHeads(nn.Module):
    """Turns the drift descriptor into the shifts of all gated channels at once; they start at zero.

    Args:
        descriptor: Length of the drift descriptor.
        channels: Channels at all sites together.
    """

    def __init__(self, descriptor: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, descriptor))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, descriptor: Tensor) -> Tensor:
        """Shifts [N, sum of C], site by site, from descriptors [N, D]."""
        return F.linear(descriptor, self.weight, self.bias)


class ChannelGate(nn.Module):
    """``x + shift`` at one site.

    Args:
        start: Where this site's shifts begin among those of all sites.
        channels: Channels at the site.
    """

    def __init__(self, start: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.start, self.end = start, start + channels

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Gate features [N, C, H, W] with the shifts of all sites, see `GateHeads`."""
        return x + shift[:, self.start : self.end, None, None].to(x.dtype)
