"""The deployed classifier: pixels and the JPEG's side in, logits out."""

from typing import Final

import torch
from torch import Tensor, nn

from afd_serve.models.afd import AfdNet
from afd_serve.models.attach import Insertion, attach
from afd_serve.models.backbones import Backbone, Preprocessing

__all__ = ["GUIDES", "INPUTS", "OUTPUTS", "AfdClassifier", "Normalize", "insertions"]

INPUTS: Final = ("rgb", "dequantized", "quant_tables", "geometry", "gate")
"""The classifier's inputs, in order; `AfdClassifier.forward` says what each holds."""

OUTPUTS: Final = ("logits", "drift")


GUIDES: Final = ("modulation", "fdm", "descriptor", "gate")
"""What `AfdNet.estimate` gives the attach sites."""


def insertions(afd: AfdNet) -> list[Insertion]:
    """The calls that an AFD module adds to its backbone."""
    config = afd.config
    gates = [Insertion(site.site, gate, ("modulation",)) for site, gate in zip(config.gates, afd.gates, strict=True)]
    enhancers = [
        Insertion(site.site, enhancer, ("fdm", "descriptor", "gate"))
        for site, enhancer in zip(config.fe, afd.enhancers, strict=True)
    ]
    return gates + enhancers


class Normalize(nn.Module):
    """uint8 RGB [N, 3, S, S] to the backbone's float input."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """Normalize to float32 (x - mean) / std, in channels-last order in memory."""
        return ((rgb.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class AfdClassifier(nn.Module):
    """Normalization, AFD and the frozen backbone as one module.

    Args:
        backbone: Its module is shared, not copied, and never changed; dropping the classifier detaches AFD.
        afd: The module for this backbone.
    """

    def __init__(self, backbone: Backbone, afd: AfdNet) -> None:
        super().__init__()
        self.normalize = Normalize(backbone.preprocessing)
        self.afd = afd
        self.trunk = attach(backbone.module, insertions(afd), inputs=GUIDES)

    def forward(
        self, rgb: Tensor, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Classify N pictures.

        Args:
            rgb: uint8 [N, 3, S, S], the model's crop.
            dequantized: int16 [N, G, G, 192], G = ceil(S / 8): for each cell of the block grid the dequantized Y, Cb
                and Cr block that covers its centre, natural order.
            quant_tables: int32 [N, 3, 64], natural order, 1..65535.
            geometry: float32 [N, 3]: log2 of JPEG pixels per model pixel, log2 of horizontal and vertical chroma
                subsampling.
            gate: float32 [N]: 1 protects, 0 gives the bare backbone's logits bit for bit.

        Returns:
            Logits [N, K] and drift score [N], both float32. The drift score is the expected squared distance of the
            unprotected embedding from the clean one, in units of the embedding's variance.
        """
        descriptor, modulation, fdm, drift = self.afd.estimate(dequantized, quant_tables, geometry, gate)
        logits: Tensor = self.trunk(self.normalize(rgb), modulation, fdm, descriptor, gate)
        return logits.float(), drift.float()
