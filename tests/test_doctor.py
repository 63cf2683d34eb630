"""What the doctor says of a folder that has the name of a package."""

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from afd_serve.doctor import examine


def test_what_asks_for_a_torch_is_installed_beside_the_one_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "timm" else find_spec(name))
    detail = {check.name: check.detail for check in examine()}["timm"]
    assert detail.endswith(f"pip install 'afd-serve[timm]' torch=={version('torch')}")


@pytest.mark.parametrize(
    ("folder", "package"), [("pytriton", "nvidia-pytriton"), ("ts", "torchserve"), ("timm", "timm")]
)
def test_an_empty_folder_is_no_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str, package: str
) -> None:
    """As `python -m afd_serve` finds one in the folder that it is called in."""
    (tmp_path / folder).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if "site-packages" not in path)])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in repr(finder)])
    monkeypatch.delitem(sys.modules, folder, raising=False)
    found = {check.name: check for check in examine()}
    assert not found[package].ok
    assert found[package].detail.startswith("only needed for")
