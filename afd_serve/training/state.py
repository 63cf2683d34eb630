"""The state of an interrupted fit as one safetensors file: how far it is, weights, their average, AdamW's moments."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from afd_serve.checkpoint import CONFIG_KEY
from afd_serve.config import AfdConfig
from afd_serve.errors import CheckpointError, ConfigError
from afd_serve.models.afd import AfdNet
from afd_serve.runs import write_atomically

__all__ = ["Done", "load_state", "save_state"]

_DONE_KEY = "done"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Done:
    """How far a fit is.

    Attributes:
        step: The number of steps done.
        loss: Their mean loss, the last ones weighing most; NaN before the first.
        unreadable: The pictures, by their index, that could not be read.
        pictures: `pictures_digest` of the pictures that the first step saw; none in states of earlier versions.
    """

    step: int = 0
    loss: float = math.nan
    unreadable: frozenset[int] = frozenset()
    pictures: str | None = None


def save_state(path: Path, done: Done, afd: AfdNet, average: AfdNet, optimizer: torch.optim.AdamW) -> None:
    """Write everything that the next step and the result depend on."""
    tensors = {f"afd.{name}": value for name, value in afd.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for name, parameter in afd.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    progress = json.dumps(asdict(done) | {"unreadable": sorted(done.unreadable)})
    data = save(contiguous, {_DONE_KEY: progress, CONFIG_KEY: afd.config.to_json()})
    write_atomically(path, lambda target: target.write_bytes(data))


def load_state(path: Path, afd: AfdNet, average: AfdNet, optimizer: torch.optim.AdamW) -> Done:
    """Read what `save_state` wrote into the three objects; returns how far the fit was.

    Raises:
        CheckpointError: The file is damaged or belongs to a module of another shape or for another backbone's weights,
            or does not say to which it belongs, as those of earlier versions.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            done, fitted = _read_done(metadata[_DONE_KEY]), AfdConfig.from_json(metadata[CONFIG_KEY])
            if fitted != afd.config:
                raise CheckpointError(_another(path, fitted, afd.config))
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        afd.load_state_dict(_under("afd.", tensors))
        average.load_state_dict(_under("average.", tensors))
        for name, parameter in afd.named_parameters():
            moments = {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS if f"{moment}.{name}" in tensors}
            if moments:
                optimizer.state[parameter] = moments
    except KeyError as error:
        raise CheckpointError(
            f"{path} cannot be resumed from: it lacks {error}, as those of other versions do; delete it to start afresh"
        ) from error
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"{path} cannot be resumed from ({error}); delete it to start afresh") from error
    return done


def _read_done(text: str) -> Done:
    values = json.loads(text)
    unreadable = frozenset(map(int, values["unreadable"]))
    return Done(int(values["step"]), float(values["loss"]), unreadable, values.get("pictures"))


def _another(path: Path, fitted: AfdConfig, ours: AfdConfig) -> str:
    changed = "the backbone's weights" if fitted.fingerprint != ours.fingerprint else "the sites where AFD attaches"
    return f"{path} is of a fit before {changed} changed; choose another folder for this fit or delete {path.parent}"


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
