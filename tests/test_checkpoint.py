"""Weights on disk."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from afd_serve.checkpoint import CONFIG_KEY, find_weights, load_afd, read_config, save_afd, weights_digest
from afd_serve.config import AdapterSiteConfig, AfdConfig, FeSiteConfig, FitConfig, GateSiteConfig
from afd_serve.errors import CheckpointError, ConfigError
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone
from tests.conftest import largest_file


def test_what_is_saved_is_loaded(tiny: Backbone, awake: AfdNet, tmp_path: Path) -> None:
    save_afd(awake, tmp_path / "afd.safetensors")
    loaded = load_afd(tmp_path / "afd.safetensors", tiny)
    assert loaded.config == awake.config
    assert not loaded.training
    assert all(torch.equal(value, awake.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["afd.safetensors"]


def test_kernels_are_saved_whatever_their_order_in_memory(tiny: Backbone, awake: AfdNet, tmp_path: Path) -> None:
    expected = {name: value.clone() for name, value in awake.state_dict().items()}
    awake.to(memory_format=torch.channels_last)  # as exporting leaves it
    save_afd(awake, tmp_path / "afd.safetensors")
    loaded = load_afd(tmp_path / "afd.safetensors", tiny).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_another_backbones_weights_are_refused(tiny: Backbone, awake: AfdNet, tmp_path: Path) -> None:
    save_afd(awake, tmp_path / "afd.safetensors")
    with pytest.raises(CheckpointError, match="fit again"):
        load_afd(tmp_path / "afd.safetensors", replace(tiny, fingerprint="0" * 64))


def test_a_full_disk_leaves_the_weights_as_they_were(awake: AfdNet, tmp_path: Path) -> None:
    path = tmp_path / "afd.safetensors"
    path.write_bytes(b"earlier weights")
    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        save_afd(awake, path)
    assert path.read_bytes() == b"earlier weights"
    assert [path.name for path in tmp_path.iterdir()] == ["afd.safetensors"]


def test_weights_are_found_by_a_shipped_name_in_a_runs_folder_or_by_their_own_path(tiny_run: Path) -> None:
    weights = tiny_run / "afd.safetensors"
    assert find_weights(tiny_run) == find_weights(weights) == find_weights(str(weights)) == weights
    assert find_weights("efficientnet-lite1").parts[-2:] == ("efficientnet-lite1", "default.safetensors")


def test_where_there_is_no_weights_file_it_is_said_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a shipped model .*efficientnet-lite0, "):
        find_weights(tmp_path)
    (tmp_path / "signature.json").touch()
    with pytest.raises(CheckpointError, match=f"{tmp_path} is exported already; give the fitted run"):
        find_weights(tmp_path)


def test_equal_digests_mean_equal_weights_wherever_they_lie(tiny_run: Path, tmp_path: Path) -> None:
    path = shutil.copyfile(tiny_run / "afd.safetensors", tmp_path / "copy.safetensors")
    assert weights_digest(path) == weights_digest(tiny_run)
    path.write_bytes(path.read_bytes() + b"\0")
    assert weights_digest(path) != weights_digest(tiny_run)


@pytest.mark.parametrize("content", [b"", b"garbage" * 99])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "afd.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_config(tmp_path / "afd.safetensors")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_config(tmp_path / "none.safetensors")


@pytest.mark.parametrize("configuration", ["", "{}", "[]", '{"gates": null}'])
def test_a_damaged_configuration_is_refused_with_the_files_name(tmp_path: Path, configuration: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "afd.safetensors", {CONFIG_KEY: configuration})
    with pytest.raises(CheckpointError, match=r"afd\.safetensors holds a damaged AFD configuration"):
        read_config(tmp_path / "afd.safetensors")


def test_foreign_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "afd.safetensors")
    with pytest.raises(CheckpointError, match="no AFD configuration"):
        read_config(tmp_path / "afd.safetensors")


def without(afd: AfdNet, part: str, path: Path) -> Path:
    """A module's file from which the tensors of one part are missing."""
    save_afd(afd, path)
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith(f"{part}.")}
    save_file(tensors, path, {CONFIG_KEY: afd.config.to_json()})
    return path


def test_weights_from_before_there_was_a_sharpness_leave_the_logits_as_they_are(
    tiny: Backbone, awake: AfdNet, tmp_path: Path
) -> None:
    loaded = load_afd(without(awake, "sharpness", tmp_path / "afd.safetensors"), tiny)
    logits, descriptor = torch.randn(2, 10), torch.randn(2, awake.config.descriptor)
    assert torch.equal(loaded.sharpness(logits, descriptor), logits)
    assert torch.equal(loaded.fde.descriptor[0].weight, awake.fde.descriptor[0].weight)


def test_weights_that_lack_any_other_part_are_refused(tiny: Backbone, awake: AfdNet, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit its own configuration"):
        load_afd(without(awake, "fde", tmp_path / "afd.safetensors"), tiny)


def test_the_configuration_survives_json(awake: AfdNet) -> None:
    assert AfdConfig.from_json(awake.config.to_json()) == awake.config


@pytest.mark.parametrize("text", ["", "[]", '{"preset": "default"}'])
@pytest.mark.parametrize("kind", [AfdConfig, FitConfig])
def test_what_is_no_configuration_is_refused(kind: type[AfdConfig | FitConfig], text: str) -> None:
    with pytest.raises(ConfigError, match="configuration"):
        kind.from_json(text)


def test_a_configuration_that_attaches_nothing_is_refused(awake: AfdNet) -> None:
    with pytest.raises(ConfigError, match="attach site"):
        replace(awake.config, gates=(), adapters=(), fe=())


IMPOSSIBLE: dict[str, Any] = {
    "fingerprint": None,
    "preset": 1,
    "backbone": ["efficientnet-lite0"],
    "descriptor": -1,
    "fdm_channels": 10**9,
    "gates": [{"site": "stem", "channels": 10**9}],
    "adapters": [{"site": "stem", "shape": [8, 3, 3], "rank": 0}],
    "fe": [{"site": "stem", "channels": 8, "stride": 3}],
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_a_setting_of_the_wrong_kind_or_beyond_all_measure_is_refused(
    awake: AfdNet, tiny: Backbone, tmp_path: Path, key: str
) -> None:
    text = json.dumps(json.loads(awake.config.to_json()) | {key: IMPOSSIBLE[key]})
    save_file({"x": torch.zeros(1)}, tmp_path / "afd.safetensors", {CONFIG_KEY: text})
    with pytest.raises(CheckpointError, match="damaged AFD configuration"):
        load_afd(tmp_path / "afd.safetensors", tiny)


@pytest.mark.parametrize(
    ("site", "name", "value"),
    [
        (GateSiteConfig("stem", 8), "channels", True),
        (GateSiteConfig("stem", 8), "site", None),
        (AdapterSiteConfig("stem", (8, 3, 1, 1)), "rank", -1),
        (AdapterSiteConfig("stem", (8, 3, 1, 1)), "shape", (8, 3, 1, 0)),
        (FeSiteConfig("stem", 8, 4), "width", 0),
        (FeSiteConfig("stem", 8, 4), "low_blocks", 1.0),
    ],
)
def test_a_site_has_whole_numbers_and_a_name(site: Any, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(site, **{name: value})


def test_deeply_nested_json_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match="no AFD configuration"):
        AfdConfig.from_json("[" * 100_000)
