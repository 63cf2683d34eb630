"""Where AFD can attach, found by names and classes of modules, or said what there is instead."""

import pytest
import torch
from torch import nn

from afd_serve.engines.torchscript import quiet
from afd_serve.errors import AttachError
from afd_serve.models.attach import has_hooks
from afd_serve.models.backbones import load_backbone
from afd_serve.models.discovery import Sites, feature_maps, find_sites
from tests.foreign import SmallNet, needs

TORCHVISION = {
    "resnet18": ("relu", 8, "layer1.0", "fc"),
    "mobilenet_v2": ("features.0", 17, "features.1", "classifier.1"),
    "mobilenet_v3_small": ("features.0", 11, "features.1", "classifier.3"),
    "efficientnet_b0": ("features.0", 16, "features.1.0", "classifier.1"),
    "regnet_y_400mf": ("stem", 16, "trunk_output.block1.block1-0", "fc"),
    "convnext_tiny": ("features.0", 18, "features.1.0", "classifier.2"),
    "vit_b_32": ("conv_proj", 0, None, "heads.head"),
    # These have no names that are known: the graph tells.
    "vgg11": ("features.0", 7, "features.3", "classifier.6"),
    "densenet121": ("features.norm0", 7, "features.transition1.norm", "classifier"),
    "shufflenet_v2_x0_5": ("conv1.1", 17, "stage2.0", "fc"),
    "swin_t": ("features.0.0", 0, None, "head"),
}
TIMM = {
    "resnet18": ("act1", 8, "layer1.0", "fc"),
    "mobilenetv3_small_100": ("bn1", 12, "blocks.0.0", "classifier"),
    "convnext_atto": ("stem", 12, "stages.0.blocks.0", "head.fc"),
    "regnety_004": ("stem", 16, "s1.b1", "head.fc"),
    "repvgg_a0": ("stem", 21, "stages.0.0", "head.fc"),
    "vit_tiny_patch16_224": ("patch_embed.proj", 0, None, "head"),
}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [(f"torchvision:{name}@random", sites) for name, sites in TORCHVISION.items()]
    + [(f"timm:{name}@random", sites) for name, sites in TIMM.items()],
)
def test_sites_are_found_in_foreign_families(spec: str, expected: tuple[str, int, str | None, str]) -> None:
    needs(spec.partition(":")[0])
    backbone = load_backbone(spec)
    stem, count, first, embedding = expected
    assert (backbone.stem, len(backbone.blocks), backbone.embedding) == (stem, count, embedding)
    assert (backbone.blocks[0] if backbone.blocks else None) == first
    assert {backbone.stem, *backbone.blocks} <= feature_maps(backbone.module, backbone.preprocessing.size).keys()
    assert len(backbone.labels) == 1000


def test_a_family_that_nobody_knows_has_sites() -> None:
    assert find_sites(SmallNet().eval(), classes=4, size=32) == Sites("entry.0", ("body.0",), "fc")
    with pytest.raises(AttachError, match=r"7 logits.*fc \(4 outputs\)"):
        find_sites(SmallNet().eval(), classes=7, size=32)


class Pooling(nn.Module):
    """Layers with feature maps and without a convolution before the last linear layer."""

    def __init__(self, layers: int, classes: int = 4) -> None:
        super().__init__()
        self.entry = nn.Sequential(*(nn.Sequential(nn.MaxPool2d(1), nn.ReLU()) for _ in range(layers)))
        self.body = nn.MaxPool2d(2)
        self.fc = nn.Linear(3, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(self.entry(x)).mean((2, 3)))
        return logits


def test_a_network_without_convolutions_names_what_there_is() -> None:
    with pytest.raises(AttachError, match=r"Pooling has no convolution.*entry\.1 \(3x32x32\).*body \(3x16x16\)$"):
        find_sites(Pooling(2).eval(), classes=4, size=32)


class InvertedResidual(nn.Conv2d):
    """A block by the name of a known family's."""


class KnownNames(nn.Module):
    """Blocks of a known family, with a hidden layer as wide as the last one."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.Sequential(*(InvertedResidual(4, 4, 1) for _ in range(blocks)))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def test_the_embedding_is_what_the_last_layer_of_the_right_width_reads() -> None:
    assert find_sites(KnownNames(2).eval(), classes=4, size=32) == Sites("stem", ("blocks.0", "blocks.1"), "head.2")


def test_where_no_linear_layer_is_the_last_convolution_gives_the_logits() -> None:
    network = KnownNames(1)
    network.head = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 4, 1), nn.Flatten())
    assert find_sites(network.eval(), classes=4, size=32) == Sites("stem", ("blocks.0",), "head.1")


def test_the_last_convolution_is_no_block() -> None:
    ends = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), *ends)
    assert find_sites(network.eval(), classes=4, size=32) == Sites("0", (), "2")


class FirstRegistered(nn.Module):
    """Its last layer is made before others as wide: one only training calls, one is dropped, one stands beside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.entry = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)
        self.aux, self.unread, self.beside = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.entry(x)
        y = y * self.excite(self.squeeze(y.mean((2, 3))))[:, :, None, None]
        logits: torch.Tensor = self.fc(y.mean((2, 3)))
        self.unread(logits).sigmoid()
        logits = logits + 0.5 * self.beside(y.flatten(2).transpose(1, 2)).amax(1)
        return logits + self.aux(y.mean((2, 3))) if self.training else logits


def test_the_last_layer_is_the_one_whose_output_is_nearest_to_the_logits() -> None:
    assert find_sites(FirstRegistered().eval(), classes=4, size=32).embedding == "fc"


class BasicBlock(nn.Sequential):
    """A block by the name of a known family's."""

    def __init__(self, stride: int) -> None:
        super().__init__(nn.Conv2d(8, 8, 3, stride, 1), nn.ReLU())


class LikeAResNet(nn.Module):
    """Has the names of a ResNet, and ``uses`` says for what it calls the stem's."""

    def __init__(self, uses: str) -> None:
        super().__init__()
        self.uses = uses
        self.conv, self.relu = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()
        self.second, self.first, self.fc = BasicBlock(2), BasicBlock(1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = self.relu(y) if "stem" in self.uses else torch.relu(y)
        y = self.second(self.first(y))
        y = self.first(y) if "twice" in self.uses else y
        y = self.relu(y) if "end" in self.uses else torch.relu(y)
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize(
    ("uses", "stem", "blocks"),
    [
        ("stem", "relu", ("first", "second")),
        ("stem, end", "conv", ("first.0", "second.0")),
        ("end", "conv", ("first.0", "second.0")),
        ("nothing", "conv", ("first.0", "second.0")),
    ],
)
def test_known_names_are_believed_where_the_stems_is_called_before_the_blocks_and_only_there(
    uses: str, stem: str, blocks: tuple[str, ...]
) -> None:
    assert find_sites(LikeAResNet(uses).eval(), classes=4, size=32) == Sites(stem, blocks, "fc")


def test_blocks_that_are_called_twice_are_of_no_known_family() -> None:
    assert find_sites(LikeAResNet("stem, twice").eval(), classes=4, size=32).stem == "conv"


def test_a_classifier_within_torchscript_is_said_to_be_closed() -> None:
    with quiet():
        network = nn.Sequential(torch.jit.script(SmallNet()))
    with pytest.raises(AttachError, match="linear layers: none; 0 is TorchScript, whose layers are not seen"):
        find_sites(network.eval(), classes=4, size=32)


def test_a_stem_of_a_known_name_without_known_blocks_is_of_no_known_family() -> None:
    assert find_sites(KnownNames(0).eval(), classes=4, size=32) == Sites("stem", (), "head.2")


def test_what_the_stem_is_made_of_is_no_block() -> None:
    network = KnownNames(1)
    network.stem = nn.Sequential(InvertedResidual(3, 4, 1))
    assert find_sites(network.eval(), classes=4, size=32) == Sites("stem", ("blocks.0",), "head.2")


def test_looking_for_feature_maps_leaves_nothing_behind() -> None:
    network = KnownNames(1).eval()
    assert feature_maps(network, 32) == {"stem": (4, 32, 32), "blocks.0": (4, 32, 32), "blocks": (4, 32, 32)}
    assert not any(has_hooks(module) for module in network.modules()), "or nothing could be folded"


def test_a_deep_networks_blocks_are_among_the_candidates_and_the_others_counted() -> None:
    with pytest.raises(AttachError, match=r"entry\.19 \(3x32x32\).*, body \(3x16x16\), and 38 more"):
        find_sites(Pooling(20).eval(), classes=4, size=32)
