"""The Triton model repository: templates, exported classifier, labels and warm-up data in one folder."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Final, Literal, get_args

from afd_serve.engines import ENGINES
from afd_serve.errors import DependencyError, PackagingError
from afd_serve.export import export_classifier
from afd_serve.exported import exported_files, read_signature
from afd_serve.mode import Mode
from afd_serve.models.classifier import INPUTS
from afd_serve.models.fde import FREQUENCIES
from afd_serve.request import MAX_PICTURES
from afd_serve.sample import sample_picture
from afd_serve.signature import SIGNATURE_NAME, Signature, TensorSpec
from afd_serve.steps import PreparingStep
from afd_serve.triton_protocol import ENSEMBLE, PICTURE

try:
    import tritonclient.grpc.model_config_pb2 as model_config
    from google.protobuf import text_format
except ModuleNotFoundError as error:
    raise DependencyError("Triton's configuration cannot be checked: pip install 'afd-serve[triton]'") from error

__all__ = ["Platform", "TritonLimits", "check_repository", "package_triton", "repository_templates"]

Platform = Literal["python", "python_cpu", "pytorch_libtorch"]

_VERSION: Final = "1"
_PREPARING: Final = "jpeg_coefficients"
_CLASSIFIER: Final = "afd_classifier"
_MODELS: Final = frozenset({ENSEMBLE, _PREPARING, _CLASSIFIER, "afd_answer"})
_DTYPES: Final = {
    "uint8": "TYPE_UINT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "float32": "TYPE_FP32",
}


@dataclass(frozen=True)
class TritonLimits:
    """How much work the repository's models take on.

    Attributes:
        decoders: Processes that read pictures, on the CPU.
        classifiers: Processes that run the classifier: on a CPU as many as there are cores to use, one per GPU.
        max_queue_size: Requests that wait for a model; what comes on top is UNAVAILABLE at once.
        queue_timeout: Seconds after which a waiting request is given up as UNAVAILABLE.
    """

    decoders: int = 1
    classifiers: int = 1
    max_queue_size: int = 512
    queue_timeout: float = 10.0


def repository_templates() -> Path:
    """The folder with the templates: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for parent in (package, package.parent):
        if (parent / "model_repository" / "common").is_dir():
            return parent / "model_repository"
    raise PackagingError(f"the templates of the Triton model repository are missing from the installation in {package}")


def package_triton(
    source: str | Path,
    out_dir: Path,
    *,
    platform: str = "python",
    limits: TritonLimits | None = None,
    mode: Mode = Mode.PROTECT,
) -> Path:
    """Build a model repository that Triton can serve.

    Args:
        source: A shipped name, a run's directory, or the directory of an exported model; what is not exported yet, is
            exported first.
        out_dir: The repository; made when missing. The models of the same names there are replaced.
        platform: ``python`` prepares pictures in processes on the CPU and runs the classifier, on a GPU where there is
            one, in others; ``python_cpu`` does both in one process per core; ``pytorch_libtorch`` is as ``python``, but
            leaves the classifier to the backend of that name, which NVIDIA's container has.
        limits: How much work the models take on.
        mode: For requests that name none. ``pytorch_libtorch`` has no shadow mode: there, nobody can run the
            classifier twice for some pictures only.

    Returns:
        ``out_dir``.

    Raises:
        ExportError: The export failed its check.
        PackagingError: The repository does not agree with the classifier, cannot be written, or has no such mode.
    """
    if platform not in get_args(Platform):
        raise PackagingError(f"the platform is one of {', '.join(get_args(Platform))}, not {platform!r}")
    modes = [known for known in Mode if known is not Mode.SHADOW or platform != "pytorch_libtorch"]
    if mode not in modes:
        raise PackagingError(f"on {platform} the mode is one of {', '.join(modes)}, not {mode.value}")
    try:
        with tempfile.TemporaryDirectory(prefix="afd-triton-") as scratch:
            built = _build(source, Path(scratch), platform, limits or TritonLimits(), mode, modes)
            _put_in_place(built, out_dir)
    except OSError as error:
        raise PackagingError(f"the repository cannot be written to {out_dir}: {_reason(error)}") from error
    return out_dir


def _build(
    source: str | Path, scratch: Path, platform: str, limits: TritonLimits, mode: Mode, modes: Sequence[Mode]
) -> Path:
    """The repository, complete and checked, in a temporary folder."""
    exported, built = scratch / "exported", scratch / "built"
    if exported_files(source):
        exported = Path(source)
    else:
        export_classifier(source, exported)
    signature = read_signature(exported)
    if platform == "pytorch_libtorch" and signature.engine != "torchscript":
        raise PackagingError(f"{platform} runs TorchScript; the model was exported for {signature.engine}")
    for part in ("python_cpu",) if platform == "python_cpu" else ("common", platform):
        _complete(repository_templates() / part, built, _values(signature, limits, mode, modes))
    _add_models(built, exported, signature)
    check_repository(built, signature)
    return built


def _values(signature: Signature, limits: TritonLimits, mode: Mode, modes: Sequence[Mode]) -> dict[str, object]:
    """What the templates leave open."""
    return {
        "max_batch_size": MAX_PICTURES,
        "size": signature.preprocessing.size,
        "grid": _spec(signature.inputs, "dequantized").shape[1],
        "frequencies": FREQUENCIES,
        "classes": len(signature.labels),
        "decoders": limits.decoders,
        "classifiers": limits.classifiers,
        "max_queue_size": limits.max_queue_size,
        "queue_timeout_microseconds": round(limits.queue_timeout * 1e6),
        "mode": mode.value,
        "known_modes": " ".join(modes),
    }


def _complete(templates: Path, out: Path, values: Mapping[str, object]) -> None:
    """Copy a folder of templates with the values that they leave open."""
    for path in sorted(templates.rglob("*")):
        target = out / path.relative_to(templates)
        if path.name == "config.pbtxt":
            target.parent.mkdir(parents=True, exist_ok=True)
            template = Template(path.read_text(encoding="utf-8"))
            target.write_text(template.substitute(values), encoding="utf-8")
        elif path.name == "model.py":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _spec(specs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    return next(spec for spec in specs if spec.name == name)


def _add_models(built: Path, exported: Path, signature: Signature) -> None:
    for model in sorted(built.iterdir()):
        version = model / _VERSION  # an ensemble needs one as well, though there is nothing in it
        version.mkdir(exist_ok=True)
        if (version / "model.py").is_file():
            shutil.copyfile(exported / SIGNATURE_NAME, version / SIGNATURE_NAME)
        if "label_filename" in (model / "config.pbtxt").read_text(encoding="utf-8"):
            # Clients get <probability>:<index>:<label>, one class per line of this file.
            lines = "".join(f"{' '.join(label.split())}\n" for label in signature.labels)
            (model / "labels.txt").write_text(lines, encoding="utf-8", errors="replace")
    steps = (built / _CLASSIFIER).is_dir()
    for name in ENGINES[signature.engine].files:
        shutil.copyfile(exported / name, built / (_CLASSIFIER if steps else ENSEMBLE) / _VERSION / name)
    _write_warm_up(built / (_PREPARING if steps else ENSEMBLE), {PICTURE: _text(sample_picture())})
    if steps:
        inputs, (finding,) = PreparingStep(signature.preprocessing).prepare([sample_picture()])
        data = {name: tensor.numpy().tobytes() for name, tensor in zip(INPUTS, inputs, strict=True)}
        _write_warm_up(built / _CLASSIFIER, data | {"finding": _text(finding.to_json())})


def _text(value: bytes) -> bytes:
    """An element of a TYPE_STRING tensor in Triton's form: its length in four bytes, and itself."""
    return len(value).to_bytes(4, "little") + value


def _write_warm_up(model: Path, files: dict[str, bytes]) -> None:
    (model / "warmup").mkdir()
    for name, content in files.items():
        (model / "warmup" / name).write_bytes(content)


def check_repository(repository: Path, signature: Signature) -> None:
    """Compare the repository's configuration with the classifier's signature, and its ensemble with its models.

    Raises:
        PackagingError: Something does not fit; the message says what.
    """
    configs = {path.parent.name: _parse(path) for path in sorted(repository.glob("*/config.pbtxt"))}
    if _CLASSIFIER not in configs:
        _check_classes(configs[ENSEMBLE], signature)
        return
    classifier = configs[_CLASSIFIER]
    by_position = classifier.platform == "pytorch_libtorch"
    _check_tensors(classifier.input, signature.inputs, by_position)
    if by_position:
        _check_tensors(classifier.output, signature.outputs, by_position)
    ensemble = configs[ENSEMBLE]
    known = {tensor.name: _type_of(tensor) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = configs[step.model_name]
        for end, mapping in ((model.input, step.input_map), (model.output, step.output_map)):
            types = {tensor.name: _type_of(tensor) for tensor in end}
            if set(types) != set(mapping):
                raise PackagingError(f"the ensemble maps {sorted(mapping)} of {step.model_name}, not {sorted(types)}")
            for name, value in mapping.items():
                if known.setdefault(value, types[name]) != types[name]:
                    raise PackagingError(f"{step.model_name} has {types[name]} as {name}, others have {known[value]}")
    for tensor in ensemble.output:
        if known.get(tensor.name) != _type_of(tensor):
            raise PackagingError(f"no step of the ensemble makes its output {tensor.name}")


def _check_classes(model: Any, signature: Signature) -> None:
    (probabilities,) = (tensor for tensor in model.output if tensor.name == "probabilities")
    if list(probabilities.dims) != [len(signature.labels)]:
        raise PackagingError(f"the classifier has {len(signature.labels)} classes, not {list(probabilities.dims)}")


def _parse(path: Path) -> Any:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config.ModelConfig())
    except text_format.ParseError as error:
        raise PackagingError(f"{path} is no model configuration: {error}") from error


def _type_of(tensor: Any) -> tuple[str, tuple[int, ...]]:
    return model_config.DataType.Name(tensor.data_type), tuple(tensor.dims)


def _model_shape(tensor: Any) -> tuple[int, ...]:
    """What the model sees, without the batch."""
    return tuple(tensor.reshape.shape) if tensor.HasField("reshape") else tuple(tensor.dims)


def _check_tensors(tensors: Any, specs: tuple[TensorSpec, ...], by_position: bool) -> None:
    configured = {
        tensor.name: (model_config.DataType.Name(tensor.data_type), _model_shape(tensor)) for tensor in tensors
    }
    for index, spec in enumerate(specs):
        name = f"{spec.name}__{index}" if by_position else spec.name
        expected = (_DTYPES[spec.dtype], spec.shape[1:])
        if configured.get(name) != expected:
            raise PackagingError(f"the classifier has {name} as {expected}, its configuration {configured.get(name)}")


def _put_in_place(built: Path, out_dir: Path) -> None:
    """Replace the repository's models: once all are copied, and each in one step, so that none is there by half."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".afd-", dir=out_dir) as aside:
        new, old = Path(aside) / "new", Path(aside) / "old"
        shutil.copytree(built, new)
        old.mkdir()
        try:
            for name in sorted(_MODELS):  # those of another platform as well
                if (out_dir / name).exists():
                    (out_dir / name).rename(old / name)
                if (new / name).exists():
                    (new / name).rename(out_dir / name)
        except BaseException:
            # Undone wherever it stopped: what lies aside is about to be deleted.
            for name in sorted(_MODELS):
                if (built / name).exists() and not (new / name).exists():
                    (out_dir / name).rename(new / name)
                if (old / name).exists():
                    (old / name).rename(out_dir / name)
            raise


def _reason(error: OSError) -> object:
    """What went wrong first: a copied folder's error lists every file of it."""
    return error.args[0][0][2] if isinstance(error, shutil.Error) else error
