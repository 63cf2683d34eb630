"""What several test modules need: the tiny backbone, AFD modules with something to say, and pictures."""

import io
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from afd_serve.checkpoint import save_afd
from afd_serve.cli import main
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone
from afd_serve.models.presets import preset_config
from tests import tiny_backbone

# Machines are shared: how long an example takes says more about the neighbours than about the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    return tiny_backbone.backbone()


def awakened(backbone: Backbone, preset: str = "full") -> AfdNet:
    """An AFD module whose last layers are not zero, so that it changes what it is attached to."""
    torch.manual_seed(3)
    afd = AfdNet(preset_config(preset, backbone)).eval()
    with torch.no_grad():
        for parameter in afd.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return afd


@pytest.fixture
def awake(tiny: Backbone) -> AfdNet:
    return awakened(tiny)


@pytest.fixture(scope="session")
def tiny_run(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with weights for the tiny backbone."""
    run = tmp_path_factory.mktemp("run")
    save_afd(awakened(tiny), run / "afd.safetensors")
    return run


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=afd"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True)
    return paths


def in_a_process_of_its_own(code: str, *words: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of what signals itself, or loses processes: pytest should not be hit."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


MODULES = (
    "argparse",
    "hashlib",
    "json",
    "logging",
    "psutil",
    "shutil",
    "tempfile",
    "torch",
    "typing",
    "yaml",
    "zipfile",
)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that holds a port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def http_server() -> Iterator[Callable[..., str]]:
    """What starts servers over HTTP for a client, see `tests.client_servers.http_servers`."""
    from tests.client_servers import http_servers  # noqa: PLC0415 - needs an extra

    with http_servers() as serve:
        yield serve


@pytest.fixture
def grpc_server() -> Iterator[Callable[..., str]]:
    """The same over gRPC."""
    from tests.client_servers import grpc_servers  # noqa: PLC0415 - needs an extra

    with grpc_servers() as serve:
        yield serve


@pytest.fixture
def booby_trapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with files that have the names of modules; none of them may be executed."""
    folder = tmp_path_factory.mktemp("downloads")
    for name in MODULES:
        (folder / f"{name}.py").write_text("open(f'{__file__}.executed', 'w').close()\n")
    yield folder
    assert not list(folder.glob("*.executed"))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A file with a picture for which the gate opens."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(recompressed(scene(), 10))
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A file of which most is missing."""
    path = tmp_path / "damaged.jpg"
    path.write_bytes(encoded(scene(), quality=50)[:200])
    return path


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing more than ``size`` bytes into one file fails, as it does on a full disk; for child processes as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def scene(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    """A picture with edges, gradients and texture, so that its spectrum is not empty."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for _ in range(3):
        wave = 60 * np.sin(x * random.uniform(0.05, 0.5) + y * random.uniform(0.05, 0.5) + random.uniform(0, 6))
        edge = 50 * ((x * random.normal() + y * random.normal()) > random.uniform(-20, 20))
        planes.append(110 + wave + edge + random.normal(0, 12, (height, width)))
    return Image.fromarray(np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def recompressed(picture: Image.Image, *qualities: int) -> bytes:
    """The bytes after compressing with each quality in turn."""
    data = b""
    for quality in qualities:
        data = encoded(picture, quality=quality)
        picture = decoded(data)
    return data


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[[int], Path]:
    def make(count: int) -> Path:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for index in range(count):
            scene(120, 90, seed=index).save(folder / f"{index}.png")
        return folder

    return make
