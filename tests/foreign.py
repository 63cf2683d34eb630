"""Classifiers that are none of the project's own."""

import importlib.util
from dataclasses import replace
from functools import reduce

import pytest
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from afd_serve.models.backbones import Backbone
from tests import tiny_backbone


class SmallNet(nn.Module):
    """A user's own classifier, of no known family."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to logits [N, classes]."""
        logits: Tensor = self.fc(self.body(self.entry(x)).mean((2, 3)))
        return logits


@fx.wrap
def pooled(x: Tensor) -> Tensor:
    return reduce(lambda y, dim: y.mean(dim=dim), (3, 2), x)  # no lambda passes the TorchScript compiler


@fx.wrap
def pooled_by_value(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3)) if bool(x.sum() > 0) else x.amax(dim=(2, 3))


class Unscriptable(nn.Module):
    """Runs under `torch.fx` but not under the TorchScript compiler: it stands for third-party code."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.classifier = inner.stem, inner.blocks, inner.classifier

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(pooled(self.blocks(self.stem(x))))
        return y


class ValueDependent(Unscriptable):
    """As no exported graph can be."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(pooled_by_value(self.blocks(self.stem(x))))
        return y


class Casting(Unscriptable):
    """Makes float32 of its input, whatever its weights are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def casting() -> Backbone:
    inner = tiny_backbone.backbone()
    return replace(inner, module=Casting(inner.module).eval())


def unscriptable() -> Backbone:
    inner = tiny_backbone.backbone()
    return replace(inner, module=Unscriptable(inner.module).eval())


def value_dependent() -> Backbone:
    inner = tiny_backbone.backbone()
    return replace(inner, module=ValueDependent(inner.module).eval())


def normalized() -> Backbone:
    """With a kernel that is computed at each call; TorchScript compiles that, but to what cannot run."""
    inner = tiny_backbone.backbone()
    inner.module.stem.conv = parametrizations.weight_norm(inner.module.stem.conv)
    return inner


NOT_FOR_THE_COMPILER = ("unscriptable", "normalized")
"""Functions here whose backbones the TorchScript compiler refuses, or should."""


def needs(package: str) -> None:
    """Skip where an optional package is not installed (importing it here would miss how the product does it)."""
    if importlib.util.find_spec(package) is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip(f"{package} is not installed")
