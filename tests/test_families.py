"""AFD on classifiers of other libraries: it attaches, learns, deploys, and leaves good pictures alone."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from afd_serve.config import FitConfig
from afd_serve.errors import AttachError
from afd_serve.export import example_inputs, freeze_classifier
from afd_serve.models.afd import AfdNet
from afd_serve.models.attach import attach
from afd_serve.models.backbones import Backbone, Preprocessing, make_backbone
from afd_serve.models.classifier import GUIDES, AfdClassifier, Normalize, insertions, kernel_changes
from afd_serve.models.folding import fold_norms
from afd_serve.models.presets import preset_config
from afd_serve.models.torchvision_compat import import_timm, import_torchvision_models
from afd_serve.training import fit as fit_module
from afd_serve.training.pictures import find_pictures
from tests.foreign import needs

SIZE = 64
CLASSES = 10

CONVOLUTIONAL = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:regnet_y_400mf",
    "torchvision:shufflenet_v2_x0_5",
    "timm:efficientnet_b0",
    "timm:convnext_atto",
    "timm:dla34",
    "timm:efficientvit_m0",
    "timm:mobilevitv2_050",
    "timm:repvgg_a0",
    "timm:tf_mobilenetv3_small_minimal_100",
)
TRANSFORMER = "timm:vit_tiny_patch16_224"


@cache
def family(spec: str) -> Backbone:
    """A small member with random weights, and statistics in its norms that are not those of an identity."""
    kind, _, name = spec.partition(":")
    needs(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "torchvision":
            module = import_torchvision_models().get_model(name, weights=None, num_classes=CLASSES)
        else:
            options = {"img_size": SIZE} if name.startswith("vit") else {}
            module = import_timm().create_model(name, pretrained=False, num_classes=CLASSES, **options)
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    preprocessing = Preprocessing(SIZE, 1.0, "bilinear", (127.0,) * 3, (128.0,) * 3)
    return make_backbone(module, preprocessing, [str(index) for index in range(CLASSES)], name=spec)


def awake(backbone: Backbone, preset: str) -> AfdNet:
    """A module that changes its backbone, by so little that random weights stay in range."""
    torch.manual_seed(3)
    afd = AfdNet(preset_config(preset, backbone)).eval()
    with torch.no_grad():
        for parameter in afd.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return afd


def train_once(backbone: Backbone, preset: str) -> AfdNet:
    afd = awake(backbone, preset).train()
    student = attach(
        fold_norms(backbone.module),
        insertions(afd),
        kernels=kernel_changes(afd),
        inputs=GUIDES,
        taps=backbone.blocks[-1:],
        embedding=backbone.embedding,
    )
    inputs = example_inputs(SIZE)
    descriptor = afd.describe(*inputs[1:4])
    *_, embedding = student(
        Normalize(backbone.preprocessing)(inputs.rgb), *afd.guide(descriptor, inputs.dequantized), descriptor
    )
    embedding.square().mean().backward()
    return afd


@pytest.mark.parametrize(
    ("spec", "preset"),
    [(spec, preset) for spec in CONVOLUTIONAL for preset in ("full", "default")] + [(TRANSFORMER, "default")],
)
def test_every_parameter_learns(spec: str, preset: str) -> None:
    backbone = family(spec)
    afd = train_once(backbone, preset)
    config = afd.config
    assert len(config.gates) == len({site.site for site in config.gates}) == 1 + len(backbone.blocks)
    assert config.adapters
    assert [site.stride for site in config.fe] == ([8] if preset == "full" else [])
    for name, parameter in afd.named_parameters():
        if not name.startswith(("drift.", "sharpness.")):  # solved at the end of a fit
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


@pytest.mark.parametrize("spec", [*CONVOLUTIONAL, TRANSFORMER])
def test_the_deployed_form_agrees_and_leaves_good_pictures_alone(spec: str) -> None:
    backbone = family(spec)
    fingerprint = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    afd = awake(backbone, "default" if spec == TRANSFORMER else "full").requires_grad_(False)
    afd.reparameterize()
    classifier = AfdClassifier(backbone, afd).eval()
    inputs = example_inputs(SIZE)  # the first gate is open, the second is closed
    with torch.inference_mode():
        bare = backbone.module(classifier.normalize(inputs.rgb))
        assert torch.equal(classifier(*inputs._replace(gate=torch.zeros(2)))[0], bare)
        protected = classifier(*inputs._replace(gate=torch.ones(2)))[0]
    assert not torch.allclose(protected, bare)
    scripted = freeze_classifier(classifier, inputs)
    with torch.inference_mode():
        for ours, theirs in zip(scripted(*inputs), classifier(*inputs), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        closed, other = inputs._replace(gate=torch.zeros(2)), example_inputs(SIZE)._replace(dequantized=inputs[1] // 2)
        logits = scripted(*closed)[0]
        assert torch.equal(scripted(*other._replace(gate=torch.zeros(2)))[0], logits)
        assert torch.equal(scripted(*inputs)[0][1], logits[1])
    assert all(torch.equal(value, fingerprint[name]) for name, value in backbone.module.state_dict().items())


def test_a_transformer_has_no_place_for_an_enhancer_and_says_what_has() -> None:
    with pytest.raises(AttachError, match=r"no block at stride 8 or 4.*use preset 'default'"):
        preset_config("full", family(TRANSFORMER))


def test_an_enhancer_at_the_stem_of_a_transformer_is_refused() -> None:
    with pytest.raises(AttachError, match=r"stride 16.*use preset 'default'"):
        preset_config("paper", family(TRANSFORMER))


def test_a_transformer_is_fitted_at_the_one_size_that_it_takes(
    picture_folder: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("timm")
    module = import_timm().create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=CLASSES, img_size=160, depth=1
    )
    preprocessing = Preprocessing(160, 1.0, "bilinear", (127.0,) * 3, (128.0,) * 3)
    backbone = make_backbone(module, preprocessing, [str(index) for index in range(CLASSES)], name="transformer")
    monkeypatch.setattr(fit_module, "_CALIBRATION_BATCHES", 1)
    monkeypatch.setattr(fit_module, "_CLOSING_BATCHES", 1)
    config = FitConfig("transformer", (), tmp_path / "run", steps=2, batch_size=2, workers=0, bf16=False)
    trainer = fit_module.Trainer(config, backbone, find_pictures([picture_folder(2)]))
    assert trainer.data.sizes == (160,)
    assert math.isfinite(trainer.run().loss)
