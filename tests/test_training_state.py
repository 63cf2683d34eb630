"""The state that an interrupted fit goes on from."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from afd_serve.checkpoint import CONFIG_KEY
from afd_serve.errors import CheckpointError
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone
from afd_serve.models.presets import preset_config
from afd_serve.training.state import Done, load_state, save_state
from tests.conftest import largest_file

DONE = Done(2, 0.1 + 0.2, frozenset({1, 3}))
Parts = tuple[AfdNet, AfdNet, torch.optim.AdamW]


def parts(backbone: Backbone, preset: str = "lite") -> Parts:
    """A module, its average, and its optimizer."""
    afd, average = (AfdNet(preset_config(preset, backbone)) for _ in range(2))
    return afd, average, torch.optim.AdamW(afd.parameters())


@pytest.fixture
def trained(tiny: Backbone) -> Parts:
    """After two steps."""
    afd, average, optimizer = parts(tiny)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack([parameter.cos().sum() for parameter in afd.parameters()]).sum().backward()
        optimizer.step()
    for parameter in average.parameters():
        torch.nn.init.normal_(parameter)
    return afd, average, optimizer


def test_what_the_next_step_depends_on_is_saved_and_loaded(tiny: Backbone, trained: Parts, tmp_path: Path) -> None:
    save_state(tmp_path / "state", DONE, *trained)
    loaded = parts(tiny)
    assert load_state(tmp_path / "state", *loaded) == DONE
    for ours, theirs in zip(loaded[:2], trained[:2], strict=True):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    for ours, theirs in zip(loaded[0].parameters(), trained[0].parameters(), strict=True):
        saved, again = trained[2].state[theirs], loaded[2].state[ours]
        assert saved["step"] == 2
        assert set(again) == set(saved)
        assert all(torch.equal(again[name], value) for name, value in saved.items())


def test_before_the_first_step_there_are_no_moments(tiny: Backbone, tmp_path: Path) -> None:
    save_state(tmp_path / "state", Done(), *parts(tiny))
    *modules, optimizer = parts(tiny)
    done = load_state(tmp_path / "state", modules[0], modules[1], optimizer)
    assert (done.step, done.unreadable) == (0, frozenset())
    assert math.isnan(done.loss)
    assert not optimizer.state


def test_a_full_disk_leaves_the_state_as_it_was(trained: Parts, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"earlier")
    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        save_state(tmp_path / "state", DONE, *trained)
    assert (tmp_path / "state").read_bytes() == b"earlier"


def test_what_has_changed_since_is_said(tiny: Backbone, trained: Parts, tmp_path: Path) -> None:
    save_state(tmp_path / "state", DONE, *trained)
    with pytest.raises(CheckpointError, match="the sites where AFD attaches changed"):
        load_state(tmp_path / "state", *parts(tiny, "default"))
    with pytest.raises(CheckpointError, match="the backbone's weights changed"):
        load_state(tmp_path / "state", *parts(replace(tiny, fingerprint="0" * 64)))


def test_a_damaged_configuration_is_refused_with_the_files_name(tiny: Backbone, tmp_path: Path) -> None:
    done = '{"step": 2, "loss": 0.5, "unreadable": []}'
    save_file({"x": torch.zeros(1)}, tmp_path / "state", {"done": done, CONFIG_KEY: "{}"})
    with pytest.raises(CheckpointError, match=r"state cannot be resumed from .*configuration"):
        load_state(tmp_path / "state", *parts(tiny))


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"done": "2"}, {"done": "{}"}, {"done": '{"step": "x", "loss": 1, "unreadable": []}'}, {"done": "{"}],
)
def test_a_file_that_is_no_state_is_refused(tiny: Backbone, tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "state", metadata)
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        load_state(tmp_path / "state", *parts(tiny))


def test_a_state_of_which_a_part_is_missing_is_refused(tiny: Backbone, trained: Parts, tmp_path: Path) -> None:
    afd, _, optimizer = trained
    save_state(tmp_path / "state", DONE, afd, torch.nn.Identity(), optimizer)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        load_state(tmp_path / "state", *parts(tiny))


def test_a_missing_or_damaged_file_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        load_state(tmp_path / "state", *parts(tiny))
    (tmp_path / "state").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        load_state(tmp_path / "state", *parts(tiny))
