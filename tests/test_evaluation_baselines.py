"""The methods that AFD is compared with: they start as identities, they learn, they leave the backbone alone."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afd_serve.config import FitConfig
from afd_serve.engines.torchscript import Packed, freeze
from afd_serve.errors import ConfigError
from afd_serve.evaluation.baseline_fit import (
    BASELINES,
    _at_quality,
    _FeatureLoss,
    _patches,
    adapted_norms,
    fit_baseline,
    has_norms,
    restorer,
)
from afd_serve.evaluation.baselines import BaselineClassifier, NormBank
from afd_serve.export import example_inputs
from afd_serve.models.attach import attach
from afd_serve.models.backbones import Backbone, make_backbone
from afd_serve.models.classifier import Normalize
from afd_serve.models.discovery import Sites
from afd_serve.quality import scaled_table
from afd_serve.training.data import CompressedPairs
from afd_serve.training.fit import rate_share
from afd_serve.training.pictures import find_pictures
from tests.foreign import SmallNet
from tests.test_backbones import SMALL
from tests.tiny_backbone import SIZE


@pytest.fixture
def config(picture_folder: Callable[[int], Path], tmp_path: Path) -> FitConfig:
    return FitConfig(
        backbone="tiny",
        images=(picture_folder(4),),
        out=tmp_path,
        steps=12,
        batch_size=4,
        sizes=(64,),
        warmup_steps=2,
        workers=0,
        bf16=False,
    )


@pytest.mark.parametrize("name", BASELINES)
def test_an_unfitted_baseline_changes_nothing(tiny: Backbone, name: str) -> None:
    network = restorer(name, tiny)
    x = torch.rand(2, 8 if name == "ddp" else 3, 24, 32)
    torch.testing.assert_close(network(x), x)


def test_pixel_baselines_are_the_papers_networks(tiny: Backbone) -> None:
    arcnn, dncnn = (
        [module for module in restorer(name, tiny).modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
        for name in ("arcnn", "dncnn")
    )
    assert [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in arcnn] == [
        (3, 64, 9),
        (64, 32, 7),
        (32, 16, 1),
        (16, 3, 5),
    ]
    assert [type(layer) for layer in dncnn] == [nn.Conv2d] + [nn.Conv2d, nn.BatchNorm2d] * 6 + [nn.Conv2d]
    assert {layer.kernel_size for layer in dncnn if isinstance(layer, nn.Conv2d)} == {(3, 3)}


class Brighten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5


def test_restored_pixels_stay_pixels(tiny: Backbone) -> None:
    inputs = example_inputs(SIZE)
    brighter = (inputs.rgb.float() + 127.5).clamp(max=255)
    with torch.inference_mode():
        expected = tiny.module(Normalize(tiny.preprocessing)(brighter))
        found = BaselineClassifier(tiny, pixels=Brighten()).eval()(*inputs)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def errors(network: nn.Module, name: str, backbone: Backbone, config: FitConfig) -> tuple[float, float]:
    """Mean squared errors of pictures (for `ddp`: of the stem's features) before and after a network, on new crops."""
    data = CompressedPairs(
        find_pictures(config.images), backbone.preprocessing, sizes=[64], batch_size=16, batches=1, seed=9
    )
    pair, normalize = data[0], Normalize(backbone.preprocessing)
    if name == "ddp":
        stem = attach(backbone.module, taps=[backbone.stem])
        compressed, clean = (stem(normalize(x))[1] for x in (pair.inputs.rgb, pair.clean))
    else:
        compressed, clean = (x.float() / 255 for x in (pair.inputs.rgb, pair.clean))
    with torch.no_grad():
        return float((compressed - clean).square().mean()), float((network(compressed) - clean).square().mean())


@pytest.mark.parametrize("name", ["dncnn", "ddp"])
def test_a_fitted_baseline_brings_the_error_down(tiny: Backbone, config: FitConfig, name: str) -> None:
    config = replace(config, steps=40)  # running statistics need some
    told: list[tuple[int, int]] = []
    network = fit_baseline(name, tiny, find_pictures(config.images), config, lambda *step: told.append(step))
    before, after = errors(network, name, tiny, config)
    assert after < before
    assert told[-1] == (config.steps, config.steps)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_arcnn_is_fitted_on_pixels(tiny: Backbone, config: FitConfig) -> None:
    short = replace(config, steps=1, batch_size=2)
    network, pixels = fit_baseline("arcnn", tiny, find_pictures(config.images), short), torch.rand(1, 3, 16, 16)
    assert network(pixels).shape == pixels.shape
    assert not torch.equal(network(pixels), pixels)


def test_a_patch_is_the_same_of_both_pictures_and_lies_anywhere_on_their_blocks() -> None:
    torch.manual_seed(0)
    places = set()
    row, column = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
    where = torch.stack((row, column, row + column))[None].to(torch.uint8)
    for _ in range(60):
        first, second = _patches(where, where.clone())
        assert torch.equal(first, second)
        assert first.shape == (1, 3, 64, 64)
        places.add(tuple((255 * first[0, :2, 0, 0]).round().int().tolist()))
    assert places == {(top, left) for top in (0, 8, 16) for left in (0, 8, 16)}
    (whole,) = _patches(where[:, :, :32, :32])
    torch.testing.assert_close(255 * whole, where[:, :, :32, :32].float())


def test_features_are_compared_in_units_of_each_channels_variance(tiny: Backbone, config: FitConfig) -> None:
    settings = {"sizes": [64], "batch_size": 4, "batches": 1, "seed": 9}
    pair = CompressedPairs(find_pictures(config.images), tiny.preprocessing, **settings)[0]
    stem, normalize = attach(tiny.module, taps=[tiny.stem]), Normalize(tiny.preprocessing)
    clean, compressed = (stem(normalize(x))[1] for x in (pair.clean, pair.inputs.rgb))
    variance = clean.var(dim=(0, 2, 3), keepdim=True)
    expected = ((compressed - clean).square() / variance).mean()
    torch.testing.assert_close(_FeatureLoss(nn.Identity(), tiny)(pair, False), expected, rtol=1e-3, atol=0)


def test_a_seed_decides_the_weights(tiny: Backbone, config: FitConfig) -> None:
    pictures, short = find_pictures(config.images), replace(config, steps=2)
    first, again, other = (
        torch.cat([value.flatten() for value in fit_baseline("ddp", tiny, pictures, settings).state_dict().values()])
        for settings in (short, short, replace(short, seed=1))
    )
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.02, "by more than two steps can move a weight"


def test_each_step_has_the_rate_of_the_schedule_and_a_gradient_no_longer_than_one(
    tiny: Backbone, config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, lengths, step = [], [], torch.optim.AdamW.step

    def noted(optimizer: torch.optim.AdamW) -> None:
        (group,) = optimizer.param_groups
        rates.append(group["lr"])
        lengths.append(torch.cat([value.grad.flatten() for value in group["params"]]).norm())
        step(optimizer)
        for value in group["params"]:
            value.grad.fill_(math.nan)  # no step may add its gradient to what the one before has left

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    fit_baseline("ddp", tiny, find_pictures(config.images), config)
    assert rates == pytest.approx([1e-3 * rate_share(done, config) for done in range(config.steps)])
    assert all(length <= 1.001 for length in lengths)


@pytest.mark.parametrize("place", ["pixels", "features", None])
def test_an_unfitted_classifier_gives_the_backbones_logits(tiny: Backbone, place: str | None) -> None:
    networks = {} if place is None else {place: restorer("ddp" if place == "features" else "dncnn", tiny).eval()}
    classifier = BaselineClassifier(tiny, **networks).eval()
    inputs = example_inputs(SIZE)
    with torch.inference_mode():
        expected = tiny.module(Normalize(tiny.preprocessing)(inputs.rgb))
        torch.testing.assert_close(classifier(*inputs)[0], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(Packed(freeze(classifier), inputs)(*inputs)[0], expected, atol=1e-4, rtol=1e-4)


def test_adapted_norms_have_the_statistics_of_compressed_pictures(tiny: Backbone, config: FitConfig) -> None:
    tiny = replace(tiny, module=copy.deepcopy(tiny.module))
    for norm in (module for module in tiny.module.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.num_batches_tracked.fill_(100_000)  # as those of a trained network
    before = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    heavy, mild = adapted_norms(tiny, find_pictures(config.images), (5, 50), config)
    assert all(torch.equal(value, before[name]) for name, value in tiny.module.state_dict().items())
    means = [trunk.get_submodule("stem.norm").running_mean for trunk in (tiny.module, heavy, mild)]
    pictures = _at_quality(tiny, find_pictures(config.images), 5, config)
    rgb = torch.cat([pictures[index].inputs.rgb for index in range(len(pictures))])
    read = tiny.module.get_submodule("stem.conv")(Normalize(tiny.preprocessing)(rgb))
    torch.testing.assert_close(means[1], read.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(means[0], means[1])
    assert not torch.allclose(means[1], means[2])
    assert not any(module.training for module in heavy.modules())
    assert torch.equal(heavy.get_submodule("classifier").weight, tiny.module.get_submodule("classifier").weight)


def test_pictures_for_norms_are_compressed_once_at_one_quality_and_otherwise_as_they_are(
    tiny: Backbone, config: FitConfig
) -> None:
    told: list[tuple[int, int]] = []
    pictures = _at_quality(tiny, find_pictures(config.images), 30, replace(config, seed=7))
    chances = {name for name, value in asdict(pictures.recipe).items() if name.startswith("p_") and value}
    assert (chances, pictures.recipe.heavy, pictures.recipe.only_open) == ({"p_flip"}, (30, 30), False)
    assert (pictures.seed, pictures.sizes) == (7, (64,))
    adapted_norms(tiny, find_pictures(config.images), (10, 30), config, lambda *step: told.append(step))
    assert told == [(done, 2 * len(pictures)) for done in range(1, 2 * len(pictures) + 1)]


def test_a_backbone_without_norms_cannot_be_adapted(config: FitConfig) -> None:
    backbone = make_backbone(SmallNet(), SMALL, list("abcd"), name="own", sites=Sites("entry", ("body",), "fc"))
    assert not has_norms(backbone)
    with pytest.raises(ConfigError, match="no BatchNorm"):
        adapted_norms(backbone, find_pictures(config.images), (10,), config)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * 0 + self.value


@pytest.mark.parametrize(("quality", "chosen"), [(25, 0.0), (10, 1.0), (9, 1.0), (5, 2.0), (95, 0.0)])
def test_a_bank_of_norms_takes_the_nearest_quality(tiny: Backbone, quality: int, chosen: float) -> None:
    bank = NormBank(tiny, (25, 10, 6), [Constant(0.0), Constant(1.0), Constant(2.0)]).eval()
    table = torch.from_numpy(scaled_table(quality).astype("int32")).flatten()
    chroma = torch.from_numpy(scaled_table(50).astype("int32")).flatten()
    inputs = example_inputs(SIZE, 1)._replace(quant_tables=torch.stack((table, chroma, chroma))[None])
    for module in (bank, Packed(freeze(bank), inputs)):
        assert torch.equal(module(*inputs)[0], torch.full((1, 3), chosen))
