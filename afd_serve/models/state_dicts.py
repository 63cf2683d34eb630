"""A user's own weights for a network of a library."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from afd_serve.errors import BackboneError

__all__ = ["load_weights"]

_WRAPPED: Final = ("module.", "_orig_mod.")
"""How names begin in the state of a network that was trained on many GPUs or compiled."""


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a file's weights into a network.

    Args:
        module: Of any class.
        path: A ``.safetensors`` file or one that `torch.save` wrote, of a state dict; names may begin as those of a
            wrapped network do.

    Raises:
        BackboneError: They are another network's, or the file holds something else. torch's own error takes a line for
            each of their names.
        OSError: The file cannot be read.
    """
    own = module.state_dict()
    state = _unwrapped(_read_state_dict(path), own)
    wrong = {"have other shapes": [name for name in own if name in state and own[name].shape != state[name].shape]}
    if not any(wrong.values()):
        missing, unexpected = module.load_state_dict(state, strict=False)
        wrong = {"are missing": missing, "are not in it": unexpected}
    found = [f"{_some(names)} {how}" for how, names in wrong.items() if names]
    if found:
        raise BackboneError(
            f"the weights in {path} are another network's: {'; '.join(found)}. Classifiers with other layers or "
            "classes are loaded by a function of yours, file:<path.py>"
        )


def _unwrapped(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Without the beginnings that all names have in common, if names of the network's own are left then."""
    names = {name: name for name in state}
    while not any(name in own for name in names.values()):
        wrapped = [start for start in _WRAPPED if names and all(name.startswith(start) for name in names.values())]
        if not wrapped:
            return state
        names = {name: short.removeprefix(wrapped[0]) for name, short in names.items()}
    return {names[name]: value for name, value in state.items()}


def _some(names: Sequence[str], limit: int = 3) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the two readers' have no base class short of this, and torch's advise to unpickle
        raise BackboneError(
            f"{path} is damaged, or holds more than tensors, as a pickled network does; save its state_dict() alone"
        ) from error
    if not isinstance(state, dict):
        raise BackboneError(f"{path} holds a {type(state).__name__}, not a network's state_dict()")
    others = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise BackboneError(f"{path} holds {_some(others)} beside tensors; save the network's state_dict() alone")
    return state
