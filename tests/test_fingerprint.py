"""What `serve` builds anew: whatever of its sources has changed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from afd_serve.checkpoint import WEIGHTS_NAME, read_config, save_afd
from afd_serve.models.afd import AfdNet
from afd_serve.servers.fingerprint import fingerprint_of


@pytest.fixture
def weights(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(tiny_run / WEIGHTS_NAME, tmp_path / "mine.safetensors"))


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_weights_that_changed_are_other_sources_whether_the_folder_or_the_file_is_named(
    weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(weights, folder / WEIGHTS_NAME)
    for source, changed in ((weights, weights), (folder, folder / WEIGHTS_NAME)):
        before = fingerprint_of(source, tmp_path / "templates", "settings")
        assert fingerprint_of(source, tmp_path / "templates", "settings") == before
        assert fingerprint_of(source, tmp_path / "templates", "others") != before
        change(changed)
        assert fingerprint_of(source, tmp_path / "templates", "settings") != before


@pytest.mark.parametrize("spec", ["file:{}", "file:{}:backbone", "torchvision:resnet18@{}"])
def test_a_users_own_file_of_the_backbone_belongs_to_the_sources(weights: Path, tmp_path: Path, spec: str) -> None:
    own = tmp_path / "own.py"
    own.write_text("1")
    config = replace(read_config(weights), backbone=spec.format(own))
    save_afd(AfdNet(config), weights)
    before = fingerprint_of(weights, tmp_path / "templates", "settings")
    own.write_text("2")
    assert fingerprint_of(weights, tmp_path / "templates", "settings") != before


def test_a_source_that_is_none_is_for_others_to_complain_about(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"1")
    digests = {fingerprint_of(source, tmp_path, "") for source in ("misspelt", tmp_path / "missing", broken)}
    broken.write_bytes(b"2")
    assert fingerprint_of(broken, tmp_path / "templates", "") not in digests


def test_names_need_not_be_utf_8(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"mod\xe8le")
    folder.mkdir()
    named = Path(shutil.copyfile(weights, folder / WEIGHTS_NAME))
    before = fingerprint_of(folder, tmp_path / "templates", f"{folder}|afd")
    change(named)
    assert fingerprint_of(folder, tmp_path / "templates", f"{folder}|afd") != before
