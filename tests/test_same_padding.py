"""TensorFlow's padding, in classifiers of one input size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from afd_serve.models.attach import attach, convolutions
from afd_serve.models.same_padding import pad_constantly, same_padding
from afd_serve.models.size_branches import decide_size_branches
from afd_serve.models.torchvision_compat import import_timm
from tests.foreign import needs


@given(st.integers(1, 600), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]))
def test_same_padding_gives_tensorflows_output_size(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert 0 <= after - before <= 1
    padded = max(size + before + after, kernel)
    assert (padded - kernel) // stride + 1 == -(-size // stride)


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "tf_mobilenetv3_small_minimal_100"])
@pytest.mark.parametrize("size", [64, 75])
def test_timms_padded_convolutions_do_the_same_and_can_be_attached_to(name: str, size: int) -> None:
    needs("timm")
    torch.manual_seed(0)
    module = import_timm().create_model(name, num_classes=10).eval()
    picture = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = module(picture)
        pad_constantly(module, size)
        assert torch.equal(module(picture), expected)
    assert len(convolutions(module)) == sum(isinstance(part, nn.Conv2d) for part in module.modules())


def test_a_convolution_that_is_called_with_a_named_argument_is_decided_as_other_branches_are() -> None:
    needs("timm")

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = import_timm().layers.create_conv2d(3, 4, 3, stride=2, padding="same")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(x=x)
            return y.mean((2, 3))

    module, picture = Named().eval().requires_grad_(False), torch.randn(2, 3, 32, 32)
    expected = module(picture)
    pad_constantly(module, 32)
    decide_size_branches(module, 32)
    assert torch.equal(attach(module)(picture), expected)


def test_a_convolution_for_inputs_of_several_sizes_stays_as_it_is() -> None:
    needs("timm")
    conv = import_timm().layers.create_conv2d(3, 3, 3, stride=2, padding="same")

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            twice: torch.Tensor = self.conv(self.conv(x))
            return twice

    module = Twice()
    pad_constantly(module, 32)
    assert module.conv is conv
