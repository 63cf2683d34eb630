"""Fitting computes in bfloat16 only where the processor has it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afd_serve.models.attach import attach
from afd_serve.training.precision import autocast_to_bfloat16, strided_depthwise_in_float32


@pytest.mark.parametrize(
    ("wanted", "supported", "dtype"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_a_convolution_is_in_bfloat16_if_wanted_and_supported(
    wanted: bool, supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    conv = torch.nn.Conv2d(3, 4, 3)
    with autocast_to_bfloat16(wanted):
        assert conv(torch.rand(1, 3, 8, 8)).dtype == dtype


class Blur(nn.Module):
    """Calls the function and not the module, as anti-aliased networks do."""

    def __init__(self, *settings: object, **named: object) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(3, 1, 3, 3))
        self.settings, self.named = settings, named

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, *self.settings, **self.named)


@pytest.mark.parametrize(
    ("network", "dtype"),
    [
        (Blur(stride=2, groups=3), torch.float32),
        (Blur(None, 2, 1, groups=3), torch.float32),
        (Blur(stride=(2, 1), padding=1, groups=3), torch.float32),
        (Blur(groups=3), torch.bfloat16),
    ],
)
def test_a_networks_own_convolution_is_in_float32_if_it_is_strided_and_grouped(
    network: nn.Module, dtype: torch.dtype
) -> None:
    x = torch.rand(2, 3, 8, 8)
    changed = strided_depthwise_in_float32(attach(network.eval()))
    torch.testing.assert_close(changed(x), network(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert changed(x).dtype == dtype


@pytest.mark.parametrize(
    ("conv", "dtype"),
    [
        (nn.Conv2d(4, 8, 3, 2, 1, groups=2), torch.float32),
        (nn.Conv2d(4, 4, 3, (1, 2), groups=4, bias=False), torch.float32),
        (nn.Conv2d(4, 4, 3, groups=4), torch.bfloat16),
        (nn.Conv2d(4, 4, 3, 2), torch.bfloat16),
        (nn.Conv2d(4, 4, 3, 2, 1, groups=4, padding_mode="reflect"), torch.bfloat16),
    ],
)
def test_a_layer_is_in_float32_if_it_is_strided_and_grouped_whatever_comes_before_it(
    conv: nn.Conv2d, dtype: torch.dtype
) -> None:
    x, network = torch.rand(2, 3, 8, 8), nn.Sequential(nn.Conv2d(3, 4, 1), conv).eval()
    changed = strided_depthwise_in_float32(attach(network))
    torch.testing.assert_close(changed(x), network(x))
    layers = [node.target for node in changed.graph.nodes if node.op == "call_module"]
    assert layers == (["0"] if dtype == torch.float32 else ["0", "1"]), "none runs twice"
    with torch.autocast("cpu", torch.bfloat16):
        assert changed(x).dtype == dtype


def test_a_convolution_that_computes_its_groups_as_it_runs_is_left_alone() -> None:
    x, network = torch.rand(2, 3, 8, 8), attach(Blur(stride=2, groups=3).eval())
    expected = network(x)
    conv = next(node for node in network.graph.nodes if node.target is F.conv2d)
    with network.graph.inserting_before(conv):
        channels = network.graph.call_method("size", (conv.args[0], 1))
    conv.kwargs = conv.kwargs | {"groups": channels}
    assert strided_depthwise_in_float32(network)(x).equal(expected)
