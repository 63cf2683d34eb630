"""jemalloc is preloaded where it helps, and nowhere else."""

import ctypes.util
import json
import zipfile
from pathlib import Path

import pytest

from afd_serve.servers.allocator import jemalloc, preloaded
from afd_serve.servers.torchserve import TorchServe


def archive(folder: Path, **signature: str) -> Path:
    path = folder / "model.mar"
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("signature.json", json.dumps(signature))
    return path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("MALLOC_CONF", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.2")


@pytest.mark.usefixtures("installed")
def test_torchscript_gets_it(tmp_path: Path) -> None:
    given = preloaded(archive(tmp_path, engine="torchscript"))
    assert given.pop("MALLOC_CONF").startswith("dirty_decay_ms:")
    assert given == {"LD_PRELOAD": "libjemalloc.so.2"}


@pytest.mark.usefixtures("installed")
def test_the_operators_settings_for_it_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_CONF", "background_thread:true")
    assert preloaded(archive(tmp_path, engine="torchscript")) == {"LD_PRELOAD": "libjemalloc.so.2"}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_other_engines_do_not(tmp_path: Path, engine: str) -> None:
    assert preloaded(archive(tmp_path, engine=engine)) == {}


@pytest.mark.usefixtures("installed")
def test_archives_of_others_do_not(tmp_path: Path) -> None:
    (tmp_path / "no.mar").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "stock.mar", "w") as content:
        content.writestr("handler.py", "")
    assert preloaded(tmp_path / "no.mar") == preloaded(tmp_path / "stock.mar") == {}


@pytest.mark.usefixtures("installed")
def test_what_the_operator_preloads_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    assert preloaded(archive(tmp_path, engine="torchscript")) == {}


@pytest.mark.usefixtures("installed")
def test_where_it_is_missing_nothing_is_preloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    assert preloaded(archive(tmp_path, engine="torchscript")) == {}


@pytest.mark.skipif(jemalloc() is None, reason="libjemalloc2 is not installed")
def test_the_workers_of_a_server_have_it(server: TorchServe) -> None:
    for worker in server.workers():
        assert "libjemalloc" in Path(f"/proc/{worker['pid']}/maps").read_text()
