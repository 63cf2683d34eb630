"""A small classifier with seeded weights: what a user's own file would hold, and quick enough for every test."""

import torch
from torch import Tensor, nn

from afd_serve.models.backbones import Backbone, Preprocessing, make_backbone
from afd_serve.models.discovery import Sites

SIZE = 64
CLASSES = 10


class TinyBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU()
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.conv(x)))
        return x + y if self.residual else y


class TinyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = TinyBlock(3, 8, 2)
        self.blocks = nn.Sequential(TinyBlock(8, 12, 2), TinyBlock(12, 16, 2), TinyBlock(16, 16, 1))
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.blocks(self.stem(x)).mean(dim=(2, 3)))
        return y


def backbone() -> Backbone:
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    module = TinyNet()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 1.5)
    torch.random.set_rng_state(state)
    preprocessing = Preprocessing(SIZE, 0.875, "bilinear", (120.0, 115.0, 105.0), (60.0, 58.0, 57.0))
    return make_backbone(
        module,
        preprocessing,
        [f"class {index}" for index in range(CLASSES)],
        name=f"file:{__file__}",
        sites=Sites("stem", ("blocks.0", "blocks.1", "blocks.2"), "classifier"),
    )
