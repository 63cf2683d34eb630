"""A user's own weights for a network of a library."""

from pathlib import Path

import pytest
import torch
from torch import nn

from afd_serve.errors import BackboneError
from afd_serve.models.backbones import load_backbone
from afd_serve.models.state_dicts import load_weights
from tests.foreign import SmallNet, needs

OTHER_WEIGHTS = {
    "of fewer layers": (
        lambda state: {name: value for name, value in state.items() if not name.startswith("fc")},
        r"another network's: fc\.weight, fc\.bias are missing\.",
    ),
    "of other classes": (
        lambda state: {**state, "fc.weight": torch.zeros(7, 512)},
        r"another network's: fc\.weight have other shapes\. .*file:<path\.py>$",
    ),
    "under other names": (
        lambda state: {f"net.{name}": value for name, value in state.items()},
        r"\w+ and 99 more are missing; net\.conv1\.weight, .* and 119 more are not in it",
    ),
    "wrapped, of another network": (lambda _: {"module.weight": torch.zeros(2)}, r"module\.weight are not in it"),
    "of nothing": (lambda _: {}, r"and 119 more are missing\.|and \d+ more are missing\."),
    "among a training's state": (lambda state: {"epoch": 3, "model": state}, "holds epoch, model beside tensors"),
    "in a list": (lambda state: list(state.values()), "holds a list"),
    "in a pickled network": (lambda _: nn.Linear(2, 2), r"a pickled network does; save its state_dict\(\) alone$"),
}


@pytest.mark.parametrize("start", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_a_wrapped_network_are_those_of_what_it_wraps(start: str, tmp_path: Path) -> None:
    network, path = SmallNet(), tmp_path / "weights.pth"
    state = {name: value + 1 for name, value in network.state_dict().items()}
    torch.save({f"{start}{name}": value for name, value in state.items()}, path)
    load_weights(network, path)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", OTHER_WEIGHTS)
def test_a_file_with_other_weights_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    needs("torchvision")
    other, reason = OTHER_WEIGHTS[kind]
    path = tmp_path / "weights.pth"
    torch.save(other(load_backbone("torchvision:resnet18@random").module.state_dict()), path)
    with pytest.raises(BackboneError, match=reason) as refused:
        load_backbone(f"torchvision:resnet18@{path}")
    assert "\n" not in str(refused.value)
