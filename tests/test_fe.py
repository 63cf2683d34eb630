"""FE-Net: the correction at one attach site."""

import pytest
import torch

from afd_serve.config import FeSiteConfig
from afd_serve.models.fe import FeNet
from afd_serve.models.repconv import RepConv


def net(stride: int = 4) -> FeNet:
    torch.manual_seed(0)
    return FeNet(FeSiteConfig("site", channels=6, stride=stride, width=8), fdm_channels=5, descriptor=4).eval()


def wake(module: FeNet) -> FeNet:
    with torch.no_grad():
        for layer in (module.up, module.adapt):
            layer.weight.normal_()
    return module


def guides(pictures: int, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(pictures, 5, grid, grid), torch.randn(pictures, 4)


def test_an_unfitted_module_is_the_identity() -> None:
    x = torch.randn(2, 6, 16, 16)
    assert torch.equal(net()(x, *guides(2, 8)), x)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [64, 66, 68, 72])
def test_every_size_and_stride_keeps_the_features_shape(stride: int, size: int) -> None:
    features = -(-size // stride)
    x = torch.randn(1, 6, features, features)
    assert wake(net(stride))(x, *guides(1, -(-size // 8))).shape == x.shape


def test_the_map_guides_the_correction() -> None:
    module, x = wake(net()), torch.randn(1, 6, 16, 16)
    fdm, descriptor = guides(1, 8)
    assert not torch.allclose(module(x, fdm, descriptor), module(x, -2 * fdm, descriptor))


def test_reparameterized_equals_branches() -> None:
    module, x = wake(net()).double(), torch.randn(2, 6, 16, 16, dtype=torch.float64)
    fdm, descriptor = (guide.double() for guide in guides(2, 8))
    expected = module(x, fdm, descriptor)
    for inner in module.modules():
        if isinstance(inner, RepConv):
            inner.reparameterize()
    torch.testing.assert_close(module(x, fdm, descriptor), expected, atol=1e-6, rtol=0)
