"""The deployed classifier: presets, gates, fusion."""

import math

import pytest
import torch
from torch import nn

from afd_serve.config import PRESETS
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone
from afd_serve.models.classifier import AfdClassifier
from afd_serve.models.presets import preset_config
from afd_serve.preprocess import ClassifierInputs
from tests.conftest import awakened
from tests.tiny_backbone import SIZE


def batch(gate: list[float]) -> ClassifierInputs:
    torch.manual_seed(1)
    n = len(gate)
    return ClassifierInputs(
        rgb=torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8),
        dequantized=torch.randint(-99, 99, (n, 8, 8, 192), dtype=torch.int16),
        quant_tables=torch.randint(1, 256, (n, 3, 64), dtype=torch.int32),
        geometry=torch.rand(n, 3),
        gate=torch.tensor(gate),
    )


def bare(backbone: Backbone, inputs: ClassifierInputs) -> torch.Tensor:
    mean = torch.tensor(backbone.preprocessing.mean).view(1, 3, 1, 1)
    std = torch.tensor(backbone.preprocessing.std).view(1, 3, 1, 1)
    pixels = ((inputs.rgb.float() - mean) / std).contiguous(memory_format=torch.channels_last)
    logits: torch.Tensor = backbone.module(pixels)
    return logits


def test_the_sharpness_scales_the_logits_of_open_gates_only(tiny: Backbone, awake: AfdNet) -> None:
    nn.init.zeros_(awake.sharpness.weight)
    nn.init.zeros_(awake.sharpness.bias)
    inputs = batch([1.0, 0.0])
    before = AfdClassifier(tiny, awake).eval()(*inputs)[0]
    nn.init.constant_(awake.sharpness.bias, math.log(2))
    after = AfdClassifier(tiny, awake).eval()(*inputs)[0]
    torch.testing.assert_close(after, before * torch.tensor([[2.0], [1.0]]))


@pytest.mark.parametrize("preset", PRESETS)
def test_an_unfitted_module_leaves_the_backbone_as_it_is(tiny: Backbone, preset: str) -> None:
    inputs = batch([1.0, 1.0])
    classifier = AfdClassifier(tiny, AfdNet(preset_config(preset, tiny))).eval()
    torch.testing.assert_close(classifier(*inputs)[0], bare(tiny, inputs))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_closed_gate_gives_the_bare_logits_bit_for_bit(tiny: Backbone, preset: str) -> None:
    inputs = batch([0.0, 1.0, 0.0])
    classifier = AfdClassifier(tiny, awakened(tiny, preset)).eval()
    with torch.inference_mode():
        mixed = classifier(*inputs)[0]
        closed = classifier(*inputs._replace(gate=torch.zeros(3)))[0]
        expected = bare(tiny, inputs)
    assert torch.equal(closed, expected)
    assert torch.equal(mixed[[0, 2]], expected[[0, 2]])
    assert not torch.allclose(mixed[1], expected[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_reparameterized_equals_branches(tiny: Backbone, preset: str) -> None:
    inputs = batch([1.0, 1.0])
    afd = awakened(tiny, preset)
    expected = AfdClassifier(tiny, afd).eval()(*inputs)
    afd.reparameterize()
    for ours, theirs in zip(AfdClassifier(tiny, afd).eval()(*inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_drift_score_is_never_negative_and_does_not_depend_on_the_gate(tiny: Backbone) -> None:
    classifier = AfdClassifier(tiny, awakened(tiny)).eval()
    opened, closed = classifier(*batch([1.0, 1.0]))[1], classifier(*batch([0.0, 0.0]))[1]
    assert torch.equal(opened, closed)
    assert (opened >= 0).all()
