# ruff: noqa: PLC0415
"""Commands that bring a classifier to a server: export, package, serve, stay, stop, health, doctor."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.models import OptionInfo

from afd_serve.cli.interruption import hold_signals, interruptible, release_signals, signals_interrupt
from afd_serve.cli.options import DEFAULT_MODEL, FAILED, ModelOption
from afd_serve.mode import Mode
from afd_serve.servers.ports import Ports, TritonPorts

if TYPE_CHECKING:
    from afd_serve.servers.state import BackgroundServer
    from afd_serve.servers.torchserve import TorchServe
    from afd_serve.servers.triton import Triton

__all__ = ["app"]

app = typer.Typer()
package_app = typer.Typer(help="Package a classifier for a server.", no_args_is_help=True)
serve_app = typer.Typer(help="Start a server and ask it a first question.", no_args_is_help=True)
app.add_typer(package_app, name="package")
app.add_typer(serve_app, name="serve")

DefaultModeOption = Annotated[
    Mode, typer.Option("--mode", help="For requests that name none: AFD answers, is off, or runs for the metrics only.")
]
StateDirOption = Annotated[Path, typer.Option("--state-dir", help="The server's own folder, with settings and logs.")]
ForegroundOption = Annotated[
    bool,
    typer.Option(
        "--foreground", help="Stay until the server ends, and stop it when told to end: for systemd and containers."
    ),
]


def _port(purpose: str) -> OptionInfo:
    option: OptionInfo = typer.Option(min=1, max=65535, help=purpose)
    return option


_PORTS = Ports()
_TRITON_PORTS = TritonPorts()
_DEFAULT_STATE = Path(".serve/torchserve")
_DEFAULT_TRITON_STATE = Path(".serve/triton")
_NOT_DONE = "interrupted; the same command starts over"
_START_ENDED = "interrupted; what was being started has ended"


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The folder for the engine's files and signature.json.")],
    model: Annotated[str, typer.Option(help="A shipped model's name or a fitted run's folder.")] = DEFAULT_MODEL,
    engine: Annotated[str, typer.Option(help="torchscript; on a CPU also onnxruntime or openvino.")] = "torchscript",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16, as the engine can.")] = "float32",
) -> None:
    """Write a classifier with its AFD for one engine, checked against the original on real pictures."""
    from afd_serve.export import export_classifier

    with interruptible(_NOT_DONE):
        signature = export_classifier(model, out, engine=engine, precision=precision).signature
    typer.echo(f"{out}: {signature.backbone}, preset {signature.preset}, {engine} {precision}")
    typer.echo(f"largest difference of a probability from the original: {signature.parity:.1e}")


@package_app.command("torchserve")
def package_torchserve(
    out: Annotated[Path, typer.Option(help="The model store: the folder for the archive.")],
    model: ModelOption = DEFAULT_MODEL,
    name: Annotated[str, typer.Option(help="The model's name in URLs.")] = "afd",
    version: Annotated[str, typer.Option(help="The model's version.")] = "1.0",
    mode: DefaultModeOption = Mode.PROTECT,
) -> None:
    """Build a model archive (.mar) for TorchServe."""
    from afd_serve.packaging import torchserve

    with interruptible(_NOT_DONE):
        archive = torchserve.package_torchserve(model, out, name=name, version=version, mode=mode)
    typer.echo(archive)


@package_app.command("triton")
def package_triton(
    out: Annotated[Path, typer.Option(help="The model repository.")],
    model: ModelOption = DEFAULT_MODEL,
    platform: Annotated[
        str, typer.Option(help="python, python_cpu, or pytorch_libtorch where Triton has it, as in NVIDIA's container.")
    ] = "python",
    decoders: Annotated[int, typer.Option(min=1, help="Processes that read pictures.")] = 1,
    classifiers: Annotated[int, typer.Option(min=1, help="Classifier processes, per GPU where there are any.")] = 1,
    mode: DefaultModeOption = Mode.PROTECT,
) -> None:
    """Build a model repository for Triton."""
    from afd_serve.packaging import triton

    limits = triton.TritonLimits(decoders=decoders, classifiers=classifiers)
    with interruptible(_NOT_DONE):
        repository = triton.package_triton(model, out, platform=platform, limits=limits, mode=mode)
    typer.echo(repository)


@serve_app.command("torchserve")
def serve_torchserve(
    model: ModelOption = DEFAULT_MODEL,
    state_dir: StateDirOption = _DEFAULT_STATE,
    name: Annotated[str, typer.Option(help="The model's name in URLs.")] = "afd",
    mode: DefaultModeOption = Mode.PROTECT,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0 for one per core.")] = 0,
    port: Annotated[int, _port("For predictions.")] = _PORTS.inference,
    management_port: Annotated[int, _port("For management.")] = _PORTS.management,
    metrics_port: Annotated[int, _port("For metrics.")] = _PORTS.metrics,
    grpc_port: Annotated[int, _port("For predictions over gRPC.")] = _PORTS.grpc_inference,
    grpc_management_port: Annotated[int, _port("For management over gRPC.")] = _PORTS.grpc_management,
    foreground: ForegroundOption = False,
) -> None:
    """Serve a classifier on TorchServe in the background, on loopback, and classify a sample picture."""
    from afd_serve.servers import quickstart

    ports = Ports(port, management_port, metrics_port, grpc_port, grpc_management_port)
    with interruptible(_START_ENDED):
        server = quickstart.serve_torchserve(model, state_dir, name=name, mode=mode, ports=ports, workers=workers)
        if foreground:
            _stay_with(server, lambda: quickstart.show(server))
    typer.echo(quickstart.show(server))


@serve_app.command("triton")
def serve_triton(
    model: ModelOption = DEFAULT_MODEL,
    state_dir: StateDirOption = _DEFAULT_TRITON_STATE,
    python: Annotated[
        Path | None, typer.Option(help="A Python with afd-serve\\[triton-server]; else this one, or a new one.")
    ] = None,
    mode: DefaultModeOption = Mode.PROTECT,
    workers: Annotated[int, typer.Option(min=0, help="Classifier processes; 0 for one per core.")] = 0,
    port: Annotated[int, _port("For HTTP.")] = _TRITON_PORTS.http,
    grpc_port: Annotated[int, _port("For gRPC.")] = _TRITON_PORTS.grpc,
    metrics_port: Annotated[int, _port("For metrics.")] = _TRITON_PORTS.metrics,
    shared_memory: Annotated[
        bool,
        typer.Option(
            "--shared-memory", help="Let clients use shared memory, where every account of the machine is trusted."
        ),
    ] = False,
    foreground: ForegroundOption = False,
) -> None:
    """Serve a classifier on Triton in the background, on loopback, and classify a sample picture."""
    from afd_serve.servers import triton_quickstart

    ports = TritonPorts(port, grpc_port, metrics_port)
    with interruptible(_START_ENDED):
        server = triton_quickstart.serve_triton(
            model,
            state_dir,
            mode=mode,
            python=python,
            ports=ports,
            workers=workers,
            shared_memory=shared_memory,
        )
        if foreground:
            _stay_with(server, lambda: triton_quickstart.show(server))
    typer.echo(triton_quickstart.show(server))


def _stay_with(server: "BackgroundServer", words: Callable[[], str]) -> NoReturn:
    """Say that a server answers, and go on as `stay`, without the memory that starting it took."""
    try:
        answers = words()
        hold_signals()
        typer.echo(answers)
        os.execv(
            sys.executable, [sys.executable, "-P", "-m", "afd_serve", "stay", "--state-dir", str(server.state_dir)]
        )
    except BaseException:
        server.end()
        raise


@app.command()
def stay(state_dir: StateDirOption = _DEFAULT_STATE) -> None:
    """Stay with the server that `serve` started, until it ends; stop it when told to end."""
    from afd_serve.servers.systemd import tell_ready

    server = _server_in(state_dir)
    try:
        with signals_interrupt():
            release_signals()
            tell_ready()
            server.stay()
    except KeyboardInterrupt:
        typer.echo("stopping")
    finally:
        server.end()
    typer.echo("stopped")


@app.command()
def stop(state_dir: StateDirOption = _DEFAULT_STATE) -> None:
    """Stop the server that `serve` started."""
    typer.echo("stopped" if state_dir.is_dir() and _stop(state_dir) else f"nothing runs in {state_dir}")


def _stop(state_dir: Path) -> bool:
    from afd_serve.runs import alone_in
    from afd_serve.servers.state import STATE_FILE, no_server
    from afd_serve.servers.torchserve import TorchServe
    from afd_serve.servers.triton import Triton

    with alone_in(state_dir, wait=True):
        # Each knows its own state files only.
        stopped = TorchServe.stop(state_dir) or Triton.stop(state_dir)
        if not stopped and (state_dir / STATE_FILE).exists():  # of one that has ended nothing would be left
            raise no_server(state_dir)
        return stopped


@app.command()
def health(
    state_dir: StateDirOption = _DEFAULT_STATE,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 5,
) -> None:
    """Let the server that `serve` started classify the sample picture; the status is 0 if it does."""
    from afd_serve.classification import There
    from afd_serve.servers.torchserve import TorchServe

    server = _server_in(state_dir)
    if isinstance(server, TorchServe):
        asked = There(f"http://127.0.0.1:{server.ports.inference}", server.model, server.token())
    else:
        asked = There(server.url)
    typer.echo(asked.probe(timeout).summary())


def _server_in(state_dir: Path) -> "TorchServe | Triton":
    """The server that was started last; it may have ended of itself."""
    from afd_serve.servers.state import no_server
    from afd_serve.servers.torchserve import TorchServe
    from afd_serve.servers.triton import Triton

    server = TorchServe.load(state_dir) or Triton.load(state_dir)
    if server is None:
        raise no_server(state_dir)
    return server


@app.command()
def doctor() -> None:
    """Tell what is installed, what is missing, and what to do about it."""
    from afd_serve.doctor import examine

    healthy = True
    for check in examine():
        mark = "ok" if check.ok else "missing"
        typer.echo(f"{mark:8}{check.name:22}{check.detail}")
        healthy = healthy and (check.ok or not check.required)
    if not healthy:
        raise typer.Exit(FAILED)
