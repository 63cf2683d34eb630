"""RepConv's branches and the one convolution that replaces them."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from afd_serve.models.reparam import pointwise_as_3x3, sequence_1x1_3x3, sequence_3x3_1x1
from afd_serve.models.repconv import RepConv


def lively(inputs: int, outputs: int, seed: int = 0) -> RepConv:
    torch.manual_seed(seed)
    module = RepConv(inputs, outputs).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_fused_equals_branches_everywhere_borders_included(
    inputs: int, outputs: int, height: int, width: int, seed: int
) -> None:
    module = lively(inputs, outputs, seed)
    x = torch.randn(2, inputs, height, width, dtype=torch.float64)
    expected = module(x)
    module.reparameterize()
    assert isinstance(module.body, nn.Conv2d)
    torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=0)


def test_a_second_reparameterization_changes_nothing() -> None:
    module = lively(3, 4)
    module.reparameterize()
    body = module.body
    module.reparameterize()
    assert module.body is body


def test_reparameterization_leaves_one_3x3() -> None:
    module = lively(8, 8)
    module.reparameterize()
    assert sum(parameter.numel() for parameter in module.parameters()) == 8 * 8 * 9 + 8


def test_a_bias_before_the_padded_3x3_would_be_wrong_at_the_border() -> None:
    """Why the first convolution of that branch has no bias: see Note [Biases before padding]."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 1).double()
    second = nn.Conv2d(4, 5, 3, padding=1, bias=False).double()
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    kernel = sequence_1x1_3x3(first.weight, second.weight)
    assert first.bias is not None
    bias = second.weight.sum(dim=(2, 3)) @ first.bias
    error = (second(first(x)) - nn.functional.conv2d(x, kernel, bias, padding=1)).abs()
    assert error[:, :, 1:-1, 1:-1].max() < 1e-12
    assert error.max() > 0.1


def test_sequences_are_their_two_convolutions() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    k3, b3 = torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    k1, b1 = torch.randn(6, 4, 1, 1, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    conv = nn.functional.conv2d
    kernel, bias = sequence_3x3_1x1(k3, b3, k1, b1)
    torch.testing.assert_close(conv(x, kernel, bias, padding=1), conv(conv(x, k3, b3, padding=1), k1, b1))
    pointwise = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(conv(x, pointwise_as_3x3(pointwise), padding=1), conv(x, pointwise))
