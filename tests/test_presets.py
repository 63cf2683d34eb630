"""Which sites of a backbone the presets use."""

import pytest
import torch
from torch import Tensor, nn

from afd_serve.checkpoint import find_weights, read_config
from afd_serve.config import PRESETS, FeSiteConfig, GateSiteConfig
from afd_serve.errors import AttachError, ConfigError
from afd_serve.models.backbones import Backbone, Preprocessing, load_backbone, make_backbone
from afd_serve.models.discovery import Sites
from afd_serve.models.presets import preset_config


def test_presets_choose_their_sites(tiny: Backbone) -> None:
    default, lite, full, paper = (preset_config(preset, tiny) for preset in PRESETS)
    gated = ["stem.norm", "blocks.0.norm", "blocks.1.norm", "blocks.2.norm"]
    assert [gate.site for gate in default.gates] == [gate.site for gate in full.gates] == gated
    assert full.fe == (FeSiteConfig("blocks.2", 16, stride=8, width=24, low_blocks=1),)
    adapted = {site.site: site.rank for site in default.adapters}
    assert adapted == {"stem.conv": 0, "blocks.0.conv": 0, "blocks.1.conv": 0, "blocks.2.conv": 0}
    assert default.adapters == lite.adapters == full.adapters
    assert not default.fe
    assert not lite.fe
    assert not lite.gates
    assert paper.fe == (FeSiteConfig("stem.norm", 8, stride=2),)
    assert not paper.gates
    assert not paper.adapters
    with pytest.raises(ConfigError, match="default, lite, full, paper"):
        preset_config("large", tiny)


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone("efficientnet-lite0")


@pytest.mark.parametrize("preset", ["default", "lite", "paper"])
def test_a_preset_is_what_the_shipped_weights_were_fitted_as(lite0: Backbone, preset: str) -> None:
    """Kernels of over 10,000 values have an adapter of rank 1; grouped ones larger than 3x3 have none."""
    assert preset_config(preset, lite0) == read_config(find_weights(f"efficientnet-lite0/{preset}"))


class Block(nn.Module):
    """Two convolutions with their norms, and a shortcut with a norm of its own."""

    def __init__(self, shortcut: str, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 4, 3, stride, 1, padding_mode="reflect"), nn.BatchNorm2d(4)
        self.way = shortcut
        self.add_module(shortcut, nn.Sequential(nn.Conv2d(4, 4, 1, stride), nn.BatchNorm2d(4)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm2(self.second(torch.relu(self.norm1(self.first(x)))))
        return torch.relu(y + self.get_submodule(self.way)(x))


class Windows(nn.Module):
    """Cuts a picture into quarters, each of which counts as one, and joins them again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        quarters = torch.cat([torch.cat(half.chunk(2, 2)) for half in x.chunk(2, 3)])
        top_left, bottom_left, top_right, bottom_right = self.norm(self.conv(quarters)).chunk(4)
        left, right = torch.cat((top_left, bottom_left), 2), torch.cat((top_right, bottom_right), 2)
        return torch.cat((left, right), 3)


def network(stem_stride: int, *blocks: nn.Module, sites: Sites | None = None) -> Backbone:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stem_stride, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    sites = sites or Sites("0", tuple(str(index + 1) for index in range(len(blocks))), str(len(blocks) + 3))
    preprocessing = Preprocessing(64, 1.0, "bilinear", (127.0,) * 3, (128.0,) * 3)
    return make_backbone(module.eval(), preprocessing, ["a", "b"], name="made", sites=sites)


def test_gates_are_behind_the_last_norm_of_the_main_path_or_behind_a_block_that_has_none() -> None:
    backbone = network(2, Block("downsample", 2), Block("shortcut", 1), nn.Conv2d(4, 4, 1))
    gates = [GateSiteConfig(site, 4) for site in ("0", "1.norm2", "2.norm2", "3")]
    assert list(preset_config("default", backbone).gates) == gates


class SpareNorm(nn.Module):
    """Has a norm that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.spare = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


def test_a_norm_that_is_not_called_is_no_site() -> None:
    backbone = network(2, SpareNorm())
    assert list(preset_config("default", backbone).gates) == [GateSiteConfig("0", 4), GateSiteConfig("1.norm", 4)]
    stem = network(2, SpareNorm(), sites=Sites("1", (), "4"))
    assert [site.site for site in preset_config("paper", stem).fe] == ["1.norm"]


def test_gates_are_behind_a_block_whose_last_norm_sees_windows() -> None:
    gates = preset_config("default", network(2, Windows(), nn.Conv2d(4, 4, 1))).gates
    assert [gate.site for gate in gates] == ["0", "1", "2"]


def test_a_block_that_gives_windows_is_refused() -> None:
    blocks = (Windows(), nn.Conv2d(4, 4, 1))
    sites = Sites("0", ("1.conv", "2"), "5")
    with pytest.raises(AttachError, match=r"what leaves '1\.conv' are windows of a picture"):
        preset_config("default", network(2, *blocks, sites=sites))


def test_a_convolution_that_pads_with_something_else_than_zeros_has_no_adapter() -> None:
    adapted = [site.site for site in preset_config("lite", network(2, Block("downsample", 2))).adapters]
    assert adapted == ["0", "1.first", "1.downsample.0"]


def test_a_large_kernel_has_an_adapter_unless_it_is_grouped() -> None:
    large, grouped = nn.Conv2d(4, 4, 7, padding=3), nn.Conv2d(4, 4, 5, padding=2, groups=4)
    adapted = [site.site for site in preset_config("lite", network(2, large, grouped)).adapters]
    assert adapted == ["0", "1"]


@pytest.mark.parametrize(
    ("strides", "expected"),
    [((2, 2, 1, 2), ("3", 8)), ((4, 1, 2), ("2", 8)), ((2, 1, 1), ("3", 4)), ((2, 1, 4), ("2", 4))],
)
def test_an_enhancer_is_behind_the_last_block_at_stride_8_or_else_at_stride_4(
    strides: tuple[int, ...], expected: tuple[str, int]
) -> None:
    backbone = network(2, *(nn.Conv2d(4, 4, 3, stride, 1) for stride in strides))
    (site,) = preset_config("full", backbone).fe
    assert (site.site, site.stride) == expected


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_the_papers_enhancer_is_at_the_stem(stride: int) -> None:
    assert preset_config("paper", network(stride, nn.Conv2d(4, 4, 1))).fe == (FeSiteConfig("0", 4, stride),)


def test_a_stem_at_another_stride_has_no_place_for_the_papers_enhancer() -> None:
    with pytest.raises(AttachError, match="the stem of made has stride 16"):
        preset_config("paper", network(16, nn.Conv2d(4, 4, 1)))
