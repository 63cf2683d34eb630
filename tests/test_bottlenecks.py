"""Attach sites of classifiers of any family, found in their graphs."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afd_serve.models.backbones import load_backbone
from afd_serve.models.bottlenecks import find_bottlenecks
from afd_serve.models.recording import trace
from tests.foreign import needs


def bottlenecks(module: nn.Module, size: int) -> list[str]:
    return find_bottlenecks(module, trace(module), size)


class Residual(nn.Module):
    """Two convolutions that the input bypasses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x))
        return out


class Fork(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


class Computed(nn.Conv2d):
    """A convolution with a kernel that is computed at each call."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.norm(), self.bias, self.stride, self.padding)


class ChannelsLast(nn.Module):
    """A step whose output has its channels behind its rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 4, 3, 1, 1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.conv(x).permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class Windows(nn.Module):
    """A step that cuts a feature map of 16x16 into four, each of which counts as a picture, and joins them again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
        seen = self.conv(windows.reshape(-1, 4, 8, 8)).view(-1, 2, 2, 4, 8, 8)
        return seen.permute(0, 3, 1, 4, 2, 5).reshape(-1, 4, 16, 16)


def conv(inputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, 4, 3, 1, 1)


def network(**steps: nn.Module) -> nn.Sequential:
    ends = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(4, 3))
    return nn.Sequential(OrderedDict(stem=conv(3), **steps, **ends)).eval()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (conv(), ["stem", "step"]),
        (nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()), ["stem", "step.1"]),
        (nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4)), ["stem", "step.0"]),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), conv()), ["step.0", "step.2"]),
        (nn.Sequential(Residual(), nn.ReLU(), Residual()), ["stem", "step.0", "step.2"]),
        (Fork(), ["stem", "step"]),
        (Computed(4, 4, 3, 1, 1), ["stem", "step"]),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), ["stem"]),
        (nn.Sequential(nn.MaxPool2d(2), Windows()), ["stem", "step.1"]),
    ],
    ids=[
        "convolution",
        "norm",
        "late norm",
        "early norm",
        "residuals",
        "fork",
        "computed kernel",
        "no convolution",
        "windows",
    ],
)
def test_a_step_ends_where_one_feature_map_is_all_that_goes_on(step: nn.Module, expected: list[str]) -> None:
    assert bottlenecks(network(step=step), 32) == expected


def test_what_a_later_step_reads_bypasses_all_between() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second, self.head = conv(3), conv(), conv(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            early = self.stem(x)
            features = self.second(self.first(early))
            logits: Tensor = self.head(features.mean((2, 3)) + early.mean((2, 3)))
            return logits

    assert bottlenecks(Dense().eval(), 32) == ["stem"]


def test_what_nothing_reads_is_no_step() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.unused, self.head = conv(3), conv(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            features = self.stem(x)
            logits: Tensor = self.head(features.mean((2, 3)))
            self.unused(features)
            return logits

    assert bottlenecks(Wasteful().eval(), 32) == ["stem"]


def test_maps_with_channels_last_and_single_cells_are_no_feature_maps() -> None:
    assert bottlenecks(network(step=ChannelsLast()), 32) == ["stem", "step.conv"]
    squeezed = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv())
    assert bottlenecks(network(step=squeezed), 32) == ["stem"]


def test_a_network_without_convolutions_has_none() -> None:
    assert bottlenecks(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3)).eval(), 8) == []


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18", "timm:regnety_004"])
def test_blocks_that_are_known_by_name_are_found_in_the_graph_as_well(spec: str) -> None:
    needs(spec.partition(":")[0])
    backbone = load_backbone(f"{spec}@random")
    _, *blocks = bottlenecks(backbone.module, backbone.preprocessing.size)
    assert tuple(blocks) == backbone.blocks
