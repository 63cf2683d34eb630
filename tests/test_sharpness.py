"""The protected logits' scale."""

import torch
from torch import Tensor
from torch.nn import functional as F

from afd_serve.models.sharpness import Sharpness


def shrunken(count: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """Clean logits, descriptors, and logits that are shrunken by what the first descriptor's value says."""
    torch.manual_seed(0)
    clean, descriptor = 3 * torch.randn(count, 10), torch.rand(count, 4)
    return clean, descriptor, clean * torch.exp(-descriptor[:, :1])


def test_it_starts_as_the_identity() -> None:
    clean, descriptor, _ = shrunken()
    assert torch.equal(Sharpness(4)(clean, descriptor), clean)


def test_it_learns_the_scale_that_brings_the_clean_confidence_back() -> None:
    clean, descriptor, logits = shrunken()
    sharpness = Sharpness(4)
    before = F.cross_entropy(logits, clean.softmax(dim=1))
    sharpness.fit(logits, descriptor, clean)
    after = F.cross_entropy(sharpness(logits, descriptor), clean.softmax(dim=1))
    least = F.cross_entropy(clean, clean.softmax(dim=1))
    assert after - least < 0.1 * (before - least)
    assert not any(parameter.requires_grad for parameter in sharpness.parameters())


def test_it_never_changes_the_order() -> None:
    _, descriptor, logits = shrunken()
    sharpness = Sharpness(4)
    sharpness.weight.data.fill_(100.0)
    assert torch.equal(sharpness(logits, descriptor).argsort(dim=1), logits.argsort(dim=1))
