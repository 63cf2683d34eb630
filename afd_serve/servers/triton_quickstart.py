"""From a classifier's name to a Triton that has answered, doing only what is not done yet."""

import re
import shutil
from pathlib import Path
from typing import Final

import torch

from afd_serve.client import Client, Options
from afd_serve.cores import usable_cores
from afd_serve.errors import ServingError
from afd_serve.mode import Mode
from afd_serve.packaging.triton import TritonLimits, package_triton, repository_templates
from afd_serve.results import Failure
from afd_serve.runs import alone_in
from afd_serve.sample import SAMPLE_NAME, sample_picture
from afd_serve.servers.fingerprint import fingerprint_of
from afd_serve.servers.folders import make_private, make_state_dir
from afd_serve.servers.triton import Triton, TritonPorts, check_paths, probe, start
from afd_serve.servers.triton_installation import suitable_python
from afd_serve.triton_protocol import ENSEMBLE

__all__ = ["serve_triton", "show"]

_REPOSITORY: Final = "model_repository"


def serve_triton(
    source: str | Path,
    state_dir: Path,
    *,
    mode: Mode = Mode.PROTECT,
    python: Path | None = None,
    ports: TritonPorts | None = None,
    workers: int = 0,
    shared_memory: bool = False,
) -> Triton:
    """Serve a classifier on Triton, in the background.

    A server that runs with the same classifier and settings, and answers, is left alone. Another one is replaced once
    the model repository is built, the environment is complete and the ports are free; where one of these fails, it goes
    on. Of calls for one state directory, each waits for the one before.

    Args:
        source: A shipped name, a run's directory, or the directory of an exported model.
        state_dir: Where the model repository, settings and logs go.
        mode: For requests that name none.
        python: A Python whose environment has ``nvidia-pytriton``; where left out, the running one if it has, or else
            one whose environment is made in ``state_dir``.
        ports: Where to listen.
        workers: How many classifier processes; 0 stands for one per core that this process may use.
        shared_memory: See `afd_serve.servers.triton.start`.

    Raises:
        ServingError: Triton cannot work in ``state_dir``, does not start, or does not answer.
        DependencyError: Something is missing in one of the two environments.
    """
    check_paths(state_dir.resolve())  # before an environment is made there
    make_state_dir(state_dir)
    with alone_in(state_dir, wait=True):
        ports, python = ports or TritonPorts(), python or suitable_python(state_dir)
        platform = "python" if torch.cuda.is_available() else "python_cpu"
        settings = f"{source}|{mode.value}|{python}|{ports}|{workers}|{platform}|{shared_memory}"
        fingerprint = fingerprint_of(source, repository_templates(), settings)
        running = Triton.find(state_dir)
        if running is not None and running.fingerprint == fingerprint and probe(running, timeout=10) is None:
            return running
        classifiers = workers or usable_cores()
        limits = TritonLimits(decoders=classifiers, classifiers=classifiers)
        # In a folder of its own: should the running server crash before it is replaced, it finds its models unchanged.
        repository = state_dir / f"{_REPOSITORY}-{fingerprint[:12]}"
        package_triton(source, repository, platform=platform, limits=limits, mode=mode)
        server = start(
            make_private(repository),
            state_dir,
            python=python,
            fingerprint=fingerprint,
            ports=ports,
            shared_memory=shared_memory,
            takes_over=True,
        )
        _remove_others(repository)
        return server


def _remove_others(repository: Path) -> None:
    for other in repository.parent.iterdir():
        if re.fullmatch(rf"{_REPOSITORY}-[0-9a-f]{{12}}", other.name) and other != repository:
            shutil.rmtree(other, ignore_errors=True)


def show(server: Triton) -> str:
    """The sample picture classified with and without AFD, and how to send one's own.

    Raises:
        ServingError: The server does not answer with a prediction.
        ClientError: The server does not answer.
    """
    lines = [f"Triton answers at {server.url} and {server.grpc_url}", f"The sample, {SAMPLE_NAME}:"]
    with Client(server.grpc_url) as client:
        for title, mode in (("with AFD", Mode.PROTECT), ("without AFD", Mode.OFF)):
            result = client.classify(sample_picture(), Options(mode, top_k=3))
            if isinstance(result, Failure):
                raise ServingError(f"the sample picture was answered {result.code}: {result.reason}")
            lines.append(f"  {title:<12} {result.summary()}")
    raw = "curl -H 'Inference-Header-Content-Length: 0' -H 'Content-Type: application/octet-stream'"
    return "\n".join(
        [
            *lines,
            "Send your own:",
            f"  afd-serve classify --server {server.grpc_url} PICTURE.jpg",
            f"  {raw} \\",
            f"    --data-binary @PICTURE.jpg {server.url}/v2/models/{ENSEMBLE}/infer | grep -ao '{{\"predictions.*}}'",
            "and add --mode off, or -H 'afd: off', for the bare classifier.",
        ]
    )
