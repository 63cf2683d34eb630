"""Channel gates: a scale and a shift per channel, driven by the drift descriptor."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ChannelGate", "GateHeads"]


class GateHeads(nn.Module):
    """Turns the drift descriptor into the modulation of all gated channels at once.

    The modulation of a picture is [scales of site 0, shifts of site 0, scales of site 1, ...]. It starts at scale one
    and shift zero.

    Args:
        descriptor: Length of the drift descriptor.
        channels: Channels at each site.
    """

    identity: Tensor

    def __init__(self, descriptor: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * sum(channels), descriptor))
        self.bias = nn.Parameter(torch.zeros(2 * sum(channels)))
        identity = [torch.cat((torch.ones(count), torch.zeros(count))) for count in channels]
        self.register_buffer("identity", torch.cat([torch.empty(0), *identity]), persistent=False)

    def forward(self, descriptor: Tensor) -> Tensor:
        """Modulation [N, 2 * sum of channels] from descriptors [N, D]."""
        return F.linear(descriptor, self.weight, self.bias + self.identity)


class ChannelGate(nn.Module):
    """``x * scale + shift`` at one site.

    Args:
        start: Where this site's scales begin in the modulation; its shifts follow them.
        channels: Channels at the site.
    """

    def __init__(self, start: int, channels: int) -> None:
        super().__init__()
        self.start = start
        self.channels = channels

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Gate features [N, C, H, W] with the whole modulation of the pictures, see `GateHeads`."""
        scale, shift = self.part(modulation.to(x.dtype))
        return torch.addcmul(shift[..., None, None], x, scale[..., None, None])

    def part(self, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """This site's scales and shifts [..., C], of the whole modulation [..., 2 * sum of channels]."""
        end = self.start + self.channels
        return modulation[..., self.start : end], modulation[..., end : end + self.channels]
