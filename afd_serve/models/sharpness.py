"""How sure the protected classifier may be: its logits' scale, driven by the drift descriptor.

Embeddings that were mapped back are shrunken, the more the heavier the compression was, and so would the confidence be.
A scale changes no order, so it costs no accuracy.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Sharpness"]

_LEAST: Final = -1.0
_MOST: Final = 1.5
_RIDGE: Final = 1e-2
_ITERATIONS: Final = 100


class Sharpness(nn.Linear):
    """``logits * exp(a)`` with ``a`` linear in the descriptor; starts as the identity.

    Args:
        descriptor: Length of the drift descriptor.
    """

    least: Final[float] = _LEAST
    most: Final[float] = _MOST

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, logits: Tensor, descriptor: Tensor) -> Tensor:  # type: ignore[override]
        """Scale logits [N, K] of pictures with descriptors [N, D]."""
        exponent = F.linear(descriptor, self.weight, self.bias).clamp(self.least, self.most)
        return logits * exponent.exp()

    @torch.enable_grad()
    def fit(self, logits: Tensor, descriptor: Tensor, clean: Tensor) -> None:
        """Bring confidences [M, K] as near as they come to those on the clean pictures, in cross-entropy.

        Args:
            logits: Of many compressed pictures, protected, [M, K].
            descriptor: Theirs, [M, D].
            clean: The unprotected classifier's logits on the same pictures before compression, [M, K].
        """
        wanted, parameters = clean.softmax(dim=1), [self.weight.requires_grad_(), self.bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(parameters, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(self(logits, descriptor), wanted) + _RIDGE * self.weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.requires_grad_(False)
