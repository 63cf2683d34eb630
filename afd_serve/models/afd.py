"""The whole AFD module: FDE-Net, the gate heads, and one enhancer, gate or adapter per attach site."""

import torch
from torch import Tensor, nn

from afd_serve.config import AfdConfig
from afd_serve.models.adapters import KernelAdapter
from afd_serve.models.fde import FdeNet
from afd_serve.models.fe import FeNet
from afd_serve.models.gates import ChannelGate, GateHeads
from afd_serve.models.repconv import RepConv
from afd_serve.models.sharpness import Sharpness

__all__ = ["AfdNet"]


class AfdNet(nn.Module):
    """All trainable parts of AFD for one backbone; the backbone itself is elsewhere and never touched.

    ``gates[k]``, ``adapters[k]`` and ``enhancers[k]`` belong to ``config.gates[k]``, ``config.adapters[k]`` and
    ``config.fe[k]``.
    """

    def __init__(self, config: AfdConfig) -> None:
        super().__init__()
        self.config = config
        self.fde = FdeNet(config.fdm_channels if config.fe else 0, config.descriptor)
        self.heads = GateHeads(config.descriptor, sum(site.channels for site in config.gates))
        self.drift = nn.Linear(config.descriptor, 1)
        self.sharpness = Sharpness(config.descriptor)
        starts = [sum(site.channels for site in config.gates[:k]) for k in range(len(config.gates))]
        self.gates = nn.ModuleList(
            ChannelGate(start, site.channels) for start, site in zip(starts, config.gates, strict=True)
        )
        self.adapters = nn.ModuleList(KernelAdapter(site) for site in config.adapters)
        self.enhancers = nn.ModuleList(FeNet(site, config.fdm_channels, config.descriptor) for site in config.fe)

    def describe(self, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor) -> Tensor:
        """The drift descriptor [N, D] of pictures.

        Args:
            dequantized: int16 [N, G, G, 192], dequantized coefficients on the model's block grid.
            quant_tables: int32 [N, 3, 64], natural order.
            geometry: float32 [N, 3].
        """
        return self.fde.describe(dequantized, quant_tables, geometry)

    def guide(self, descriptor: Tensor, dequantized: Tensor) -> tuple[Tensor, Tensor]:
        """What the attach sites need besides the descriptor: shifts [N, sum of C] and the FDM [N, F, G, G]."""
        return self.heads(descriptor), self.fde.map(dequantized)

    def drift_score(self, descriptor: Tensor) -> Tensor:
        """The drift score [N], >= 0, of descriptors [N, D]; the head is linear in the score's log(1 + x).

        The expected squared distance of the unprotected embedding from the clean one, in units of the embedding's
        variance.
        """
        return torch.expm1(self.drift(descriptor).squeeze(1).clamp(0, 10))

    @torch.no_grad()
    def fit_drift(self, descriptor: Tensor, distance: Tensor) -> None:
        """Solve the drift head by least squares; where the equations are singular its weights become NaN.

        Args:
            descriptor: Of many compressed pictures, [M, D].
            distance: How far their unprotected embeddings are from the clean ones, [M], in variances.
        """
        ones = torch.ones(descriptor.shape[0], 1)
        design = torch.cat((descriptor, ones), dim=1).double()
        ridge = 1e-3 * design.shape[0] * torch.eye(design.shape[1], dtype=torch.float64)
        solution, singular = torch.linalg.solve_ex(design.T @ design + ridge, design.T @ torch.log1p(distance.double()))
        if singular:
            solution.fill_(torch.nan)
        self.drift.weight.copy_(solution[:-1].unsqueeze(0))
        self.drift.bias.copy_(solution[-1:])

    def reparameterize(self) -> None:
        """Fuse every RepConv; the module computes the same function afterwards, with fewer products."""
        for module in self.modules():
            if isinstance(module, RepConv):
                module.reparameterize()
