"""FDE-Net: from a JPEG's own DCT coefficients to how far the features have drifted.

Two outputs (arXiv 2401.01724 has the first): the *feature drifting map* (FDM), one vector per cell of the block grid,
and the *drift descriptor*, one vector per picture, from the quantization tables and the pooled magnitude of each
frequency.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["COMPONENTS", "FREQUENCIES", "GEOMETRY", "STATISTICS", "FdeNet", "picture_statistics", "statistics_of"]

COMPONENTS: Final = 3
"""Y, Cb, Cr."""

FREQUENCIES: Final = 64 * COMPONENTS
"""Values per cell of the block grid, component-major, each block in natural order."""

GEOMETRY: Final = 3
"""log2 of JPEG pixels per model pixel; log2 of the horizontal and of the vertical chroma subsampling."""

STATISTICS: Final = 2 * FREQUENCIES + GEOMETRY
"""Length of `picture_statistics`."""


def picture_statistics(dequantized: Tensor, quant_tables: Tensor, geometry: Tensor) -> Tensor:
    """What is known of a picture as a whole.

    Args:
        dequantized: Dequantized coefficients on the block grid, [N, G, G, 192], any number type.
        quant_tables: The tables that took part in the picture's history, [N, 3, 64], natural order, 1..65535.
        geometry: [N, 3], see `GEOMETRY`.

    Returns:
        float32 [N, `STATISTICS`]: log mean magnitude of each frequency, log2 of each table entry, geometry.
    """
    cells = dequantized.shape[1] * dequantized.shape[2]
    magnitudes = dequantized.to(torch.float32, copy=True).abs_().sum(dim=(1, 2)) / cells
    return statistics_of(magnitudes, quant_tables, geometry)


def statistics_of(magnitudes: Tensor, quant_tables: Tensor, geometry: Tensor) -> Tensor:
    """`picture_statistics` from the mean magnitude of each frequency, [N, 192]."""
    tables = torch.log2(quant_tables.float()).flatten(1)
    return torch.cat((torch.log(magnitudes + 1e-3), tables / 4 - 1, geometry.float()), dim=1)


_LIMIT: Final = 4.0
"""Inputs are clamped to so many of their standard deviations."""


class _FrequencyLinear(nn.Linear):
    """A linear layer on coefficients [..., 192], each in units of its own scale and clamped."""

    limit: Final[float] = _LIMIT
    scale: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__(FREQUENCIES, outputs)
        self.register_buffer("scale", torch.ones(FREQUENCIES))

    def forward(self, x: Tensor) -> Tensor:
        # The weights are divided instead of the coefficients: they are fewer.
        clamped = torch.clamp(x, self.scale * -self.limit, self.scale * self.limit)
        return F.linear(clamped, self.weight / self.scale, self.bias)


class FdeNet(nn.Module):
    """The feature drifting estimator.

    Args:
        fdm_channels: Length of the FDM's vectors; 0 leaves the FDM out.
        descriptor: Length of the drift descriptor.
    """

    limit: Final[float] = _LIMIT
    statistics_mean: Tensor
    statistics_std: Tensor

    def __init__(self, fdm_channels: int, descriptor: int) -> None:
        super().__init__()
        self.register_buffer("statistics_mean", torch.zeros(STATISTICS))
        self.register_buffer("statistics_std", torch.ones(STATISTICS))
        self.fdm_channels = fdm_channels
        # 1x1 convolutions over the block grid, written as matrix products on its last axis.
        self.spatial = nn.Sequential()
        if fdm_channels:
            layers = (_FrequencyLinear(fdm_channels), nn.ReLU(), nn.Linear(fdm_channels, fdm_channels), nn.ReLU())
            self.spatial = nn.Sequential(*layers)
        self.descriptor = nn.Sequential(
            nn.Linear(STATISTICS, descriptor), nn.SiLU(), nn.Linear(descriptor, descriptor), nn.SiLU()
        )

    def calibrate(self, dequantized: Tensor, statistics: Tensor) -> None:
        """Take the scales of the inputs from compressed pictures.

        Args:
            dequantized: [M, 192] values of many cells.
            statistics: [P, `STATISTICS`] of many pictures.
        """
        for layer in self.spatial:
            if isinstance(layer, _FrequencyLinear):
                layer.scale.copy_(dequantized.float().std(dim=0).clamp_min(1.0))
        self.statistics_mean.copy_(statistics.mean(dim=0))
        self.statistics_std.copy_(statistics.std(dim=0).clamp_min(0.05))

    def describe(self, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor) -> Tensor:
        """The drift descriptor, float [N, descriptor]; arguments as in `picture_statistics`."""
        return self.summarize(picture_statistics(dequantized, quant_tables, geometry))

    def summarize(self, statistics: Tensor) -> Tensor:
        """The drift descriptor, float [N, descriptor], from `picture_statistics` [N, `STATISTICS`]."""
        normalized = (statistics - self.statistics_mean) / self.statistics_std
        out: Tensor = self.descriptor(normalized.clamp(-self.limit, self.limit))
        return out

    def map(self, dequantized: Tensor) -> Tensor:
        """The feature drifting map, float [N, fdm_channels, G, G], from dequantized coefficients [N, G, G, 192].

        Empty, with no channels, where the net was built without it.
        """
        if self.fdm_channels == 0:
            return dequantized.new_empty((dequantized.shape[0], 0, dequantized.shape[1], dequantized.shape[2])).float()
        out: Tensor = self.spatial(dequantized.float())
        return out.permute(0, 3, 1, 2)
