"""Attaching to a backbone without touching it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from afd_serve.config import AdapterSiteConfig
from afd_serve.errors import AttachError
from afd_serve.models.adapters import KernelAdapter
from afd_serve.models.attach import Insertion, KernelChange, SiteShape, attach, convolutions, probe_shapes
from afd_serve.models.backbones import Backbone
from afd_serve.models.folding import fold_norms
from tests.tiny_backbone import SIZE


class Scale(nn.Module):
    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return x * factor


class ScaleAndShift(nn.Module):
    def forward(self, x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
        return x * factor + shift


class AddOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class WithOptions(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, mask: Tensor | None = None, negate: bool = False) -> Tensor:
        y: Tensor = self.inner(x if mask is None else x * mask)
        return -y if negate else y


def picture() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_nothing_inserted_changes_nothing(tiny: Backbone) -> None:
    assert torch.equal(attach(tiny.module)(picture()), tiny.module(picture()))


@pytest.mark.parametrize("site", ["stem", "stem.norm", "blocks.0", "blocks.2", "blocks.2.conv"])
def test_a_module_is_called_on_the_output_of_its_site(tiny: Backbone, site: str) -> None:
    reference = copy.deepcopy(tiny.module)
    reference.get_submodule(site).register_forward_hook(lambda _module, _args, output: output * 0.5)
    attached = attach(tiny.module, [Insertion(site, Scale(), ("factor",))], inputs=("factor",))
    torch.testing.assert_close(attached(picture(), torch.tensor(0.5)), reference(picture()))


def test_optional_arguments_of_a_backbone_keep_their_defaults(tiny: Backbone) -> None:
    insertion = Insertion("inner.stem", Scale(), ("factor",))
    attached = attach(WithOptions(tiny.module).eval(), [insertion], inputs=("factor",))
    torch.testing.assert_close(attached(picture(), torch.tensor(1.0)), tiny.module(picture()))
    assert [node.name for node in attached.graph.nodes if node.op == "placeholder"] == ["x", "factor"]


def test_insertions_at_one_site_are_chained_in_order(tiny: Backbone) -> None:
    calls = [Insertion("stem", AddOne(), ()), Insertion("stem", Scale(), ("factor",))]
    attached = attach(tiny.module, calls, inputs=("factor",), taps=["stem"])
    stem = attached(picture(), torch.tensor(3.0))[1]
    torch.testing.assert_close(stem, (tiny.module.get_submodule("stem")(picture()) + 1) * 3)


def test_what_is_inserted_at_a_modules_last_part_is_there_for_the_module_too(tiny: Backbone) -> None:
    calls = [Insertion("stem.act", AddOne(), ()), Insertion("stem", Scale(), ("factor",))]
    attached = attach(tiny.module, calls, inputs=("factor",), taps=["stem"])
    stem = attached(picture(), torch.tensor(3.0))[1]
    torch.testing.assert_close(stem, (tiny.module.get_submodule("stem")(picture()) + 1) * 3)


def test_extra_inputs_keep_their_order_and_come_last(tiny: Backbone) -> None:
    call = Insertion("stem", ScaleAndShift(), ("factor", "shift"))
    attached = attach(tiny.module, [call], inputs=("shift", "unused", "factor"), taps=["stem"])
    stem = attached(picture(), torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0))[1]
    torch.testing.assert_close(stem, tiny.module.get_submodule("stem")(picture()) * 3 + 1)


def test_taps_and_the_embedding_are_returned(tiny: Backbone) -> None:
    logits, block, embedding = attach(tiny.module, taps=["blocks.1"], embedding="classifier")(picture())
    assert block.shape == (2, 16, 8, 8)
    assert embedding.shape == (2, 16)
    assert torch.equal(tiny.module.get_submodule("classifier")(embedding), logits)
    without_taps = attach(tiny.module, embedding="classifier")(picture())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(without_taps, (logits, embedding), strict=True))


def test_what_a_convolution_at_the_end_reads_is_averaged_over_places() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    logits, features, embedding = attach(network, taps=["0"], embedding="1")(picture())
    assert torch.equal(embedding, features.mean((2, 3)))
    assert logits.shape == (2, 4)


class Keeping(nn.Module):
    """Keeps what it computes for its next call, as the attention of LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(3))
        self.kept: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.kept.setdefault("bias", self.bias[:, None, None] * 2)


def test_what_is_recorded_is_not_kept_for_the_next_call() -> None:
    network = Keeping()
    for _ in range(2):
        assert torch.equal(attach(network)(picture()), picture() + 2)
    assert network.kept == {}
    assert torch.equal(network(picture()), picture() + 2)


def test_the_backbone_is_never_changed(tiny: Backbone) -> None:
    before = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    modules = [(name, id(module)) for name, module in tiny.module.named_modules()]
    expected = tiny.module(picture())
    attached = attach(tiny.module, [Insertion("stem", AddOne(), ())])
    attached(picture())
    assert torch.equal(tiny.module(picture()), expected)
    assert [(name, id(module)) for name, module in tiny.module.named_modules()] == modules
    after = tiny.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class WithConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(3.0)
        self.inner = AddConstant()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x * self.scale) - torch.tensor(2.0)
        return y


class AddConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.tensor(5.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


def test_tensors_that_are_no_buffers_are_taken_along_and_leave_nothing_behind() -> None:
    backbone = WithConstants().eval()
    before = set(vars(backbone))
    attached = attach(backbone, [Insertion("inner", AddOne(), ())])
    torch.testing.assert_close(attached(picture()), backbone(picture()) + 1)
    assert set(vars(backbone)) == before
    assert "scale" not in attached.state_dict()


def test_parameters_and_buffers_of_the_backbone_itself_are_taken_along() -> None:
    class WithOwnTensors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(3.0))
            self.register_buffer("mean", torch.tensor(2.0))
            self.inner = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner((x - self.mean) * self.weight)
            return y

    backbone = WithOwnTensors().eval()
    attached = attach(backbone, [Insertion("inner", AddOne(), ())])
    torch.testing.assert_close(attached(picture()), backbone(picture()) + 1)
    assert attached.weight is backbone.weight
    assert "mean" in attached.state_dict()


def test_parameters_are_shared_not_copied(tiny: Backbone) -> None:
    ours = {parameter.data_ptr() for parameter in attach(tiny.module).parameters()}
    assert ours == {parameter.data_ptr() for parameter in tiny.module.parameters()}


def test_an_unknown_site_names_the_candidates(tiny: Backbone) -> None:
    with pytest.raises(AttachError, match=r"blocks\.7.*candidates: .*blocks\.2"):
        attach(tiny.module, [Insertion("blocks.7", AddOne(), ())])


def test_a_backbone_that_branches_on_values_or_sizes_is_refused_with_the_reason() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Resizing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.shape[2] == 32 else x[:, :, :32, :32]

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if len(x) > 1 else -x

    class Looping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[index] for index in range(x.shape[0])])

    for module in (Branching(), Resizing(), Counting(), Looping()):
        with pytest.raises(AttachError, match=r"cannot be recorded.*not on their values"):
            attach(module)


class ByKeyword(nn.Module):
    """Calls its layers with named arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.norm.running_mean.fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=self.norm(input=self.conv(input=x)).mean((2, 3)))


def test_layers_may_be_called_with_named_arguments() -> None:
    network = ByKeyword().eval()
    logits, embedding = attach(network, embedding="fc")(picture())
    assert torch.equal(logits, network.fc(embedding))
    changed = attach(network, kernels=[KernelChange("conv", Negate())], taps=["conv"])(picture())[1]
    torch.testing.assert_close(changed, -network.conv(picture()))
    folded = fold_norms(network)
    assert isinstance(folded.norm, nn.Identity)
    torch.testing.assert_close(folded(picture()), network(picture()), atol=1e-5, rtol=1e-5)


class HeadOnPlaces(nn.Module):
    """Averages over places behind the last layer."""

    def __init__(self, arrange: Callable[[Tensor], Tensor], axes: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.fc, self.arrange, self.axes = nn.Conv2d(3, 5, 3), nn.Linear(5, 4), arrange, axes

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.arrange(self.conv(x))).mean(self.axes)


@pytest.mark.parametrize(
    ("arrange", "axes"), [(lambda x: x.flatten(2).mT, (1,)), (lambda x: x.permute(0, 2, 3, 1), (1, 2))]
)
def test_what_a_linear_layer_reads_is_averaged_over_tokens_or_places(
    arrange: Callable[[Tensor], Tensor], axes: tuple[int, ...]
) -> None:
    network = HeadOnPlaces(arrange, axes).eval()
    logits, features, embedding = attach(network, taps=["conv"], embedding="fc")(picture())
    torch.testing.assert_close(embedding, features.mean((2, 3)))
    torch.testing.assert_close(network.fc(embedding), logits)


class Assigning(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return x


class Making(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(x.shape[0], 1, 1, 1)


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise KeyError("x")
        return x


class Asserting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise AssertionError  # noqa: TRY004 - as a bare assert does, which pytest would give words
        return x


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (Assigning, "by torch.cat or torch.where"),
        (Making, r"x\.new_zeros"),
        (Raising, r"cannot be recorded.*'x'"),
        (Asserting, r"cannot be recorded as a graph \(AssertionError\)"),
    ],
)
def test_what_stands_in_the_way_of_a_recording_is_said(kind: type[nn.Module], advice: str) -> None:
    with pytest.raises(AttachError, match=advice):
        attach(kind())


def test_shapes_are_probed(tiny: Backbone) -> None:
    shapes = probe_shapes(tiny.module, ["stem", "blocks.0", "blocks.2.norm"], SIZE)
    assert shapes == {"stem": SiteShape(8, 2), "blocks.0": SiteShape(12, 4), "blocks.2.norm": SiteShape(16, 8)}
    assert probe_shapes(tiny.module, shapes, 60) == shapes, "60 pixels make 8 cells of 8 pixels"
    with pytest.raises(AttachError, match="no feature map"):
        probe_shapes(tiny.module, ["classifier"], SIZE)


class Negate(nn.Module):
    def forward(self, kernel: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return -kernel, torch.zeros(kernel.shape[0]) if bias is None else -bias


def test_a_kernel_is_changed_on_the_way_and_not_in_the_backbone(tiny: Backbone) -> None:
    reference = copy.deepcopy(tiny.module)
    reference.get_submodule("blocks.1.conv").weight.data.neg_()
    attached = attach(tiny.module, kernels=[KernelChange("blocks.1.conv", Negate())])
    torch.testing.assert_close(attached(picture()), reference(picture()))
    assert not torch.allclose(tiny.module(picture()), reference(picture()))
    assert "blocks.1.conv" not in {node.target for node in attached.graph.nodes}, "or it would run twice"


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 6, (3, 5), (2, 1), (1, 2), (1, 2), groups=3),
        nn.Conv2d(3, 6, 1, (1, 2), bias=False),
        nn.Conv2d(3, 6, 1, (2, 1), (1, 0)),
        nn.Conv2d(3, 6, 3, padding="same"),
    ],
)
def test_a_changed_kernel_keeps_the_geometry_of_its_convolution(conv: nn.Conv2d) -> None:
    attached = attach(nn.Sequential(conv).eval(), kernels=[KernelChange("0", Negate())])
    torch.testing.assert_close(attached(picture()), -conv(picture()))


def test_a_changed_kernel_that_skips_cells_computes_the_same_and_learns() -> None:
    conv = nn.Conv2d(3, 8, 1, stride=2).requires_grad_(False)
    backbone = nn.Sequential(conv).eval()
    adapter = KernelAdapter(AdapterSiteConfig("0", (8, 3, 1, 1)))
    attached = attach(backbone, kernels=[KernelChange("0", adapter)])
    for _ in range(8):  # without AVX-512 oneDNN's gradient of the strided kernel ends the process soon
        out = attached(picture())
        torch.testing.assert_close(out, conv(picture()))
        out.square().mean().backward()
    assert adapter.left.grad is not None
    assert adapter.left.grad.any()


def test_kernels_are_changed_beside_insertions(tiny: Backbone) -> None:
    insertion, change = Insertion("stem", AddOne(), ()), KernelChange("blocks.1.conv", Negate())
    attached = attach(tiny.module, [insertion], kernels=[change], taps=["stem", "blocks.1.conv"])
    _, stem, convolved = attached(picture())
    torch.testing.assert_close(stem, tiny.module.get_submodule("stem")(picture()) + 1)
    block = tiny.module.get_submodule("blocks.0")(stem)
    torch.testing.assert_close(convolved, -tiny.module.get_submodule("blocks.1.conv")(block))


@pytest.mark.parametrize("site", ["blocks.1", "stem.norm", "nowhere"])
def test_only_a_convolution_has_a_kernel_to_change(tiny: Backbone, site: str) -> None:
    with pytest.raises(AttachError, match=site):
        attach(tiny.module, kernels=[KernelChange(site, Negate())])


def test_a_convolution_that_pads_with_something_else_is_refused() -> None:
    mirroring = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(AttachError, match="no convolution with zero padding"):
        attach(mirroring, kernels=[KernelChange("0", Negate())])


def test_convolutions_are_listed_in_order(tiny: Backbone) -> None:
    found = convolutions(tiny.module)
    assert list(found) == ["stem.conv", "blocks.0.conv", "blocks.1.conv", "blocks.2.conv"]
    assert all(found[name] is tiny.module.get_submodule(name) for name in found)


def test_a_convolution_whose_kernel_is_not_all_that_counts_is_not_listed() -> None:
    network = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(4)))
    weight_norm(network[1])
    network[2].register_forward_hook(lambda _, __, output: output)
    network[3].register_forward_pre_hook(lambda _, inputs: inputs)
    assert list(convolutions(network)) == ["0"]


@pytest.mark.parametrize("last", ["stem", "blocks.1"])
def test_a_trunk_can_end_early_and_forgets_the_rest(tiny: Backbone, last: str) -> None:
    def attached(**options: object) -> nn.Module:
        return attach(tiny.module, [Insertion(last, Scale(), ("factor",))], inputs=("factor", "other"), **options)

    cut = attached(until=last)
    features = attached(taps=[last])(picture(), torch.tensor(0.5), torch.tensor(0.0))[1]
    assert torch.equal(cut(picture(), torch.tensor(0.5), torch.tensor(0.0)), features)
    later = {name for name, _ in tiny.module.named_modules() if name.startswith(("classifier", "blocks.2"))}
    assert later
    assert not later & {name for name, _ in cut.named_modules()}
    assert set(dict(cut.named_parameters())) < set(dict(tiny.module.named_parameters()))
