"""What is asked of a classifier before it is fitted to."""

import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from afd_serve.engines.torchscript import quiet
from afd_serve.errors import AttachError, BackboneError
from afd_serve.models.backbones import Preprocessing, make_backbone
from afd_serve.models.checks import ask, check_recording
from afd_serve.models.discovery import Sites
from tests.foreign import SmallNet

SMALL = Preprocessing(32, 1.0, "bilinear", (127.0,) * 3, (128.0,) * 3)


@pytest.mark.parametrize("labels", [None, 4, "abcd", range(4), {0: "a", 1: "b", 2: "c", 3: "d"}, dict.fromkeys("abcd")])
def test_labels_are_a_list_of_names(labels: Any) -> None:
    with pytest.raises(BackboneError, match="labels must be a list of class names"):
        make_backbone(SmallNet(), SMALL, labels, name="own", sites=Sites("entry", ("body",), "fc"))


def test_preprocessing_is_ours() -> None:
    with pytest.raises(BackboneError, match="preprocessing must be a Preprocessing, not a dict"):
        make_backbone(SmallNet(), cast("Any", {"size": 32}), list("abcd"), name="own")


def test_a_classifier_in_half_precision_is_refused() -> None:
    sites = Sites("entry", ("body",), "fc")
    with pytest.raises(BackboneError, match=r"float16.*\.float\(\)"):
        make_backbone(SmallNet().half(), SMALL, list("abcd"), name="own", sites=sites)


class Altered(SmallNet):
    """`SmallNet` with something done to what enters its last layer, or to the logits."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Any] = lambda x: x
    ) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.fc(self.before(self.body(self.entry(x))).mean(dim=(2, 3))))


def scripted() -> nn.Module:
    with quiet():
        return cast("nn.Module", torch.jit.script(SmallNet()))


def quantized() -> nn.Module:
    network = SmallNet().eval()
    with warnings.catch_warnings(action="ignore"):
        network.fc = torch.ao.nn.quantized.dynamic.Linear(8, 4)
    return network


class OptimizedModule(SmallNet):
    """Named as what `torch.compile` returns; to import that takes longer than all tests here."""


UNFIT = {
    "of logits in a dict": (lambda: Altered(after=lambda x: {"logits": x}), "give dict"),
    "for one picture at a time": (lambda: Altered(lambda x: x[:1]), r"give \(1, 4\)"),
    "for one order in memory": (
        lambda: Altered(lambda x: x.view(x.shape[0], -1).view(x.shape[0], 8, -1, 1)),
        "reshape",
    ),
    "left to chance": (lambda: Altered(functional.dropout), "nothing may be left to chance"),
    "of no finite logits": (lambda: Altered(after=lambda x: x / 0), "no finite numbers"),
    "of another error": (lambda: Altered(dict), "cannot take three pictures of 32x32"),
    "for several pictures": (lambda: Altered(lambda x: x.view(3, *x.shape[1:])), "cannot take one picture of 32x32"),
    "of probabilities": (lambda: Altered(after=lambda x: x.softmax(1)), "gives probabilities.*without its softmax"),
    "in TorchScript": (scripted, "TorchScript.*the nn.Module that it was made from"),
    "wrapped for many GPUs": (lambda: nn.DataParallel(SmallNet()), r"return what it wraps, its \.module"),
    "wrapped by torch.compile": (OptimizedModule, r"return what it wraps, its \._orig_mod"),
    "with a wrapped part": (
        lambda: nn.Sequential(nn.DataParallel(SmallNet())),
        r"a DataParallel \(0\) cannot be attached to: use what it wraps, its \.module",
    ),
    "with quantized layers": (quantized, r"quantized layers \(fc\) cannot be attached to"),
}


@pytest.mark.parametrize("labels", [[], ["defect"]])
def test_a_single_logit_tells_nothing(labels: list[str]) -> None:
    with pytest.raises(BackboneError, match=rf"two labels or more, not {len(labels)}: .*put out two"):
        make_backbone(SmallNet(), SMALL, labels, name="own")


class Checking(SmallNet):
    """Does something to tensors that it does not do to what is recorded."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1) if isinstance(x, Tensor) else x)


class Casting(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class Unpacking(SmallNet):
    def forward(self, x: Any) -> Tensor:
        return super().forward(x.pixel_values if hasattr(x, "pixel_values") else x)


class Indexing(SmallNet):
    def forward(self, x: Any) -> Tensor:
        return super().forward(x if torch.is_tensor(x) else x["image"])


class Hooked(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda _module, _inputs, logits: logits.flip(1))


@pytest.mark.parametrize("kind", [Checking, Casting, Hooked])
def test_a_classifier_whose_recording_answers_otherwise_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(AttachError, match=rf"^{kind.__name__}, recorded as a graph, gives other logits.*isinstance"):
        make_backbone(kind(), SMALL, list("abcd"), name="own")


@pytest.mark.parametrize("kind", [Unpacking, Indexing])
def test_a_classifier_whose_recording_cannot_run_is_refused_in_one_line(
    kind: type[nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    reason = rf"^{kind.__name__}, recorded as a graph, cannot run \(.*\); .*isinstance"
    with warnings.catch_warnings(action="ignore"), pytest.raises(AttachError, match=reason) as refused:
        make_backbone(kind(), SMALL, list("abcd"), name="own")
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().err == "", "torch.fx prints where a call of a recording fails"


def test_what_is_left_to_chance_for_all_pictures_alike_is_seen_before_it_is_recorded() -> None:
    with pytest.raises(BackboneError, match="nothing may be left to chance"):
        ask(Altered(lambda x: x + torch.randn(1)).eval(), 32, 4)


def test_what_is_left_to_chance_now_and_then_is_not_taken_for_a_recording_that_leaves_something_out() -> None:
    offsets = iter([0.0, 0.0, 0.0, 1.0, 2.0])  # it is asked three times, recorded, and asked once more

    class Wavering(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + next(offsets)

    network = Wavering().eval()
    answers = ask(network, 32, 4)
    with pytest.raises(BackboneError, match="nothing may be left to chance"):
        check_recording(network, answers)


@pytest.mark.parametrize("kind", UNFIT)
def test_a_classifier_that_cannot_be_protected_is_refused_before_it_is_fitted_to(kind: str) -> None:
    make, reason = UNFIT[kind]
    with pytest.raises(BackboneError, match=reason):
        make_backbone(cast("nn.Module", make()), SMALL, list("abcd"), name="own", sites=Sites("entry", ("body",), "fc"))
