"""RepConv: three parallel branches in training, one 3x3 convolution after `RepConv.reparameterize`."""

import torch
from torch import Tensor, nn

from afd_serve.models.reparam import pointwise_as_3x3, sequence_1x1_3x3, sequence_3x3_1x1

__all__ = ["RepConv"]


class _Branches(nn.Module):
    """The training form: 1x1 then 3x3, 3x3 then 1x1, and 1x1, summed."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # No bias before the padded 3x3: see Note [Biases before padding].
        self.reduce = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.reduce_spatial = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.spatial = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.spatial_mix = nn.Conv2d(out_channels, out_channels, 1)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reduce_spatial(self.reduce(x)) + self.spatial_mix(self.spatial(x)) + self.pointwise(x)
        return out

    def fuse(self) -> nn.Conv2d:
        if self.spatial.bias is None or self.spatial_mix.bias is None:
            raise AssertionError("both convolutions of the 3x3-1x1 branch are built with a bias")
        kernel, bias = sequence_3x3_1x1(
            self.spatial.weight, self.spatial.bias, self.spatial_mix.weight, self.spatial_mix.bias
        )
        kernel = kernel + sequence_1x1_3x3(self.reduce.weight, self.reduce_spatial.weight)
        kernel = kernel + pointwise_as_3x3(self.pointwise.weight)
        conv = nn.Conv2d(
            self.spatial.in_channels,
            self.spatial_mix.out_channels,
            3,
            padding=1,
            device=kernel.device,
            dtype=kernel.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(kernel)
            if conv.bias is not None:
                conv.bias.copy_(bias)
        return conv.train(self.training)


class RepConv(nn.Module):
    """A 3x3 convolution (stride 1, zero padding 1) that trains as three branches.

    Input and output are [N, C, H, W] floats. Source: arXiv 2401.01724, the RepConv of FE-Net.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body: nn.Module = _Branches(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the branches, or the one convolution that replaced them."""
        out: Tensor = self.body(x)
        return out

    def reparameterize(self) -> None:
        """Replace the branches by the equivalent 3x3 convolution; a second call changes nothing."""
        if isinstance(self.body, _Branches):
            self.body = self.body.fuse()
