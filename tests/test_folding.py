"""What deployment folds into the kernels."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from afd_serve.config import AdapterSiteConfig
from afd_serve.models.adapters import KernelAdapter
from afd_serve.models.attach import Insertion, KernelChange, attach
from afd_serve.models.backbones import Backbone
from afd_serve.models.folding import GatedActivation, GatedConv, GateParts, fold_gates, fold_kernels, fold_norms
from afd_serve.models.gates import ChannelGate
from tests.tiny_backbone import SIZE


def picture(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


class AddOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def test_folding_norms_keeps_the_function_and_the_names(tiny: Backbone) -> None:
    folded = fold_norms(tiny.module)
    torch.testing.assert_close(folded(picture()), tiny.module(picture()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in tiny.module.modules())
    calls = [Insertion("stem.norm", AddOne(), ())]
    torch.testing.assert_close(attach(folded, calls)(picture()), attach(tiny.module, calls)(picture()))


class Shared(nn.Module):
    """One convolution that is called twice, and one norm behind each call or one behind both."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(norms))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norms[-1](self.conv(F.relu(self.norms[0](self.conv(x)))))
        return y


class SharedNorm(nn.Module):
    """One norm behind a convolution, and again behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(F.relu(self.norm(self.conv(x))))
        return y


class TwoNames(nn.Module):
    """A norm with two names, called once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), self.norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Tied(nn.Module):
    """A kernel that is read beside its convolution's call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(self.norm(self.conv(x)), self.conv.weight)


class ReadBeside(nn.Module):
    """A convolution whose output is read behind its norm and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.norm(y) - y
        return z


def before_a_norm(conv: nn.Conv2d, **options: Any) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(3, **options))


def with_hooks(network: nn.Sequential, index: int) -> nn.Module:
    """With one hook that changes what goes into a layer, and one that changes what comes out."""
    network[index].register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    network[index].register_forward_hook(lambda _, __, output: 2 * output)
    return network


UNUSUAL = {
    "shared": lambda: Shared(1),
    "shared with two norms": lambda: Shared(2),
    "shared norm": SharedNorm,
    "two names": TwoNames,
    "tied": Tied,
    "read beside": ReadBeside,
    "large epsilon": lambda: before_a_norm(nn.Conv2d(3, 3, 3), eps=0.5),
    "no statistics": lambda: before_a_norm(nn.Conv2d(3, 3, 3), track_running_stats=False),
    "weight norm": lambda: before_a_norm(parametrizations.weight_norm(nn.Conv2d(3, 3, 3))),
    "spectral norm": lambda: before_a_norm(parametrizations.spectral_norm(nn.Conv2d(3, 3, 3))),
    "hooks of the convolution": lambda: with_hooks(before_a_norm(nn.Conv2d(3, 3, 3)), 0),
    "hooks of the norm": lambda: with_hooks(before_a_norm(nn.Conv2d(3, 3, 3)), 1),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_folding_keeps_the_function_of_unusual_networks(kind: str) -> None:
    torch.manual_seed(0)
    network = UNUSUAL[kind]().eval().requires_grad_(False)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias)
        if norm.running_var is not None:
            norm.running_var.uniform_(0.2, 0.5)
    torch.testing.assert_close(fold_norms(network)(picture()), network(picture()))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_folded_adapter_is_the_branch_that_it_was(tiny: Backbone, rank: int) -> None:
    torch.manual_seed(1)
    adapter = KernelAdapter(AdapterSiteConfig("blocks.1.conv", (16, 12, 3, 3), rank))
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    changes = [KernelChange("blocks.1.conv", adapter)]
    folded = fold_norms(tiny.module)
    expected = attach(folded, kernels=changes)(picture())
    assert not torch.allclose(folded(picture()), expected)
    fold_kernels(folded, changes)
    torch.testing.assert_close(folded(picture()), expected)


def test_an_unfitted_adapter_changes_nothing() -> None:
    kernel, bias = torch.randn(16, 12, 3, 3), torch.randn(16)
    for rank in (0, 2):
        changed = KernelAdapter(AdapterSiteConfig("conv", (16, 12, 3, 3), rank))(kernel, bias)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(changed, (kernel, bias), strict=True))


def test_an_adapters_scales_are_those_of_the_features_that_its_kernel_reads_and_writes() -> None:
    adapter = KernelAdapter(AdapterSiteConfig("conv", (16, 12, 3, 3))).double()
    assert adapter.input_scale is not None
    nn.init.normal_(adapter.input_scale, std=0.3)
    nn.init.normal_(adapter.output_scale, std=0.3)
    kernel, features = torch.randn(16, 12, 3, 3).double(), torch.randn(2, 12, 6, 6).double()
    reads, writes = (1 + scale[:, None, None] for scale in (adapter.input_scale, adapter.output_scale))
    expected = F.conv2d(features * reads, kernel) * writes
    torch.testing.assert_close(F.conv2d(features, *adapter(kernel, None)), expected)


def test_a_depthwise_adapter_has_one_scale_per_channel() -> None:
    assert KernelAdapter(AdapterSiteConfig("conv", (16, 1, 3, 3))).input_scale is None


GATES = [ChannelGate(0, 8), ChannelGate(8, 12)]


def gated(backbone: nn.Module) -> fx.GraphModule:
    sites = zip(("stem.norm", "blocks.0.norm"), GATES, strict=True)
    return attach(backbone, [Insertion(site, gate, ("shift",)) for site, gate in sites], inputs=("shift",))


@pytest.mark.parametrize("pictures", [1, 3])
def test_the_convolutions_before_gates_do_their_work(tiny: Backbone, pictures: int) -> None:
    folded = fold_norms(tiny.module)
    shift = torch.randn(pictures, 20)
    expected = gated(folded)(picture(pictures), shift)
    trunk = gated(folded)
    fold_gates(trunk, GATES)
    assert not any(isinstance(module, ChannelGate) for module in trunk.modules())
    assert [node.target for node in trunk.graph.nodes].count("afd_parts") == 1, "the shifts are cut once for all gates"
    assert "stem.conv" not in dict(trunk.named_modules()), "or its kernel would be there twice"
    torch.testing.assert_close(trunk(picture(pictures), shift), expected)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()])
def test_an_activation_is_taken_where_it_alone_reads_a_gate(activation: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), activation).eval()
    trunk = attach(net, [Insertion("0", GATES[0], ("shift",))], inputs=("shift",))
    fold_gates(trunk, GATES)
    assert isinstance(trunk.get_submodule("afd_0"), GatedActivation)
    assert "1" not in {node.target for node in trunk.graph.nodes}


class ReadBeforeItsActivation(nn.Module):
    """A block that adds what its activation reads to what that makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.act(y) + y
        return z


@pytest.mark.parametrize("pictures", [1, 3])
def test_an_activation_stays_where_a_gate_is_read_beside_it(pictures: int) -> None:
    trunk = attach(ReadBeforeItsActivation().eval(), [Insertion("conv", GATES[0], ("shift",))], inputs=("shift",))
    shift = torch.randn(pictures, 20)
    expected = trunk(picture(pictures), shift)
    fold_gates(trunk, GATES)
    assert isinstance(trunk.get_submodule("afd_0"), GatedConv)
    torch.testing.assert_close(trunk(picture(pictures), shift), expected)


def test_for_a_single_picture_a_gate_is_another_bias_of_the_convolution() -> None:
    parts, shift = GateParts([torch.ones(8), torch.zeros(12)]), torch.randn(1, 20)
    first, second = parts(shift)
    assert torch.equal(first, shift[0, :8] + 1)
    assert torch.equal(second, shift[0, 8:])
    assert [part.shape for part in parts(shift.expand(3, -1))] == [(3, 8, 1, 1), (3, 12, 1, 1)]


@pytest.mark.parametrize("pictures", [1, 3])
def test_a_convolution_without_a_bias_gets_one(pictures: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten()).eval()
    trunk = attach(net, [Insertion("0", GATES[0], ("shift",))], inputs=("shift",))
    shift = torch.randn(pictures, 20)
    expected = trunk(picture(pictures), shift)
    fold_gates(trunk, GATES)
    torch.testing.assert_close(trunk(picture(pictures), shift), expected)
    assert isinstance(trunk.get_submodule("afd_0"), GatedConv)


@pytest.mark.parametrize("pictures", [1, 3])
def test_a_gated_convolution_keeps_its_geometry(pictures: int) -> None:
    gate = ChannelGate(0, 6)
    net = nn.Sequential(nn.Conv2d(3, 6, (3, 5), (2, 1), (1, 0), (1, 2), groups=3), nn.Flatten()).eval()
    trunk = attach(net, [Insertion("0", gate, ("shift",))], inputs=("shift",))
    shift = torch.randn(pictures, 6)
    expected = trunk(picture(pictures), shift)
    fold_gates(trunk, [gate])
    assert isinstance(trunk.get_submodule("afd_0"), GatedConv)
    torch.testing.assert_close(trunk(picture(pictures), shift), expected)


def test_a_gate_stays_behind_a_convolution_with_hooks() -> None:
    net = with_hooks(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 0).eval()
    trunk = attach(net, [Insertion("0", GATES[0], ("shift",))], inputs=("shift",))
    expected = trunk(picture(), torch.ones(2, 20))
    fold_gates(trunk, GATES)
    assert trunk.get_submodule("afd_0") is GATES[0]
    torch.testing.assert_close(trunk(picture(), torch.ones(2, 20)), expected)


@pytest.mark.parametrize("padding", [{"padding": 1, "padding_mode": "reflect"}, {"padding": "same"}])
def test_a_gate_stays_where_the_padding_is_no_number_of_zeros(padding: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, **padding), nn.ReLU()).eval()
    trunk = attach(net, [Insertion("0", GATES[0], ("shift",))], inputs=("shift",))
    expected = trunk(picture(), torch.ones(2, 20))
    fold_gates(trunk, GATES)
    assert trunk.get_submodule("afd_0") is GATES[0]
    torch.testing.assert_close(trunk(picture(), torch.ones(2, 20)), expected)


def test_a_gate_stays_where_a_norm_is_between(tiny: Backbone) -> None:
    trunk = gated(tiny.module)
    expected = trunk(picture(), torch.ones(2, 20))
    fold_gates(trunk, GATES)
    assert trunk.get_submodule("afd_0") is GATES[0]
    torch.testing.assert_close(trunk(picture(), torch.ones(2, 20)), expected)


class ReadTwice(nn.Module):
    """A convolution whose output is read behind a gate and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.norm(y) - y
        return z


def test_a_gate_stays_where_the_convolutions_output_is_read_beside_it() -> None:
    trunk = attach(ReadTwice().eval(), [Insertion("norm", GATES[0], ("shift",))], inputs=("shift",))
    expected = trunk(picture(), torch.ones(2, 20))
    fold_gates(trunk, GATES)
    assert trunk.get_submodule("afd_0") is GATES[0], "or the convolution would run twice"
    torch.testing.assert_close(trunk(picture(), torch.ones(2, 20)), expected)
