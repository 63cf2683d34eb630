"""The backbones: ours, libraries' and users' own, specs and errors."""

import importlib
import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from afd_serve.errors import AttachError, BackboneError, DependencyError
from afd_serve.labels import imagenet_labels
from afd_serve.models.backbones import Preprocessing, load_backbone, make_backbone
from afd_serve.models.discovery import Sites, feature_maps
from afd_serve.models.efficientnet_lite import VARIANTS
from afd_serve.models.torchvision_compat import import_timm
from tests.foreign import SmallNet, needs

NAMES = tuple(VARIANTS)
SMALL = Preprocessing(32, 1.0, "bilinear", (127.0,) * 3, (128.0,) * 3)


def test_efficientnet_lite0_knows_what_afd_needs() -> None:
    backbone = load_backbone("efficientnet-lite0")
    assert backbone.preprocessing == Preprocessing(224, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)
    assert backbone.labels == imagenet_labels()
    assert (backbone.stem, backbone.embedding) == ("stem", "classifier")
    assert backbone.blocks == tuple(f"blocks.{index}" for index in range(16))
    assert not backbone.module.training
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    shapes = feature_maps(backbone.module, 224)
    assert shapes[backbone.stem] == (32, 112, 112)
    assert shapes[backbone.blocks[-1]] == (320, 7, 7)


def test_fingerprint_tells_weights_apart() -> None:
    first, again, other = (load_backbone(name) for name in (NAMES[0], NAMES[0], NAMES[1]))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    next(again.module.parameters()).view(-1)[0] += 1e-3
    changed = make_backbone(again.module, again.preprocessing, again.labels, name="changed")
    assert changed.fingerprint != first.fingerprint


def test_unknown_specs_name_the_known_ones() -> None:
    for spec in ("resnet50", "torchvision:", "efficientnet-lite9", ""):
        with pytest.raises(BackboneError, match="efficientnet-lite0"):
            load_backbone(spec)


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_a_missing_library_says_what_to_install(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == kind else find(name))
    with pytest.raises(DependencyError, match=f"pip install {kind}|pip install torchvision"):
        load_backbone(f"{kind}:resnet18@random")


@pytest.mark.parametrize(
    ("spec", "size", "crop_fraction", "interpolation"),
    [
        ("torchvision:resnet18@random", 224, 224 / 256, "bilinear"),
        ("torchvision:regnet_y_400mf@random", 224, 224 / 232, "bilinear"),
        ("torchvision:efficientnet_b0@random", 224, 224 / 256, "bicubic"),
        ("timm:test_resnet.r160_in1k@random", 160, 0.95, "bilinear"),
        ("timm:test_vit@random", 160, 0.95, "bicubic"),
    ],
)
def test_a_librarys_preprocessing_and_labels_come_from_the_weights(
    spec: str, size: int, crop_fraction: float, interpolation: str
) -> None:
    needs(spec.partition(":")[0])
    backbone = load_backbone(spec)
    found = backbone.preprocessing
    assert (found.size, found.interpolation) == (size, interpolation)
    assert found.crop_fraction == pytest.approx(crop_fraction)
    if not spec.startswith("timm:test"):
        assert found.mean == pytest.approx((123.675, 116.28, 103.53))
        assert found.std == pytest.approx((58.395, 57.12, 57.375))
    assert backbone.labels == imagenet_labels()


def test_a_timm_network_without_a_classifier_is_refused() -> None:
    needs("timm")
    with pytest.raises(BackboneError, match="eva02_tiny_patch14_224 puts out features, no logits"):
        load_backbone("timm:eva02_tiny_patch14_224@random")


def test_timm_has_its_weights_in_the_name() -> None:
    needs("timm")
    with pytest.raises(BackboneError, match=r"test_resnet\.<tag>"):
        load_backbone("timm:test_resnet@r160_in1k")
    with pytest.raises(BackboneError, match="knows no model"):
        load_backbone("timm:nothing_like_it")


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    needs("torchvision")
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = load_backbone("torchvision:mobilenet_v3_small@random")
    assert torch.equal(torch.rand(1), expected)
    assert first.fingerprint == load_backbone("torchvision:mobilenet_v3_small@random").fingerprint


@pytest.mark.parametrize(("kind", "suffix"), [("torchvision", ".pth"), ("timm", ".safetensors")])
def test_weights_from_a_file(kind: str, suffix: str, tmp_path: Path) -> None:
    needs(kind)
    original, path = load_backbone(f"{kind}:resnet18@random"), tmp_path / f"weights{suffix}"
    save = torch.save if suffix == ".pth" else save_file
    state = original.module.state_dict()
    state["fc.bias"] = state["fc.bias"] + 1.0
    save(state, path)
    loaded = load_backbone(f"{kind}:resnet18@{path}")
    assert loaded.fingerprint != original.fingerprint
    assert torch.equal(loaded.module.state_dict()["fc.bias"], state["fc.bias"])
    path.write_bytes(b"damaged")
    with pytest.raises(BackboneError, match="is damaged, or holds more than tensors"):
        load_backbone(f"{kind}:resnet18@{path}")


@pytest.mark.parametrize(
    "spec",
    [
        "torchvision:nothing_like_it",
        "torchvision:resnet18@NO_SUCH_WEIGHTS",
        "torchvision:resnet18@/no/such/file.pth",
        "torchvision:fcn_resnet50@random",
    ],
)
def test_torchvision_errors_are_ours(spec: str) -> None:
    needs("torchvision")
    with pytest.raises(BackboneError):
        load_backbone(spec)


def test_own_sites_are_checked() -> None:
    labels = ("a", "b", "c", "d")
    backbone = make_backbone(SmallNet(), SMALL, labels, name="own", sites=Sites("entry", ("body",), "fc"))
    assert (backbone.stem, backbone.blocks, backbone.embedding) == ("entry", ("body",), "fc")
    with pytest.raises(AttachError, match="no module trunk; it has entry"):
        make_backbone(SmallNet(), SMALL, labels, name="own", sites=Sites("entry", ("trunk",), "fc"))
    with pytest.raises(AttachError, match="body must be the classifier's last layer"):
        make_backbone(SmallNet(), SMALL, labels, name="own", sites=Sites("entry", ("body",), "body"))
    with pytest.raises(BackboneError, match=r"give \(3, 1, 4\), but 4 labels need \(3, 4\)"):
        make_backbone(nn.Sequential(SmallNet(), nn.Unflatten(1, (1, 4))), SMALL, labels, name="own")
    with pytest.raises(BackboneError, match="2 labels"):
        make_backbone(SmallNet(), SMALL, ("a", "b"), name="own", sites=Sites("entry", ("body",), "fc"))


class Conv2dSame(nn.Conv2d):
    """By the name of timm's, with another padding."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), self.weight, self.bias, self.stride)


def test_a_users_class_by_the_name_of_timms_stays_as_it_is() -> None:
    network = SmallNet()
    network.entry[0] = conv = Conv2dSame(3, 8, 3, 2)
    backbone = make_backbone(network, SMALL, list("abcd"), name="own")
    assert backbone.module.get_submodule("entry.0") is conv


class Training(SmallNet):
    """With a `train` of its own that forgets to return itself, and a state that is no tensor."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}


def test_what_a_users_module_does_besides_is_no_obstacle() -> None:
    backbone = make_backbone(Training(), SMALL, list("abcd"), name="own")
    assert not backbone.module.training


def test_a_classifier_made_in_inference_mode_can_be_learned_through() -> None:
    with torch.inference_mode():
        network = SmallNet()
        network.entry.append(nn.BatchNorm2d(8))
        network.body[0].weight, network.scale = network.body[0].weight, torch.ones(1)
        network.again = nn.ModuleList([nn.Linear(8, 4)])
        network.again[0].weight = network.fc.weight
        expected = network.eval()(torch.ones(1, 3, 32, 32))
    module = make_backbone(network, SMALL, list("abcd"), name="own").module
    held = [*module.parameters(), *module.buffers(), module.scale]
    assert not any(value.is_inference() or value.requires_grad for value in held)
    assert module.again[0].weight is module.fc.weight
    pictures = torch.ones(1, 3, 32, 32, requires_grad=True)
    logits = module(pictures)
    torch.testing.assert_close(logits.detach(), expected.clone())
    logits.sum().backward()
    assert pictures.grad is not None


def test_a_crop_that_is_not_timms_is_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("timm")
    data, spec = import_timm().data, "timm:test_resnet.r160_in1k@random"
    assert load_backbone(spec).remarks == ()
    resolve = data.resolve_model_data_config
    monkeypatch.setattr(data, "resolve_model_data_config", lambda model: {**resolve(model), "crop_mode": "squash"})
    (remark,) = load_backbone(spec).remarks
    assert remark.startswith("timm prepares pictures for test_resnet.r160_in1k by its crop mode 'squash'")


USER_FILE = """
    from __future__ import annotations
    from dataclasses import dataclass, replace
    from torch import nn
    from afd_serve.models.backbones import Preprocessing, make_backbone
    from afd_serve.models.discovery import Sites
    from afd_serve.models.efficientnet_lite import EfficientNetLite

    @dataclass
    class Settings:
        classes: int = 2

    PREPROCESSING = Preprocessing(32, 0.9, "bilinear", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))

    def backbone():
        return EfficientNetLite(1.0, 1.0, 32, classes=2), PREPROCESSING, ["cat", "dog"]

    def described():
        module = EfficientNetLite(1.0, 1.0, 32, classes=2)
        sites = Sites("stem", ("blocks.1", "blocks.3"), "classifier")
        known = make_backbone(module, PREPROCESSING, ["cat", "dog"], name="mine", sites=sites)
        return replace(known, remarks=("crops are squares",))

    def misdescribed():
        module = EfficientNetLite(1.0, 1.0, 32, classes=2)
        return make_backbone(module, PREPROCESSING, ["cat", "dog"], name="x", sites=Sites("steam", (), "classifier"))

    def ending():
        import sys
        sys.exit(0)

    def broken():
        raise KeyError("weights")

    def wrong():
        return "a string"

    def unsettling():
        import torch
        print("building")
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return EfficientNetLite(1.0, 1.0, 32, classes=2).float(), PREPROCESSING, ["cat", "dog"]

    def missing():
        import no_such_sibling

    def unfinished():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), PREPROCESSING, ["cat", "dog"]
"""


def test_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "a:b" / "mine.py"
    path.parent.mkdir()
    path.write_text(textwrap.dedent(USER_FILE), encoding="utf-8")
    found = load_backbone(f"file:{path}")
    assert (found.name, found.labels, len(found.blocks)) == (f"file:{path}", ("cat", "dog"), 16)
    described = load_backbone(f"file:{path}:described")
    assert (described.name, described.blocks) == (f"file:{path}:described", ("blocks.1", "blocks.3"))
    assert described.remarks == ("crops are squares",)
    with pytest.raises(AttachError, match="no module steam"):
        load_backbone(f"file:{path}:misdescribed")
    with pytest.raises(BackboneError, match="must return a Backbone"):
        load_backbone(f"file:{path}:wrong")
    with pytest.raises(BackboneError, match="KeyError: 'weights'"):
        load_backbone(f"file:{path}:broken")
    with pytest.raises(BackboneError, match=r"mine\.py failed with ValueError: .*LazyModule"):
        load_backbone(f"file:{path}:unfinished")
    with pytest.raises(
        BackboneError, match=r"mine\.py ended Python.*below `if __name__ == \"__main__\":`, which is not"
    ):
        load_backbone(f"file:{path}:ending")
    with pytest.raises(BackboneError, match="no function other"):
        load_backbone(f"file:{path}:other")
    with pytest.raises(BackboneError, match=r"no Python file .*none\.py$"):
        load_backbone(f"file:{tmp_path / 'none.py'}")
    with pytest.raises(BackboneError, match=f"no Python file mine.py in {Path.cwd()}"):
        load_backbone("file:mine.py")


def test_what_a_users_file_sets_and_prints_stays_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text("print('loading')\n" + textwrap.dedent(USER_FILE).lstrip().replace("from __future__", "# "))
    try:
        load_backbone(f"file:{path}:unsettling")
        assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "loading\nbuilding\n")


def test_a_module_that_a_users_file_does_not_find_may_lie_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(USER_FILE))
    with pytest.raises(BackboneError, match=r"No module named 'no_such_sibling'; .*put its folder in PYTHONPATH"):
        load_backbone(f"file:{path}:missing")


def test_a_users_file_may_import_torchvision(tmp_path: Path) -> None:
    """In a process of its own: once the project has imported torchvision, anybody can."""
    needs("torchvision")
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(USER_FILE) + "import torchvision\n")
    code = f"from afd_serve.models.backbones import load_backbone; print(load_backbone('file:{path}').labels)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "('cat', 'dog')\n"), done.stderr


def test_a_users_file_that_is_also_a_program_may_not_end_ours(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(USER_FILE) + "raise SystemExit\n")
    with pytest.raises(BackboneError, match=r"mine\.py ended Python, by sys\.exit or the like, and must not"):
        load_backbone(f"file:{path}")
