"""The frozen classifiers that AFD protects, each with its attach sites, preprocessing and labels."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from afd_serve.errors import AfdError, AttachError, BackboneError
from afd_serve.labels import imagenet_labels
from afd_serve.models.discovery import Sites, find_sites, logits_of
from afd_serve.models.efficientnet_lite import VARIANTS, load_pretrained
from afd_serve.models.same_padding import pad_constantly
from afd_serve.models.size_branches import decide_size_branches
from afd_serve.models.torchvision_compat import import_timm, import_torchvision_models, make_torchvision_importable
from afd_serve.transforms import Preprocessing, Triple

__all__ = ["Backbone", "Preprocessing", "load_backbone", "make_backbone"]

_DEFAULT_FUNCTION = "backbone"

_WRAPPERS: Final = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Classes around a classifier that `torch.fx` does not look through, and under which name they hold it."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained classifier and what AFD needs to know of it.

    Attributes:
        name: the spec that it was loaded from.
        module: eval mode, no gradients; normalized RGB float ``[N, 3, S, S]`` to logits ``[N, K]``.
        preprocessing: how a picture becomes the module's input.
        labels: K class names.
        stem: qualified name of the module whose output is the stem's.
        blocks: qualified names of the blocks, in order of execution; a vision transformer has none.
        embedding: qualified name of the last layer, as in `Sites`.
        fingerprint: SHA-256 (hex) of the parameters' and buffers' names, types, shapes and values.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    stem: str
    blocks: tuple[str, ...]
    embedding: str
    fingerprint: str


def load_backbone(spec: str) -> Backbone:
    """Load a classifier.

    Args:
        spec: one of

            - ``efficientnet-lite0``, ``efficientnet-lite1``, ``efficientnet-lite2``;
            - ``torchvision:<name>[@<weights>]`` or ``timm:<name>[@<weights>]``, where ``<weights>`` is a file with
              a state dict (``.pth``, ``.safetensors``), ``random`` (the same on every call), a name from
              torchvision's enumeration, or left out for the library's default;
            - ``file:<path.py>[:<function>]``: the result of calling a function of yours (``backbone`` unless named),
              either a ``Backbone`` or ``(module, preprocessing, labels)``. **The file is executed.**

    Raises:
        BackboneError: unknown spec, or the classifier cannot be built.
        AttachError: stem, blocks or embedding cannot be found; the message names the candidates.
        DependencyError: a package is missing; the message says which.
    """
    kind, _, rest = spec.partition(":")
    if spec in VARIANTS:
        return _load_efficientnet_lite(spec)
    loaders: dict[str, Callable[[str, str], Backbone]] = {
        "torchvision": _load_torchvision,
        "timm": _load_timm,
        "file": _load_file,
    }
    if kind not in loaders or not rest:
        known = ", ".join([*VARIANTS, "torchvision:<name>", "timm:<name>", "file:<path.py>"])
        raise BackboneError(f"unknown backbone {spec!r}; known are {known}")
    return loaders[kind](spec, rest)


def make_backbone(
    module: nn.Module,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    *,
    name: str,
    sites: Sites | None = None,
) -> Backbone:
    """Freeze a classifier and describe it.

    Args:
        module: normalized RGB float ``[N, 3, S, S]`` to logits ``[N, K]``; switched to eval mode, gradients off,
            padded as `pad_constantly` says, and its branches on sizes decided as `decide_size_branches` says.
        preprocessing: how a picture becomes the module's input.
        labels: K class names.
        name: the spec that finds it again.
        sites: stem, blocks and embedding; found when left out.

    Raises:
        BackboneError: an argument is of another kind, or the module does not give one logit per label.
        AttachError: a site is missing or cannot be found; the message names the candidates.
    """
    _check_kinds(module, preprocessing, labels)
    module.eval().requires_grad_(False)
    _check_logits(module, preprocessing.size, len(labels))
    pad_constantly(module, preprocessing.size)
    decide_size_branches(module, preprocessing.size)
    if sites is None:
        sites = find_sites(module, len(labels), preprocessing.size)
    _check_sites(module, sites)
    return Backbone(
        name=name,
        module=module,
        preprocessing=preprocessing,
        labels=tuple(labels),
        stem=sites.stem,
        blocks=sites.blocks,
        embedding=sites.embedding,
        fingerprint=_fingerprint(module),
    )


def _check_kinds(module: nn.Module, preprocessing: object, labels: object) -> None:
    """What a user's file returns is checked before hours of fitting depend on it."""
    if not isinstance(preprocessing, Preprocessing):
        raise BackboneError(f"preprocessing must be a Preprocessing, not a {type(preprocessing).__name__}")
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
        raise BackboneError("labels must be a list of class names, in the order of the logits")
    if isinstance(module, torch.jit.ScriptModule):
        raise BackboneError("TorchScript cannot be attached to: return the nn.Module that it was made from")
    inner = _WRAPPERS.get(type(module).__name__)
    if inner is not None:
        raise BackboneError(f"a {type(module).__name__} cannot be attached to: return what it wraps, its .{inner}")
    kinds = {str(value.dtype).removeprefix("torch.") for value in module.parameters() if value.is_floating_point()}
    if kinds - {"float32"}:
        raise BackboneError(
            f"the classifier's weights are {', '.join(sorted(kinds))}, and fitting needs float32: return it as "
            "module.float(); `afd-serve export --precision` chooses what it is served in"
        )


@torch.inference_mode()
def _check_logits(module: nn.Module, size: int, classes: int) -> None:
    """Two equal pictures must get the same logits, however they lie in memory: AFD keeps pictures channels last."""
    first = next(module.parameters(), torch.zeros(()))
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(first)
    name, shown = type(module).__name__, f"two pictures of {size}x{size}"
    try:
        output = module(picture.repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last))
    except Exception as error:  # there is no telling with what a third party's code refuses pictures
        raise BackboneError(f"{name} cannot take {shown} in channels-last order: {error}") from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (2, classes):
        raise BackboneError(f"{shown} give {shape}, but {classes} labels need (2, {classes})")
    if not output.isfinite().all():
        raise BackboneError(f"{name} gives logits that are no finite numbers; are these its weights?")
    if (output[0] - output[1]).abs().max() > 1e-3 * output.abs().max():
        raise BackboneError(f"{name} gives equal pictures different logits: in inference nothing may be left to chance")


def _check_sites(module: nn.Module, sites: Sites) -> None:
    named = dict(module.named_modules())
    missing = [name for name in (sites.stem, *sites.blocks, sites.embedding) if name not in named]
    if missing:
        near = ", ".join(name for name in named if name and name.count(".") < 2)
        raise AttachError(f"{type(module).__name__} has no module {', '.join(missing)}; it has {near}")
    if logits_of(named[sites.embedding]) is None:
        raise AttachError(f"{sites.embedding} must be the classifier's last layer, linear or a 1x1 convolution")


def _fingerprint(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if name.endswith("num_batches_tracked"):  # counts training steps; no output depends on it
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load_efficientnet_lite(spec: str) -> Backbone:
    size = VARIANTS[spec].size
    preprocessing = Preprocessing(size, size / (size + 32), "bicubic", (127.0,) * 3, (128.0,) * 3)
    return make_backbone(load_pretrained(spec), preprocessing, imagenet_labels(), name=spec)


def _load_torchvision(spec: str, rest: str) -> Backbone:
    name, _, choice = rest.partition("@")
    models = import_torchvision_models()
    try:
        enumeration = models.get_model_weights(name)
        is_file = _is_file(choice)
        weights = enumeration.DEFAULT if choice in ("", "random") or is_file else enumeration[choice]
    except (KeyError, ValueError) as error:
        raise BackboneError(f"torchvision knows no classifier or weights {rest!r}: {error}") from error
    preset = weights.transforms()
    if not hasattr(preset, "crop_size"):
        raise BackboneError(f"torchvision's {name} is no picture classifier")
    preprocessing = Preprocessing(
        size=preset.crop_size[0],
        crop_fraction=preset.crop_size[0] / preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=_to_bytes_scale(preset.mean),
        std=_to_bytes_scale(preset.std),
    )
    stored = None if choice == "random" or is_file else weights
    module = _build(spec, choice, lambda: models.get_model(name, weights=stored))
    return make_backbone(module, preprocessing, _torchvision_labels(weights.meta["categories"]), name=spec)


def _torchvision_labels(categories: Sequence[str]) -> Sequence[str]:
    """ImageNet's classes under our names: torchvision calls two of them crane, and two maillot."""
    return imagenet_labels() if len(categories) == len(imagenet_labels()) else categories


def _load_timm(spec: str, rest: str) -> Backbone:
    name, _, choice = rest.partition("@")
    timm = import_timm()
    if not timm.is_model(name.split(".")[0]):
        raise BackboneError(f"timm knows no model {name!r}")
    if choice not in ("", "random") and not _is_file(choice):
        raise BackboneError(f"timm weights are chosen in the name ({name}.<tag>), as @random or as @<file>")
    module = _build(spec, choice, lambda: timm.create_model(name, pretrained=not choice))
    if not cast("Any", module).num_classes:
        raise BackboneError(
            f"{name} puts out features, no logits: choose weights with a classifier (timm.list_pretrained)"
        )
    config = timm.data.resolve_model_data_config(module)
    if config["input_size"][1] != config["input_size"][2]:
        raise BackboneError(f"{name} takes pictures of {config['input_size'][1:]}, which is no square")
    preprocessing = Preprocessing(
        size=config["input_size"][1],
        crop_fraction=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=_to_bytes_scale(config["mean"]),
        std=_to_bytes_scale(config["std"]),
    )
    return make_backbone(module, preprocessing, _timm_labels(timm, module), name=spec)


def _timm_labels(timm: ModuleType, module: nn.Module) -> tuple[str, ...]:
    classes = int(cast("Any", module).num_classes)
    if classes == len(imagenet_labels()):
        return imagenet_labels()
    subset = timm.data.infer_imagenet_subset(module)
    if subset is None:
        return tuple(f"class {index}" for index in range(classes))
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(classes))


def _to_bytes_scale(values: Sequence[float]) -> Triple:
    red, green, blue = (255.0 * value for value in values)
    return red, green, blue


def _is_file(choice: str) -> bool:
    return choice.endswith((".pth", ".pt", ".safetensors"))


def _build(spec: str, choice: str, create: Callable[[], nn.Module]) -> nn.Module:
    """Create a library's model with the weights of choice; random ones do not disturb the caller's generator."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = create()
        if _is_file(choice):
            _load_state_dict(module, Path(choice))
    except (OSError, RuntimeError, ValueError) as error:
        raise BackboneError(f"cannot load {spec}: {error}") from error
    return module


def _load_state_dict(module: nn.Module, path: Path) -> None:
    """Load a file's weights; torch's own error for another network's takes a line for each of their names."""
    state = _read_state_dict(path)
    own = module.state_dict()
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


def _load_file(spec: str, rest: str) -> Backbone:
    path, function_name = _split_function(rest)
    function = getattr(_run_file(path), function_name, None)
    if not callable(function):
        raise BackboneError(f"{path} has no function {function_name}; name another as file:{path}:<function>")
    result = _guarded(path, function)
    parts, sites = result, None
    if isinstance(result, Backbone):
        parts = result.module, result.preprocessing, result.labels
        sites = Sites(result.stem, tuple(result.blocks), result.embedding)
    if not (isinstance(parts, tuple) and len(parts) == 3 and isinstance(parts[0], nn.Module)):
        raise BackboneError(f"{function_name} in {path} must return a Backbone or (module, preprocessing, labels)")
    backbone: Backbone = _guarded(path, lambda: make_backbone(*parts, name=spec, sites=sites))
    return backbone


def _split_function(rest: str) -> tuple[Path, str]:
    path, _, function = rest.rpartition(":")
    if path and function.isidentifier():
        return Path(path), function
    return Path(rest), _DEFAULT_FUNCTION


def _run_file(path: Path) -> ModuleType:
    name = f"afd_serve_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None or not path.is_file():
        raise BackboneError(f"there is no Python file {path}" + ("" if path.is_absolute() else f" in {Path.cwd()}"))
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and torch.jit.script look their module up here
    loader = module_spec.loader
    make_torchvision_importable()
    _guarded(path, lambda: loader.exec_module(module))
    return module


def _guarded(path: Path, call: Callable[[], Any]) -> Any:
    """Run a user's code; whatever it raises is the file's fault, not ours, and becomes one clear line."""
    try:
        return call()
    except AfdError:
        raise
    except SystemExit as error:
        raise BackboneError(
            f"{path} ended Python, by sys.exit or the like, and must not; put what the file does as a program below "
            '`if __name__ == "__main__":`, which is not run here'
        ) from error
    except Exception as error:
        raise BackboneError(f"{path} failed with {type(error).__name__}: {error}") from error
