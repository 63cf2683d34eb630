"""Trunks whose feature maps fill a processor's tiles: as many channels as that takes, and the same answers."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from afd_serve.models.attach import Insertion, attach
from afd_serve.models.backbones import Backbone
from afd_serve.models.classifier import GUIDES, protected_trunk
from afd_serve.models.folding import fold_gates, fold_norms
from afd_serve.models.gates import ChannelGate
from afd_serve.models.widening import widened
from tests.conftest import awakened

PICTURE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Inverted(nn.Module):
    """An inverted residual block behind a stem: maps of ``narrow`` channels that are added up, and of ``wide``."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, narrow, 3, 2, 1)
        self.expand = nn.Conv2d(narrow, wide, 1, bias=False)
        self.act = nn.ReLU6()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.depthwise = nn.Conv2d(wide, wide, 2, groups=wide)
        self.project = nn.Conv2d(wide, narrow, 1)
        self.head = nn.Conv2d(narrow, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.head(x + self.project(self.act(self.depthwise(self.pad(self.act(self.expand(x)))))))
        return y.mean(dim=(2, 3))


class Around(nn.Module):
    """Something between two convolutions, the first of which makes 12 channels."""

    def __init__(self, between: Callable[[Tensor], Tensor], channels: int = 12) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 1), nn.Conv2d(channels, 4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.between(self.first(x)))
        return y


class Tied(nn.Module):
    """A kernel that is read beside its convolution's call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x)) + self.first.weight.sum()
        return y


class Twice(nn.Module):
    """A convolution that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(self.again(self.first(x)))
        return y


class OneAndMany(nn.Module):
    """A map of one channel that is added to each of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.many, self.last = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.one(x) + self.many(x))
        return y


def channels(trunk: fx.GraphModule) -> dict[str, tuple[int, int]]:
    """Of each convolution's kernel: how many it writes, and how many it reads for each of them."""
    convs = {name: module for name, module in trunk.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: (conv.weight.shape[0], conv.weight.shape[1]) for name, conv in convs.items()}


def made(network: nn.Module) -> fx.GraphModule:
    return attach(network.eval().requires_grad_(False))


def test_maps_that_convolutions_read_get_a_multiple_of_the_channels() -> None:
    trunk = made(Inverted(12, 20))
    assert channels(widened(trunk, 8)) == {
        "stem": (16, 3),
        "expand": (24, 16),
        "depthwise": (24, 1),
        "project": (16, 24),
        "head": (5, 16),
    }
    assert channels(trunk)["stem"] == (12, 3), "the trunk itself is as it was"


@given(narrow=st.integers(1, 20), wide=st.integers(1, 20), multiple=st.integers(1, 16))
def test_the_answers_are_the_same(narrow: int, wide: int, multiple: int) -> None:
    trunk = made(Inverted(narrow, wide).double())
    torch.testing.assert_close(widened(trunk, multiple)(PICTURE.double()), trunk(PICTURE.double()))


SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "number": lambda x: x + 1,
    "itself": lambda x: x + x,
    "scaled": lambda x: torch.add(x, x, alpha=2),
    "activation": nn.SiLU(),
}


@pytest.mark.parametrize("kind", SUMS)
def test_what_works_channel_by_channel_may_be_between(kind: str) -> None:
    trunk = made(Around(SUMS[kind]))
    wide = widened(trunk, 8)
    assert channels(wide) == {"first": (16, 3), "second": (4, 16)}
    torch.testing.assert_close(wide(PICTURE), trunk(PICTURE))


def test_maps_stay_as_they_are_where_they_would_have_twice_the_channels() -> None:
    assert channels(widened(made(Inverted(16, 20)), 32))["stem"] == (16, 3)
    assert channels(widened(made(Inverted(17, 20)), 32))["stem"] == (32, 3)


UNTOUCHED: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: Around(nn.BatchNorm2d(12)),
    "groups": lambda: Around(nn.Conv2d(12, 12, 1, groups=3)),
    "shuffle": lambda: Around(nn.PixelShuffle(2), channels=3),
    "depthwise alone": lambda: Around(nn.Sequential(nn.Softmax(dim=1), nn.Conv2d(12, 12, 1, groups=12))),
    "multiplier": lambda: Around(nn.Conv2d(12, 24, 1, groups=12), channels=24),
    "pairs": lambda: Around(nn.Conv2d(12, 6, 1, groups=6), channels=6),
    "constants": lambda: Around(lambda x: x + torch.arange(12.0).view(-1, 1, 1)),
    "product": lambda: Around(lambda x: x * x),
    "softmax": lambda: Around(nn.Softmax(dim=1)),
    "hook": lambda: Around(nn.Identity()),
    "hook between": lambda: Around(nn.ReLU()),
    "tied": Tied,
    "twice": Twice,
    "one and many": OneAndMany,
    "output": lambda: nn.Conv2d(3, 12, 1),
}


@pytest.mark.parametrize("kind", UNTOUCHED)
def test_other_maps_keep_their_channels(kind: str) -> None:
    network = UNTOUCHED[kind]()
    hooked = {"hook": "first", "hook between": "between"}
    if kind in hooked:
        network.get_submodule(hooked[kind]).register_forward_hook(lambda _, __, output: output.flip(1))
    trunk = made(network if kind != "output" else nn.Sequential(network))
    wide = widened(trunk, 8)
    assert channels(wide) == channels(trunk)
    torch.testing.assert_close(wide(PICTURE), trunk(PICTURE))


@pytest.mark.parametrize("sites", [("stem",), ("depthwise", "project"), ("stem", "expand", "depthwise", "project")])
def test_gates_shift_the_channels_that_they_shifted(sites: tuple[str, ...]) -> None:
    sizes = {"stem": 12, "expand": 20, "depthwise": 20, "project": 12}
    starts = [sum(sizes[site] for site in sites[:index]) for index in range(len(sites))]
    gates = [ChannelGate(start, sizes[site]) for start, site in zip(starts, sites, strict=True)]
    insertions = [Insertion(site, gate, ("shift",)) for site, gate in zip(sites, gates, strict=True)]
    trunk = attach(Inverted(12, 20).eval().requires_grad_(False), insertions, inputs=("shift",))
    fold_gates(trunk, gates)
    shift = torch.randn(1, sum(sizes[site] for site in sites), generator=torch.Generator().manual_seed(1))
    wide = widened(trunk, 8)
    assert wide.get_submodule("head").weight.shape == (5, 16, 1, 1)
    torch.testing.assert_close(wide(PICTURE, shift), trunk(PICTURE, shift))
    assert not torch.allclose(wide(PICTURE, shift), wide(PICTURE, torch.zeros_like(shift)))


@pytest.mark.parametrize("preset", ["default", "full", "paper"])
def test_protected_trunks_answer_the_same_whatever_the_preset(tiny: Backbone, preset: str) -> None:
    afd = awakened(tiny, preset)
    trunk = protected_trunk(tiny, afd)
    size = tiny.preprocessing.size
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 3, size, size, generator=generator)
    dequantized = torch.randint(-50, 50, (1, size // 8, size // 8, 192), generator=generator).to(torch.int16)
    descriptor = afd.describe(dequantized, torch.full((1, 3, 64), 20), torch.zeros(1, 3))
    guides = dict(zip(GUIDES, (*afd.guide(descriptor, dequantized), descriptor), strict=True))
    with torch.inference_mode():
        torch.testing.assert_close(widened(trunk, 5)(x, *guides.values()), trunk(x, *guides.values()))


def test_a_backbone_whose_norms_are_folded_is_widened_too(tiny: Backbone) -> None:
    trunk = attach(fold_norms(tiny.module))
    wide = widened(trunk, 8)
    assert channels(wide)["blocks.0.conv"] == (16, 8)
    x = torch.randn(1, 3, tiny.preprocessing.size, tiny.preprocessing.size, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(wide(x), trunk(x))
