"""Channel gates: a scale and a shift per channel, driven by the drift descriptor."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ChannelGate", "GateHeads"]


class GateHeads(nn.Module):
    """Turns the drift descriptor into the modulation of all gated channels at once.

    The modulation of a picture is [gamma of site 0, beta of site 0, gamma of site 1, ...]; it starts at zero and is
    exactly zero for a closed gate, which makes every gate the exact identity.
    """

    def __init__(self, descriptor: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * channels, descriptor))
        self.bias = nn.Parameter(torch.zeros(2 * channels))

    def forward(self, descriptor: Tensor, gate: Tensor) -> Tensor:
        """Modulation [N, 2 * channels] from a descriptor [N, D] and gates [N]."""
        return F.linear(descriptor, self.weight, self.bias) * gate[:, None]


class ChannelGate(nn.Module):
    """``x * (1 + gamma) + beta`` at one site.

    Args:
        start: Where this site's gammas begin in the modulation; its betas follow them.
        channels: Channels at the site.
    """

    def __init__(self, start: int, channels: int) -> None:
        super().__init__()
        self.start = start
        self.channels = channels

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Gate features [N, C, H, W] with the whole modulation [N, 2 * sum of C]."""
        gamma = modulation[:, self.start : self.start + self.channels, None, None].to(x.dtype)
        beta = modulation[:, self.start + self.channels : self.start + 2 * self.channels, None, None].to(x.dtype)
        return torch.addcmul(beta, x, 1 + gamma)
