"""What is asked of a classifier before hours of fitting depend on it."""

from typing import Final

import torch
from torch import Tensor, nn

from afd_serve.errors import AttachError, BackboneError
from afd_serve.models.attach import attach
from afd_serve.transforms import Preprocessing

__all__ = ["Answer", "ask", "check_kinds", "check_recording"]

Answer = tuple[Tensor, Tensor]
"""Pictures [N, 3, S, S] and the logits [N, K] that a classifier gives them."""

_WRAPPERS: Final = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Classes around a classifier that `torch.fx` does not look through, and under which name they hold it."""

_QUANTIZED: Final = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")

_CHANCE: Final = 1e-3
"""How far two answers to equal pictures may be apart by rounding, relative to the largest logit."""

_ROUNDING: Final = 1e-4
"""The same where the same operators run, in the same order, on the same pictures."""

_LEFT_OUT: Final = (
    "a recording leaves out what a forward does to tensors alone, as behind `isinstance(x, torch.Tensor)` or "
    "`hasattr(x, ...)`, contexts such as `torch.autocast`, and the classifier's own hooks; take them out of it"
)


def check_kinds(module: nn.Module, preprocessing: object, labels: object) -> None:
    """Check what a user's file returns.

    Raises:
        BackboneError: An argument is of another kind, or the classifier of one that nothing can be attached to.
    """
    if not isinstance(preprocessing, Preprocessing):
        raise BackboneError(f"preprocessing must be a Preprocessing, not a {type(preprocessing).__name__}")
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
        raise BackboneError("labels must be a list of class names, in the order of the logits")
    if len(labels) < 2:
        raise BackboneError(
            f"a classifier needs two labels or more, not {len(labels)}: the softmax of a single logit is always 100 %. "
            "For a yes or no let the last linear layer put out two, the first of weight and bias zero, and give two "
            "labels"
        )
    for name, part in module.named_modules():
        _check_part(name, part)
    kinds = {str(value.dtype).removeprefix("torch.") for value in module.parameters() if value.is_floating_point()}
    if kinds - {"float32"}:
        raise BackboneError(
            f"the classifier's weights are {', '.join(sorted(kinds))}, and fitting needs float32: return it as "
            "module.float(); `afd-serve export --precision` chooses what it is served in"
        )


def _check_part(name: str, part: nn.Module) -> None:
    """The classifier itself, which has no name, or a part of it; a part may be in TorchScript, if all of it is not."""
    where, verb = (f" ({name})", "use") if name else ("", "return")
    if isinstance(part, torch.jit.ScriptModule) and not name:
        raise BackboneError("TorchScript cannot be attached to: return the nn.Module that it was made from")
    kind = type(part)
    if kind.__name__ in _WRAPPERS:
        inner = _WRAPPERS[kind.__name__]
        raise BackboneError(f"a {kind.__name__}{where} cannot be attached to: {verb} what it wraps, its .{inner}")
    if kind.__module__.startswith(_QUANTIZED):
        raise BackboneError(
            f"quantized layers{where} cannot be attached to: {verb} what they were made from, in float32"
        )


@torch.no_grad()  # inference mode would leave tensors behind, in what a forward keeps, that nothing can learn through
def ask(module: nn.Module, size: int, classes: int) -> list[Answer]:
    """A classifier's answers to three pictures and to one.

    Equal pictures must get the same logits, however they lie in memory: AFD keeps pictures channels last.

    Args:
        module: In eval mode; normalized RGB float ``[N, 3, size, size]`` to logits ``[N, classes]``.
        size: Side of the pictures.
        classes: How many labels there are.

    Raises:
        BackboneError: It cannot take them, or gives something else than such logits.
    """
    first = next(module.parameters(), torch.zeros(()))
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(first)
    several, one = noise[[0, 1, 0]], noise[:1]
    answers = [(pictures, _logits(module, pictures, classes)) for pictures in (several, one)]
    logits, alone = (answer for _, answer in answers)
    if _differ(logits[0], logits[2], _CHANCE) or _differ(_logits(module, one, classes), alone, _CHANCE):
        raise _left_to_chance(module)
    if (logits >= 0).all() and ((logits.sum(dim=1) - 1).abs() < _CHANCE).all():
        raise BackboneError(
            f"{type(module).__name__} gives probabilities, of which afd-serve would take the softmax again: return it "
            "without its softmax"
        )
    return answers


def _logits(module: nn.Module, pictures: Tensor, classes: int) -> Tensor:
    name, (count, _, size, _) = type(module).__name__, pictures.shape
    shown = f"{'three pictures' if count > 1 else 'one picture'} of {size}x{size}"
    try:
        output = module(pictures.contiguous(memory_format=torch.channels_last))
    except Exception as error:  # there is no telling with what a third party's code refuses pictures
        raise BackboneError(f"{name} cannot take {shown} in channels-last order: {error}") from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or shape != (count, classes):
        raise BackboneError(f"{shown} give {shape}, but {classes} labels need {(count, classes)}")
    if not output.isfinite().all():
        raise BackboneError(f"{name} gives logits that are no finite numbers; are these its weights?")
    return output


def _differ(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return not bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


def _left_to_chance(module: nn.Module) -> BackboneError:
    name = type(module).__name__
    return BackboneError(f"{name} gives equal pictures different logits: in inference nothing may be left to chance")


@torch.no_grad()
def check_recording(module: nn.Module, answers: list[Answer]) -> None:
    """Check that a classifier, recorded as a graph, which is what is fitted to and served, answers as it did itself.

    Args:
        module: What `pad_constantly` and `decide_size_branches` have made of the classifier.
        answers: What `ask` got from it before.

    Raises:
        AttachError: The recording does something else, or cannot run.
        BackboneError: The classifier's answers are left to chance.
    """
    name, recorded = type(module).__name__, attach(module)
    for pictures, logits in answers:
        try:
            # Not by calling it: then `torch.fx` prints where it fails.
            said = recorded.forward(pictures.contiguous(memory_format=torch.channels_last))
        except Exception as error:  # of a third party's code, given what is not a tensor
            reason = str(error).strip().partition("\n")[0]
            raise AttachError(f"{name}, recorded as a graph, cannot run ({reason}); {_LEFT_OUT}") from error
        if isinstance(said, Tensor) and said.shape == logits.shape and not _differ(said, logits, _ROUNDING):
            continue
        if _differ(_logits(module, pictures, logits.shape[1]), logits, _CHANCE):
            raise _left_to_chance(module)
        raise AttachError(f"{name}, recorded as a graph, gives other logits than itself: {_LEFT_OUT}")
