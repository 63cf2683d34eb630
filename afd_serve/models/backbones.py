"""The frozen classifiers that AFD protects, each with its attach sites, preprocessing and labels."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from afd_serve.errors import AfdError, AttachError, BackboneError
from afd_serve.labels import imagenet_labels
from afd_serve.models.checks import ask, check_kinds, check_recording
from afd_serve.models.discovery import Sites, find_sites, logits_of
from afd_serve.models.efficientnet_lite import VARIANTS, load_pretrained
from afd_serve.models.same_padding import pad_constantly
from afd_serve.models.size_branches import decide_size_branches
from afd_serve.models.state_dicts import load_weights
from afd_serve.models.torchvision_compat import import_timm, import_torchvision_models, make_torchvision_importable
from afd_serve.surroundings import in_float32
from afd_serve.transforms import Preprocessing, Triple

__all__ = ["Backbone", "Preprocessing", "load_backbone", "make_backbone", "own_file"]

_DEFAULT_FUNCTION = "backbone"


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
        remarks: what whoever fits to it should know.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    stem: str
    blocks: tuple[str, ...]
    embedding: str
    fingerprint: str
    remarks: tuple[str, ...] = ()


@in_float32()
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


def own_file(spec: str) -> Path | None:
    """The user's own file that a spec of `load_backbone` names, Python or weights; None where there is none."""
    kind, _, rest = spec.partition(":")
    path = _split_function(rest)[0] if kind == "file" else Path(rest.partition("@")[2])
    return path if path.is_file() else None


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
        BackboneError: an argument is of another kind, or the module does not give one logit per label, the same each
            time.
        AttachError: the module cannot be recorded as the graph that answers as it does; or a site is missing or cannot
            be found, and the message names the candidates.
    """
    check_kinds(module, preprocessing, labels)
    _freeze(module)
    answers = ask(module, preprocessing.size, len(labels))
    pad_constantly(module, preprocessing.size)
    decide_size_branches(module, preprocessing.size)
    check_recording(module, answers)
    return _described(module, preprocessing, labels, name, sites)


def _freeze(module: nn.Module) -> None:
    """Eval mode, no gradients, and no tensors of `torch.inference_mode`, through which nothing can learn."""
    module.eval()  # which returns nothing where `train` is a user's own and returns nothing
    copies: dict[int, Tensor] = {}  # of what several parts share, there is one
    for part in module.modules():
        named = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False), *vars(part).items()]
        for name, value in named:
            if isinstance(value, Tensor) and value.is_inference():
                if id(value) not in copies:
                    fresh = value.detach().clone()
                    copies[id(value)] = nn.Parameter(fresh) if isinstance(value, nn.Parameter) else fresh
                setattr(part, name, copies[id(value)])
    module.requires_grad_(False)


def _described(
    module: nn.Module, preprocessing: Preprocessing, labels: Sequence[str], name: str, sites: Sites | None
) -> Backbone:
    """A backbone of a module that can be attached to."""
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
        if not isinstance(value, Tensor):  # a module's own extra state, which may be anything
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load_efficientnet_lite(spec: str) -> Backbone:
    size = VARIANTS[spec].size
    preprocessing = Preprocessing(size, size / (size + 32), "bicubic", (127.0,) * 3, (128.0,) * 3)
    module = load_pretrained(spec)
    _freeze(module)
    # What others' classifiers are asked takes a server's start a second, and is known of this one.
    return _described(module, preprocessing, imagenet_labels(), spec, None)


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
    backbone = make_backbone(module, preprocessing, _timm_labels(timm, module), name=spec)
    return replace(backbone, remarks=_on_cropping(name, config["crop_mode"]))


def _on_cropping(name: str, mode: str) -> tuple[str, ...]:
    if mode == "center":
        return ()
    remark = (
        f"timm prepares pictures for {name} by its crop mode {mode!r}, and afd-serve cuts out their centre: of a "
        "picture that is no square the classifier sees something else than it was measured with"
    )
    return (remark,)


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
            load_weights(module, Path(choice))
    except (OSError, RuntimeError, ValueError) as error:
        raise BackboneError(f"cannot load {spec}: {error}") from error
    return module


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
    return replace(backbone, remarks=result.remarks) if isinstance(result, Backbone) else backbone


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


@contextmanager
def _contained() -> Iterator[None]:
    """What a user's code sets for all of torch is set back, and what it prints is no part of our output."""
    kind = torch.get_default_dtype()
    with torch.set_grad_enabled(torch.is_grad_enabled()), redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            torch.set_default_dtype(kind)


def _guarded(path: Path, call: Callable[[], Any]) -> Any:
    """Run a user's code; whatever it raises is the file's fault, not ours, and becomes one clear line."""
    try:
        with _contained():
            return call()
    except AfdError:
        raise
    except SystemExit as error:
        raise BackboneError(
            f"{path} ended Python, by sys.exit or the like, and must not; put what the file does as a program below "
            '`if __name__ == "__main__":`, which is not run here'
        ) from error
    except ModuleNotFoundError as error:
        raise BackboneError(
            f"{path} failed with {type(error).__name__}: {error}; install it, or, if it is a file of yours, put its "
            "folder in PYTHONPATH"
        ) from error
    except Exception as error:
        raise BackboneError(f"{path} failed with {type(error).__name__}: {error}") from error
