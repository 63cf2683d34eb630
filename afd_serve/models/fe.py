"""FE-Net: the small U-Net of RepConv blocks that maps degraded features back, guided by the FDM."""

from torch import Tensor, nn
from torch.nn import functional as F

from afd_serve.config import FeSiteConfig
from afd_serve.dct import BLOCK
from afd_serve.models.repconv import RepConv

__all__ = ["FeNet"]


class FeNet(nn.Module):
    """The feature enhancer at one attach site: ``x + up(FDM * U-Net(x))``.

    It works on the block grid, where one cell is one 8x8 block of the model's input: features are brought there by a
    strided convolution and back by a pixel shuffle. The last layer starts at zero, so that an unfitted module is the
    identity. Source: arXiv 2401.01724, FE-Net; the attach site's own activation is the paper's outer one.

    Args:
        config: Channels, stride and width at the site.
        fdm_channels: Length of the FDM's vectors.
        descriptor: Length of the drift descriptor.
    """

    def __init__(self, config: FeSiteConfig, fdm_channels: int, descriptor: int) -> None:
        super().__init__()
        factor, width = BLOCK // config.stride, config.width
        self.factor = factor
        self.down = nn.Conv2d(config.channels, width, factor, stride=factor)
        self.high = RepConv(width, width)
        self.pool = nn.Conv2d(width, width, 2, stride=2)
        self.low = nn.ModuleList(RepConv(width, width) for _ in range(config.low_blocks))
        self.unpool = nn.Conv2d(width, 4 * width, 1)
        self.guide = nn.Conv2d(fdm_channels, width, 1)
        self.adapt = nn.Linear(descriptor, 2 * width)
        self.up = nn.Conv2d(width, config.channels * factor * factor, 1)
        for layer in (self.up, self.adapt):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, fdm: Tensor, descriptor: Tensor) -> Tensor:
        """Enhance features.

        Args:
            x: Features [N, C, H, W].
            fdm: [N, fdm_channels, G, G] with G = ceil(H / factor).
            descriptor: [N, descriptor].

        Returns:
            Features of the same shape and dtype.
        """
        height, width = x.shape[2], x.shape[3]
        h = F.relu(self.down(_pad(x, fdm.shape[2] * self.factor, fdm.shape[3] * self.factor)))
        scale, shift = self.adapt(descriptor)[:, :, None, None].chunk(2, dim=1)
        h = F.relu(h * (1 + scale) + shift)
        h = h + F.relu(self.high(h))
        h = h + self._low_path(h)
        h = h * self.guide(fdm)
        return x + F.pixel_shuffle(self.up(h), self.factor)[:, :, :height, :width]

    def _low_path(self, h: Tensor) -> Tensor:
        low = F.relu(self.pool(_pad(h, h.shape[2] + h.shape[2] % 2, h.shape[3] + h.shape[3] % 2)))
        for block in self.low:
            low = low + F.relu(block(low))
        out: Tensor = F.pixel_shuffle(self.unpool(low), 2)
        return out[:, :, : h.shape[2], : h.shape[3]]


def _pad(x: Tensor, height: int, width: int) -> Tensor:
    """Zeros at the bottom and the right, up to the size given; the features themselves where they have it."""
    if x.shape[2] == height and x.shape[3] == width:
        return x
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
