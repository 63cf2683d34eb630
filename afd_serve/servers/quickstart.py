"""From a classifier's name to a server that has answered, doing only what is not done yet."""

import shlex
from pathlib import Path

from afd_serve.errors import ServingError
from afd_serve.mode import Mode
from afd_serve.packaging.handlers import handlers_dir
from afd_serve.packaging.torchserve import package_torchserve
from afd_serve.response import prediction_from_dict
from afd_serve.runs import alone_in
from afd_serve.sample import SAMPLE_NAME, sample_picture
from afd_serve.servers.fingerprint import fingerprint_of
from afd_serve.servers.folders import make_private, make_state_dir
from afd_serve.servers.torchserve import Ports, TorchServe, start

__all__ = ["serve_torchserve", "show"]


def serve_torchserve(
    source: str | Path,
    state_dir: Path,
    *,
    name: str = "afd",
    version: str = "1.0",
    mode: Mode = Mode.PROTECT,
    ports: Ports | None = None,
    workers: int = 0,
) -> TorchServe:
    """Serve a classifier on TorchServe, in the background.

    The archive is built only when its sources changed, and a server that runs with the same archive and settings is
    left alone. Another one is replaced once the archive is built, TorchServe and Java are found and the ports are free;
    where one of these fails, it goes on. Of calls for one state directory, each waits for the one before.

    Args:
        source: A shipped name, a run's directory, or the directory of an exported model.
        state_dir: Where archive, settings and logs go.
        name: The model's name in URLs.
        version: The model's version.
        mode: For requests that name none.
        ports: Where to listen.
        workers: How many worker processes; 0 stands for one per core.

    Raises:
        ServingError: The server does not start, or does not answer.
        CheckpointError: There is no such source, or its archive was changed.
        DependencyError: Java, TorchServe or the archiver is missing.
    """
    ports = ports or Ports()
    make_state_dir(state_dir)
    with alone_in(state_dir, wait=True):
        settings = f"{source}|{name}|{version}|{mode.value}|{ports}|{workers}"
        fingerprint = fingerprint_of(source, handlers_dir(), settings)
        running = TorchServe.find(state_dir)
        if running is not None and running.fingerprint == fingerprint and _answers(running):
            return running
        archive = _archive(source, make_private(state_dir / "archives"), name, version, mode)
        return start(
            archive,
            state_dir,
            probe=sample_picture(),
            fingerprint=fingerprint,
            ports=ports,
            workers=workers,
            takes_over=True,
        )


def show(server: TorchServe) -> str:
    """The sample picture classified with and without AFD, and how to send one's own.

    Raises:
        ServingError: The server does not answer with a prediction.
    """
    lines = [f"TorchServe answers at {server.url}", f"The sample, {SAMPLE_NAME}:"]
    for title, option in (("with AFD", "on"), ("without AFD", "off")):
        answer = server.post(sample_picture(), {"afd": option, "top_k": "3"})
        if answer.status != 200:
            raise ServingError(f"the sample picture was answered {answer.status}: {answer.body.decode()}")
        lines.append(f"  {title:<12} {prediction_from_dict(answer.json()).summary()}")
    return "\n".join(
        [
            *lines,
            "Send your own:",
            f"  curl -H {shlex.quote(f'@{server.header_file}')} -T PICTURE.jpg {server.url}",
            "and add -H 'afd: off' for the bare classifier.",
        ]
    )


def _answers(server: TorchServe) -> bool:
    try:
        return server.probe(sample_picture()).status == 200
    except ServingError:
        return False


def _archive(source: str | Path, folder: Path, name: str, version: str, mode: Mode) -> Path:
    """The archive of the source as it is now; built when the one at hand is of other sources."""
    archive, stamp = folder / f"{name}.mar", folder / f"{name}.sources"
    sources = fingerprint_of(source, handlers_dir(), f"{source}|{name}|{version}|{mode.value}")
    if not archive.is_file() or not stamp.is_file() or stamp.read_text() != sources:
        package_torchserve(source, folder, name=name, version=version, mode=mode)
        stamp.write_text(sources)
    return archive
