"""AFD weights on disk: one safetensors file that carries its own configuration. Never pickle."""

import hashlib
from importlib import resources
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from afd_serve.config import SERVED_PRESET, AfdConfig
from afd_serve.errors import CheckpointError, ConfigError
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone
from afd_serve.runs import write_atomically
from afd_serve.signature import SIGNATURE_NAME

__all__ = [
    "CONFIG_KEY",
    "WEIGHTS_NAME",
    "find_weights",
    "load_afd",
    "read_config",
    "save_afd",
    "shipped_models",
    "weights_digest",
]

WEIGHTS_NAME = "afd.safetensors"
"""Name of the file in a run's folder and in the package."""

CONFIG_KEY: Final = "afd_config"
"""Where a file's metadata have the shape of the module that it holds."""


def save_afd(afd: AfdNet, path: Path) -> None:
    """Write a module in its training form, or as it is when already reparameterized."""
    tensors = {name: value.contiguous() for name, value in afd.state_dict().items()}
    data = save(tensors, {CONFIG_KEY: afd.config.to_json()})
    write_atomically(path, lambda target: target.write_bytes(data))


def read_config(path: Path) -> AfdConfig:
    """The configuration that a file carries.

    Raises:
        CheckpointError: There is no such file, or it is no AFD checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    if CONFIG_KEY not in metadata:
        raise CheckpointError(f"{path} holds no AFD configuration; was it written by `afd-serve fit`?")
    try:
        return AfdConfig.from_json(metadata[CONFIG_KEY])
    except ConfigError as error:
        raise CheckpointError(f"{path} holds a damaged AFD configuration: {error}") from error


def load_afd(path: Path, backbone: Backbone) -> AfdNet:
    """Read a module for this very backbone.

    Raises:
        CheckpointError: The file is missing or damaged, or was fitted to another backbone.
    """
    config = read_config(path)
    if config.fingerprint != backbone.fingerprint:
        raise CheckpointError(
            f"{path} was fitted to {config.backbone} with weights {config.fingerprint[:12]}, but {backbone.name} has "
            f"weights {backbone.fingerprint[:12]}; fit again with `afd-serve fit --backbone {backbone.name}`"
        )
    afd = AfdNet(config)
    with safe_open(path, framework="pt") as file:
        # Weights from before there was a sharpness leave the logits as they are, which is how it starts.
        tensors = {f"sharpness.{name}": value for name, value in afd.sharpness.state_dict().items()}
        tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping, only keys()
    try:
        afd.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit its own configuration; if another version of afd-serve wrote it, fit again: {error}"
        ) from error
    return afd.eval()


def shipped_models() -> dict[str, Path]:
    """The weights inside the package: ``<backbone>`` for `SERVED_PRESET`, ``<backbone>/<preset>`` for each."""
    found: dict[str, Path] = {}
    root = Path(str(resources.files("afd_serve"))) / "weights"
    for path in sorted(root.glob("*/*.safetensors")):
        found[f"{path.parent.name}/{path.stem}"] = path
        if path.stem == SERVED_PRESET:
            found[path.parent.name] = path
    return found


def weights_digest(source: str | Path) -> str:
    """The SHA-256, in hexadecimal digits, of the file that `find_weights` finds; errors as there."""
    return hashlib.sha256(find_weights(source).read_bytes()).hexdigest()


def find_weights(source: str | Path) -> Path:
    """The weights file behind a shipped model's name, a run's folder or a file's own path.

    Raises:
        CheckpointError: There is none; the message lists the shipped models, or says that there is an exported model.
    """
    shipped = shipped_models()
    if str(source) in shipped:
        return shipped[str(source)]
    path = Path(source)
    weights = path / WEIGHTS_NAME if path.is_dir() else path
    if weights.is_file():
        return weights
    if (path / SIGNATURE_NAME).is_file():
        raise CheckpointError(f"{source} is exported already; give the fitted run that it came from")
    raise CheckpointError(
        f"{source} is neither a shipped model ({', '.join(shipped)}) nor a fitted run's or an exported model's folder"
    )
