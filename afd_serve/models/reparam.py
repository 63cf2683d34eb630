"""Fusion of convolution branches into one 3x3 convolution, as pure functions on kernels and biases.

Note [Biases before padding]
    A biased 1x1 followed by a zero-padded 3x3 is not a 3x3: inside, the padding would have to hold the bias, but the
    padded ring holds zero, so the border is wrong by the bias times the missing taps. Every function here that fuses a
    convolution which *precedes* a padded one therefore takes no bias for it, and `RepConv` has none there.

Kernels are [out, in, kh, kw]; biases are [out]; stride 1, groups 1, 3x3 with padding 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["pointwise_as_3x3", "sequence_1x1_3x3", "sequence_3x3_1x1"]


def sequence_1x1_3x3(first: Tensor, second: Tensor) -> Tensor:
    """The 3x3 kernel [o, i, 3, 3] of a bias-free 1x1 [m, i, 1, 1] followed by a 3x3 [o, m, 3, 3]."""
    return torch.einsum("omhw,mi->oihw", second, first[:, :, 0, 0])


def sequence_3x3_1x1(first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> tuple[Tensor, Tensor]:
    """The 3x3 kernel and bias of a 3x3 [m, i, 3, 3] with bias [m] followed by a 1x1 [o, m, 1, 1] with bias [o]."""
    mix = second[:, :, 0, 0]
    return torch.einsum("om,mihw->oihw", mix, first), mix @ first_bias + second_bias


def pointwise_as_3x3(kernel: Tensor) -> Tensor:
    """A 1x1 kernel [o, i, 1, 1] as the centre tap of a 3x3 [o, i, 3, 3]."""
    return F.pad(kernel, (1, 1, 1, 1))
