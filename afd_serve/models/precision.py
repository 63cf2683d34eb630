"""A classifier whose trunks compute in a shorter floating point format than the estimate of the drift."""

import copy
from typing import Final

import torch
from torch import Tensor, nn

from afd_serve.models.classifier import AfdClassifier

__all__ = ["bare_in", "with_trunks_in"]


def with_trunks_in(classifier: AfdClassifier, dtype: torch.dtype) -> AfdClassifier:
    """A copy with the parameters and features of both trunks in ``dtype``; inputs and outputs stay as they are."""
    short = copy.deepcopy(classifier)
    short.register_module("bare", _ShortBare(short.bare, dtype))
    short.register_module("protected", _ShortProtected(short.protected, dtype))
    return short


def bare_in(trunk: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a classifier without AFD in ``dtype``; inputs and outputs stay as they are."""
    return _ShortBare(copy.deepcopy(trunk), dtype)


class _ShortBare(nn.Module):
    dtype: Final[torch.dtype]

    def __init__(self, trunk: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.trunk = trunk.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.trunk(x.to(self.dtype))
        return logits.float()


class _ShortProtected(nn.Module):
    dtype: Final[torch.dtype]

    def __init__(self, trunk: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.trunk = trunk.to(dtype)

    def forward(self, x: Tensor, shift: Tensor, fdm: Tensor, descriptor: Tensor) -> Tensor:
        dtype = self.dtype
        logits: Tensor = self.trunk(x.to(dtype), shift.to(dtype), fdm.to(dtype), descriptor.to(dtype))
        return logits.float()
