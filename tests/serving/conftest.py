"""One real TorchServe for all tests here, and one real Triton of each platform, with the default model.

Triton lives in an environment of its own, because its Python backend needs an older NumPy: the variable
AFD_TRITON_PYTHON names the Python there, as ``make test`` does.
"""

import importlib.util
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from afd_serve.client.regions import Region
from afd_serve.export import export_classifier
from afd_serve.packaging.seal import SEAL_NAME, make_seal
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.packaging.triton import TritonLimits, package_triton
from afd_serve.pipeline import Pipeline
from afd_serve.sample import sample_picture
from afd_serve.servers import torchserve, triton
from afd_serve.servers.triton import Triton, TritonPorts
from afd_serve.servers.triton_environment import SHARED_MEMORY


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    export_classifier("efficientnet-lite0", out)
    return out


@pytest.fixture(scope="session")
def damaged(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but copied to a disk that was full."""
    out = shutil.copytree(exported, tmp_path_factory.mktemp("damaged"), dirs_exist_ok=True)
    os.truncate(out / "model.pt", 1_000_000)
    return out


@pytest.fixture(scope="session")
def pipeline(exported: Path) -> Pipeline:
    return Pipeline.load(exported, threads=1)


@pytest.fixture(scope="session")
def archive(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, but with batches large and slow enough that requests sent together meet in one."""
    built = package_torchserve(exported, tmp_path_factory.mktemp("built"))
    changed = tmp_path_factory.mktemp("store") / built.name
    with zipfile.ZipFile(built) as old:
        files = {name: old.read(name) for name in old.namelist() if name != SEAL_NAME}
    settings = yaml.safe_load(files["model-config.yaml"])
    files["model-config.yaml"] = yaml.safe_dump(settings | {"batchSize": 8, "maxBatchDelay": 100}).encode()
    with zipfile.ZipFile(changed, "w") as new:
        for name, data in (files | {SEAL_NAME: make_seal(files)}).items():
            new.writestr(name, data)
    return changed


@pytest.fixture(scope="session")
def server(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[torchserve.TorchServe]:
    state = tmp_path_factory.mktemp("état du serveur")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LC_ALL", "C")
        running = torchserve.start(archive, state, probe=sample_picture(), ports=torchserve.Ports.free(), workers=1)
    yield running
    torchserve.TorchServe.stop(state)


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The names of this test's clients' shared memory; clients of other tests are at work at the same time."""
    made = []

    class Noted(Region):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            made.append(SHARED_MEMORY / self.name)

    monkeypatch.setattr("afd_serve.client.regions.Region", Noted)
    return made


@pytest.fixture(scope="session")
def triton_python() -> Path:
    named = os.environ.get("AFD_TRITON_PYTHON")
    if named:
        return Path(named)
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("AFD_TRITON_PYTHON names no Python whose environment has afd-serve[triton-server]")
    return Path(sys.executable)


@pytest.fixture(scope="session", params=["python", "python_cpu"])
def triton_server(
    request: pytest.FixtureRequest, exported: Path, triton_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Triton]:
    """Reading and classifying in processes of their own, as on a GPU, and in one; clients may use shared memory."""
    built, limits = tmp_path_factory.mktemp("repository"), TritonLimits(classifiers=2)
    repository = package_triton(exported, built, platform=request.param, limits=limits)
    state = tmp_path_factory.mktemp("triton")
    running = triton.start(repository, state, python=triton_python, ports=TritonPorts.free(), shared_memory=True)
    yield running
    Triton.stop(state)
    assert not list(SHARED_MEMORY.glob(f"{running.prefix}*"))
