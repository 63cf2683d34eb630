"""What AFD is compared with: restoration before the classifier, restoration of shallow features, adapted BatchNorm.

Every method is a module with the inputs of `AfdClassifier`, so that all are measured and timed alike. The networks are
written from the papers' descriptions and fitted by `baseline_fit` on the pictures that AFD is fitted on.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from afd_serve.models.attach import Insertion, attach
from afd_serve.models.backbones import Backbone
from afd_serve.models.classifier import Normalize
from afd_serve.models.folding import fold_norms
from afd_serve.quality import scaled_table

__all__ = ["ArCnn", "BaselineClassifier", "DnCnn", "FeatureRestorer", "NormBank"]


class ArCnn(nn.Module):
    """AR-CNN: 9x9, 7x7, 1x1 and 5x5 convolutions with 64, 32, 16 and 3 outputs.

    Two departures from the paper, both in its favour here: it works on RGB instead of luminance, and its output is
    added to its input, because without that a fit as short as AFD's would not even reproduce the picture.

    Source: Dong et al., "Compression Artifacts Reduction by a Deep Convolutional Network", ICCV 2015.
    """

    def __init__(self) -> None:
        super().__init__()
        widths, kernels = (3, 64, 32, 16, 3), (9, 7, 1, 5)
        layers: list[nn.Module] = []
        for (inputs, outputs), kernel in zip(pairwise(widths), kernels, strict=True):
            layers += [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        _start_at_zero(self.body[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Restored pixels [N, 3, H, W] of pixels in 0..1."""
        out: Tensor = x + self.body(x)
        return out


class DnCnn(nn.Module):
    """DnCNN, scaled: convolutions of 3x3 with BatchNorm, which estimate the residual that is taken off.

    The paper has 20 layers of 64 channels for JPEG; 8 of 32 are what a fit on a CPU can train.

    Args:
        depth: Number of convolutions.
        width: Channels between them.

    Source: Zhang et al., "Beyond a Gaussian Denoiser", IEEE TIP 26, 2017.
    """

    def __init__(self, depth: int = 8, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))
        _start_at_zero(self.body[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Restored pixels [N, 3, H, W] of pixels in 0..1."""
        out: Tensor = x - self.body(x)
        return out


class _CentreSurround(nn.Module):
    """A 3x3 neighbourhood less its dilated surround, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.centre = nn.Conv2d(width, width, 3, padding=1)
        self.surround = nn.Conv2d(width, width, 3, padding=3, dilation=3)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mix(torch.relu(self.centre(x) - self.surround(x)))
        return out


class FeatureRestorer(nn.Module):
    """Feature-level restoration in the manner of the deep degradation prior (DDP).

    The published idea: a small module, fitted without labels on a few pictures, maps a frozen network's shallow
    features of a degraded picture to those of the clean one, with a receptive field of centre and surround, and is
    plugged in behind the shallow layers. This is a re-implementation of that idea, not of the authors' network.

    Args:
        channels: Of the features.
        width: Channels inside.
        blocks: Number of centre-surround blocks.

    Source: Wang et al., "Deep Degradation Prior for Low-Quality Image Classification", CVPR 2020.
    """

    def __init__(self, channels: int, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 1)
        self.body = nn.Sequential(*(_CentreSurround(width) for _ in range(blocks)))
        self.leave = nn.Conv2d(width, channels, 1)
        _start_at_zero(self.leave)

    def forward(self, x: Tensor) -> Tensor:
        """Restored features of features [N, C, H, W]."""
        out: Tensor = x + self.leave(self.body(self.enter(x)))
        return out


def _start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class BaselineClassifier(nn.Module):
    """A backbone with the inputs of `AfdClassifier`, of which it uses the pixels.

    Args:
        backbone: The classifier, not changed.
        pixels: Restores the picture first, values in 0..1.
        features: Restores what leaves the stem.
    """

    def __init__(self, backbone: Backbone, pixels: nn.Module | None = None, features: nn.Module | None = None) -> None:
        super().__init__()
        self.pixels = pixels
        self.normalize = Normalize(backbone.preprocessing)
        if features is None:
            self.trunk = attach(backbone.module)
        else:
            self.trunk = attach(fold_norms(backbone.module), [Insertion(backbone.stem, features, ())])

    def forward(
        self,
        rgb: Tensor,
        dequantized: Tensor,  # noqa: ARG002
        quant_tables: Tensor,  # noqa: ARG002
        geometry: Tensor,  # noqa: ARG002
        gate: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, K], and zeros [N] where AFD has its drift score; inputs as `AfdClassifier.forward` has them."""
        if self.pixels is not None:
            rgb = self.pixels(rgb.float() / 255.0).clamp(0.0, 1.0) * 255.0
        return self.trunk(self.normalize(rgb)), torch.zeros_like(gate)


class NormBank(nn.Module):
    """The backbone with one set of BatchNorm statistics per quality; each picture gets that of the nearest quality.

    Args:
        backbone: For the preprocessing.
        qualities: Quality factors.
        trunks: For each quality the backbone with its statistics.
    """

    tables: Tensor

    def __init__(self, backbone: Backbone, qualities: Sequence[int], trunks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.normalize = Normalize(backbone.preprocessing)
        self.trunks = nn.ModuleList(attach(trunk) for trunk in trunks)
        tables = [torch.from_numpy(scaled_table(quality).astype("float32")).flatten() for quality in qualities]
        self.register_buffer("tables", torch.stack(tables).log2())

    def forward(
        self,
        rgb: Tensor,
        dequantized: Tensor,  # noqa: ARG002
        quant_tables: Tensor,
        geometry: Tensor,  # noqa: ARG002
        gate: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits [1, K] of one picture, and zeros [1] where AFD has its drift score."""
        x, logits = self.normalize(rgb), torch.zeros_like(gate)
        distance = (self.tables - quant_tables[:1, 0].float().log2()).abs().sum(dim=1)
        chosen = int(distance.argmin())
        for index, trunk in enumerate(self.trunks):
            if index == chosen:
                logits = trunk(x)
        return logits, torch.zeros_like(gate)
