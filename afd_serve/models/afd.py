"""The whole AFD module: FDE-Net, the gate heads, and one enhancer or gate per attach site."""

import torch
from torch import Tensor, nn

from afd_serve.config import AfdConfig
from afd_serve.models.fde import FdeNet
from afd_serve.models.fe import FeNet
from afd_serve.models.gates import ChannelGate, GateHeads
from afd_serve.models.repconv import RepConv

__all__ = ["AfdNet"]


class AfdNet(nn.Module):
    """All trainable parts of AFD for one backbone; the backbone itself is elsewhere and never touched.

    ``gates[k]`` and ``enhancers[k]`` belong to ``config.gates[k]`` and ``config.fe[k]``.
    """

    def __init__(self, config: AfdConfig) -> None:
        super().__init__()
        self.config = config
        self.fde = FdeNet(config.fdm_channels if config.fe else 0, config.descriptor)
        self.heads = GateHeads(config.descriptor, [site.channels for site in config.gates])
        self.drift = nn.Linear(config.descriptor, 1)
        starts = [2 * sum(site.channels for site in config.gates[:k]) for k in range(len(config.gates))]
        self.gates = nn.ModuleList(
            ChannelGate(start, site.channels) for start, site in zip(starts, config.gates, strict=True)
        )
        self.enhancers = nn.ModuleList(FeNet(site, config.fdm_channels, config.descriptor) for site in config.fe)

    def estimate(
        self, dequantized: Tensor, quant_tables: Tensor, geometry: Tensor, gate: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything that the attach sites need, from the JPEG's side alone.

        Args:
            dequantized: int16 [N, G, G, 192], dequantized coefficients on the model's block grid.
            quant_tables: int32 [N, 3, 64], natural order.
            geometry: float32 [N, 3].
            gate: float32 [N], 1 open, 0 closed.

        Returns:
            descriptor [N, D], modulation [N, 2 * sum of C], FDM [N, F, G, G] (zero when every gate is closed) and the
            drift score [N], the expected relative distance of the unprotected embedding from the clean one.
        """
        descriptor = self.fde.describe(dequantized, quant_tables, geometry)
        modulation = self.heads(descriptor, gate)
        return descriptor, modulation, self._map(dequantized, gate), self.drift_score(descriptor)

    def drift_score(self, descriptor: Tensor) -> Tensor:
        """The drift score [N], >= 0, of descriptors [N, D]; the head is linear in the score's log(1 + x)."""
        return torch.expm1(self.drift(descriptor).squeeze(1).clamp(0, 10))

    @torch.no_grad()
    def fit_drift(self, descriptor: Tensor, distance: Tensor) -> None:
        """Solve the drift head by least squares.

        Args:
            descriptor: Of many compressed pictures, [M, D].
            distance: How far their unprotected embeddings are from the clean ones, [M], in variances.
        """
        ones = torch.ones(descriptor.shape[0], 1)
        design = torch.cat((descriptor, ones), dim=1).double()
        ridge = 1e-3 * design.shape[0] * torch.eye(design.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(design.T @ design + ridge, design.T @ torch.log1p(distance.double()))
        self.drift.weight.copy_(solution[:-1].unsqueeze(0))
        self.drift.bias.copy_(solution[-1:])

    def _map(self, dequantized: Tensor, gate: Tensor) -> Tensor:
        if self.fde.fdm_channels > 0 and bool((gate > 0).any()):
            return self.fde.map(dequantized)
        n, rows, columns = dequantized.shape[0], dequantized.shape[1], dequantized.shape[2]
        return torch.zeros((n, self.fde.fdm_channels, rows, columns), device=dequantized.device)

    def reparameterize(self) -> None:
        """Fuse every RepConv; the module computes the same function afterwards, with fewer products."""
        for module in self.modules():
            if isinstance(module, RepConv):
                module.reparameterize()
