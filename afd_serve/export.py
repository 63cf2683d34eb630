"""From fitted weights to what is deployed: the files of one engine and the signature that describes them.

Note [Features in a file of their own]
    An explanation compares what the two trunks make of a picture halfway, and a frozen classifier shows nothing but its
    logits. Rebuilding the trunks from fitted weights would need the backbone's own weights and code on the server. So
    the classifier is exported a second time, cut off at the site that is mapped: 1 MB for EfficientNet-Lite0 instead of
    the classifier's 32, because the early layers have few parameters. A second method in the first file would have cost
    more: freezing folds each method's constants anew, and every process would load them, explaining or not.
"""

import copy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from afd_serve import __version__
from afd_serve.checkpoint import find_weights, load_afd, read_config
from afd_serve.dct import BLOCK
from afd_serve.engines import ENGINES, Engine, torchscript
from afd_serve.engines.graphs import write_graphs
from afd_serve.engines.runtimes import open_graphs
from afd_serve.errors import CheckpointError, ExportError, NotExplainableError
from afd_serve.exported import FEATURES_NAME, digest, read_files, read_signature
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.classifier import INPUTS, OUTPUTS, AfdClassifier, map_site
from afd_serve.models.fde import FREQUENCIES, GEOMETRY
from afd_serve.models.precision import with_trunks_in
from afd_serve.preprocess import ClassifierInputs, prepare, stack
from afd_serve.runs import alone_in
from afd_serve.sample import sample_variants
from afd_serve.signature import FORMAT, SIGNATURE_NAME, Signature, TensorSpec
from afd_serve.surroundings import in_float32
from afd_serve.transforms import Preprocessing

__all__ = [
    "MODEL_NAME",
    "Deployed",
    "ExportedModel",
    "deploy",
    "eager_classifier",
    "example_inputs",
    "export_classifier",
    "freeze_classifier",
    "load_deployed",
    "load_features",
]

(MODEL_NAME,) = ENGINES["torchscript"].files
_PARTIAL: Final = ".partial-"
_TOLERANCE: Final = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 2e-1}
"""How far outputs on noise may be from the eager float32 classifier's, relative to the largest, for each precision."""

_PICTURE_TOLERANCE: Final = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""How far a probability of a real picture may be from the eager float32 classifier's, for each precision."""


@dataclass(frozen=True)
class Deployed:
    """A classifier ready to answer, with `INPUTS` and `OUTPUTS`, and its signature."""

    module: Engine
    signature: Signature


@dataclass(frozen=True)
class ExportedModel:
    """A folder with an engine's files, ``features.pt`` and ``signature.json``."""

    folder: Path
    signature: Signature


def deploy(source: str | Path, *, precision: str = "float32") -> Deployed:
    """Build the deployed form from fitted weights: reparameterized, scripted, frozen.

    Args:
        source: A shipped model's name, a run's folder, or a weights file.
        precision: Of the backbone and of what is attached to it: ``float32``, ``bfloat16``, or ``float16`` for a GPU.
            Inputs, outputs and the estimate of the drift are the same in all.

    Raises:
        CheckpointError: There are no such weights, or they are another backbone's.
        ExportError: The scripted classifier does not agree with the eager one, or there is no such precision.
    """
    _, deployed = _script(source, *_fitted(source), precision)
    return deployed


def _script(source: str | Path, backbone: Backbone, afd: AfdNet, precision: str) -> tuple[bytes, Deployed]:
    _check_choice("torchscript", precision)
    classifier = AfdClassifier(backbone, afd).eval()
    data, module = _frozen(classifier, backbone.preprocessing.size, precision)
    parity = _check_pictures(classifier, module, backbone.preprocessing, precision)
    signature = replace(_signature(source, backbone, afd.config.preset, precision), parity=parity)
    return data, Deployed(module, signature)


def _frozen(classifier: AfdClassifier, size: int, precision: str) -> tuple[bytes, Engine]:
    """The file of a classifier, scripted and frozen, and what loads from it, compared with the classifier.

    Raises:
        ExportError: They do not agree, or it cannot be computed in the precision.
    """
    expected = [_run(classifier, inputs) for inputs in _parity_inputs(size)]
    example = example_inputs(size)
    if precision == "float32":
        data, module = _scripted(classifier, example)
    else:
        data, module = _scripted_in(classifier, example, precision)
    _check_parity(expected, [_run(module, inputs) for inputs in _parity_inputs(size)], _TOLERANCE[precision])
    return data, module


def _scripted(classifier: AfdClassifier, example: ClassifierInputs) -> tuple[bytes, Engine]:
    data = torchscript.to_bytes(freeze_classifier(classifier, example))
    return data, torchscript.load(data, example)


def _scripted_in(classifier: AfdClassifier, example: ClassifierInputs, precision: str) -> tuple[bytes, Engine]:
    """`_scripted` in half precision, which operators refuse where the forward makes a tensor of another one."""
    try:
        return _scripted(with_trunks_in(classifier, getattr(torch, precision)), example)
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2]  # the last line, below a script's own traceback
        raise ExportError(
            f"the classifier cannot be computed in {precision} ({reason}): its forward may cast to float32 itself, as "
            "by x.float(); export it in float32, or with --engine openvino"
        ) from error


def _write_graphs(
    source: str | Path, backbone: Backbone, afd: AfdNet, out: Path, engine: str, precision: str
) -> Signature:
    classifier = AfdClassifier(backbone, afd).eval()
    write_graphs(classifier, example_inputs(backbone.preprocessing.size, 1), out, engine, precision)
    parity = _check_pictures(classifier, open_graphs(out, engine, precision), backbone.preprocessing, precision)
    signature = _signature(source, backbone, afd.config.preset, precision)
    return replace(signature, engine=engine, parity=parity)


def _check_choice(engine: str, precision: str) -> None:
    if engine not in ENGINES:
        raise ExportError(f"the engine is one of {', '.join(ENGINES)}, not {engine!r}")
    known = ENGINES[engine].precisions
    if precision not in known:
        raise ExportError(f"the precision of {engine} is one of {', '.join(known)}, not {precision!r}")


def eager_classifier(source: str | Path) -> AfdClassifier:
    """The classifier that `deploy` scripts, reparameterized but not scripted; arguments and errors as there."""
    return AfdClassifier(*_fitted(source)).eval()


def export_classifier(
    source: str | Path, out: Path, *, engine: str = "torchscript", precision: str = "float32"
) -> ExportedModel:
    """Write an engine's files, ``features.pt`` and ``signature.json`` into a folder.

    Args:
        source: As in `deploy`.
        out: The folder; made when missing.
        engine: One of `ENGINES`.
        precision: One of the engine's.

    Raises:
        CheckpointError: There are no such weights, or they are another backbone's.
        ConfigError: Another export is at work in the folder.
        DependencyError: The engine is not installed.
        ExportError: The engine does not agree with the eager classifier, there is no such engine or precision, or the
            files cannot be written; what was in the folder before is then still there.
    """
    _check_choice(engine, precision)
    try:
        with _filling(out) as folder:
            signature = _write_files(source, folder, engine, precision)
            for name in (*ENGINES[engine].files, FEATURES_NAME, SIGNATURE_NAME):
                (folder / name).replace(out / name)
    except OSError as error:
        raise ExportError(f"the exported model cannot be written to {out}: {error}") from error
    return ExportedModel(out, signature)


@contextmanager
def _filling(out: Path) -> Iterator[Path]:
    """A folder in ``out`` for files that are on their way; those of exports that were killed are removed.

    Where it fails, folders that were made for it go again.
    """
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with alone_in(out):
            for left in out.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=out) as folder:
                yield Path(folder)
    except BaseException:
        for made in missing:
            with suppress(OSError):
                made.rmdir()
        raise


def _write_files(source: str | Path, folder: Path, engine: str, precision: str) -> Signature:
    backbone, afd = _fitted(source)
    if engine == "torchscript":
        data, deployed = _script(source, backbone, afd, precision)
        signature = deployed.signature
        (folder / MODEL_NAME).write_bytes(data)
    else:
        signature = _write_graphs(source, backbone, afd, folder, engine, precision)
    # TorchScript in float32 whatever runs the classifier: explanations are asked for seldom.
    features, _ = _frozen(_features(backbone, afd), backbone.preprocessing.size, "float32")
    (folder / FEATURES_NAME).write_bytes(features)
    signature = replace(
        signature,
        sha256=digest(folder, *ENGINES[engine].files),
        features_sha256=digest(folder, FEATURES_NAME),
    )
    (folder / SIGNATURE_NAME).write_text(signature.to_json(), encoding="utf-8")
    return signature


@in_float32()
def load_deployed(source: str | Path, device: torch.device | None = None) -> Deployed:
    """Load an exported folder, or build the deployed form of shipped or fitted weights.

    Args:
        source: An exported folder, or what `deploy` takes.
        device: Where the classifier runs; the CPU where None. It must be known here, because a frozen module has
            constants instead of parameters, which nothing moves afterwards. Only TorchScript runs elsewhere.

    Raises:
        CheckpointError: There is no such model, or its files are not those that the signature describes.
        DependencyError: The engine is not installed.
        ExportError: See `deploy`.
    """
    folder = Path(source)
    if not (folder / SIGNATURE_NAME).is_file():
        data, deployed = _script(source, *_fitted(source), "float32")
        return deployed if device is None else replace(deployed, module=_load(data, deployed.signature, device))
    signature = read_signature(folder)
    data = read_files(folder, ENGINES[signature.engine].files, signature.sha256)
    if signature.engine == "torchscript":
        return Deployed(_load(data, signature, device), signature)
    if device is not None and device.type != "cpu":
        raise CheckpointError(f"{folder} is for {signature.engine}, which runs on the CPU; export it for torchscript")
    return Deployed(open_graphs(folder, signature.engine, signature.precision), signature)


@in_float32()
def load_features(source: str | Path) -> Engine:
    """The classifier's features where drift is mapped; see Note [Features in a file of their own].

    Args:
        source: An exported folder, or what `deploy` takes.

    Returns:
        A module with the inputs of `AfdClassifier` and the outputs features [N, C, G', G'] and drift [N].

    Raises:
        NotExplainableError: The folder was exported without features.
        CheckpointError: There is no such model, or ``features.pt`` is not the file that the signature describes.
        BackboneError: The backbone has no feature maps that could be shown.
    """
    folder = Path(source)
    if not (folder / SIGNATURE_NAME).is_file():
        return _features(*_fitted(source))
    signature = read_signature(folder)
    if not signature.features_sha256:
        raise NotExplainableError(
            f"the model was exported without {FEATURES_NAME}, which explaining needs: export the fitted run again with "
            "`afd-serve export` and package that"
        )
    return _load(read_files(folder, (FEATURES_NAME,), signature.features_sha256), signature)


def _load(data: bytes, signature: Signature, device: torch.device | None = None) -> Engine:
    return torchscript.load(data, example_inputs(signature.preprocessing.size), device)


def _fitted(source: str | Path) -> tuple[Backbone, AfdNet]:
    weights = find_weights(source)
    backbone = load_backbone(read_config(weights).backbone)
    afd = load_afd(weights, backbone)
    afd.reparameterize()
    return backbone, afd


def _features(backbone: Backbone, afd: AfdNet) -> AfdClassifier:
    return AfdClassifier(backbone, afd, until=map_site(backbone)).eval()


def _signature(source: str | Path, backbone: Backbone, preset: str, precision: str) -> Signature:
    size, grid = backbone.preprocessing.size, -(-backbone.preprocessing.size // BLOCK)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "rgb": ("uint8", (-1, 3, size, size)),
        "dequantized": ("int16", (-1, grid, grid, FREQUENCIES)),
        "quant_tables": ("int32", (-1, 3, BLOCK * BLOCK)),
        "geometry": ("float32", (-1, GEOMETRY)),
        "gate": ("float32", (-1,)),
        "logits": ("float32", (-1, len(backbone.labels))),
        "drift": ("float32", (-1,)),
    }
    return Signature(
        name=Path(source).name if Path(source).exists() else str(source),
        backbone=backbone.name,
        preset=preset,
        fingerprint=backbone.fingerprint,
        sha256="",
        format=FORMAT,
        version=__version__,
        torch=str(torch.__version__),
        preprocessing=backbone.preprocessing,
        inputs=tuple(TensorSpec(name, *shapes[name]) for name in INPUTS),
        outputs=tuple(TensorSpec(name, *shapes[name]) for name in OUTPUTS),
        labels=backbone.labels,
        precision=precision,
    )


def example_inputs(size: int, batch: int = 2) -> ClassifierInputs:
    """Noise in the range of real inputs; the gates alternate between open and closed."""
    generator = torch.Generator().manual_seed(size)
    grid = -(-size // BLOCK)
    return ClassifierInputs(
        rgb=torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator),
        dequantized=torch.randint(-64, 65, (batch, grid, grid, FREQUENCIES), dtype=torch.int16, generator=generator),
        quant_tables=torch.randint(1, 256, (batch, 3, BLOCK * BLOCK), dtype=torch.int32, generator=generator),
        geometry=torch.rand(batch, GEOMETRY, generator=generator),
        gate=(torch.arange(batch) + 1).remainder(2).float(),
    )


def freeze_classifier(classifier: AfdClassifier, example: ClassifierInputs) -> torch.jit.ScriptModule:
    """Freeze a classifier; trunks that the TorchScript compiler refuses are recorded with an example."""
    return torchscript.freeze_or(classifier, lambda: _with_recorded_trunks(classifier, example))


def _with_recorded_trunks(classifier: AfdClassifier, example: ClassifierInputs) -> AfdClassifier:
    """A copy whose trunks are recorded; the attach sites stay scripted, with their control flow."""
    recorded = copy.deepcopy(classifier)
    for path, module in list(recorded.protected.named_modules()):
        parent, _, name = path.rpartition(".")
        if name.startswith("afd_"):
            setattr(recorded.protected.get_submodule(parent), name, torch.jit.script(module))
    x, descriptor = classifier.normalize(example.rgb), classifier.afd.describe(*example[1:4])
    arguments = (x, *classifier.afd.guide(descriptor, example.dequantized), descriptor)
    recorded.protected = torchscript.record(recorded.protected, arguments)  # type: ignore[assignment]
    recorded.bare = torchscript.record(recorded.bare, [x])  # type: ignore[assignment]
    return recorded


def _parity_inputs(size: int) -> list[ClassifierInputs]:
    return [example_inputs(size, batch) for batch in (1, 3)]


def _run(module: Engine, inputs: ClassifierInputs) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        logits, drift = module(*inputs)
    return logits, drift


def _check_parity(expected: list[tuple[Tensor, Tensor]], said: list[tuple[Tensor, Tensor]], tolerance: float) -> None:
    for eager, scripted in zip(expected, said, strict=True):
        for name, ours, theirs in zip(OUTPUTS, eager, scripted, strict=True):
            error = float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1.0))
            if not error <= tolerance:
                raise ExportError(f"{name} of the scripted classifier is off by {error:.2e} (limit {tolerance:.0e})")


def _check_pictures(reference: Engine, module: Engine, preprocessing: Preprocessing, precision: str) -> float:
    """The largest difference of a probability on real pictures, each with its gate open and closed."""
    differences, limit = [], _PICTURE_TOLERANCE[precision]
    for picture in sample_variants():
        prepared = prepare(picture, preprocessing)
        for is_open in (True, False):
            inputs = stack([prepared], [is_open])
            ours, theirs = (_run(engine, inputs)[0].softmax(dim=1) for engine in (reference, module))
            differences.append((ours - theirs).abs().max())
    worst = float(torch.stack(differences).max())  # not a number if one of them is not, which Python's max loses
    if not worst <= limit:
        raise ExportError(f"a probability of a real picture is off by {worst:.2e} (limit {limit:.0e})")
    return worst
