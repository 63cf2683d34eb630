"""The claim, checked: no protection, restoration, adapted BatchNorm, the paper's AFD and ours, on the same pictures.

Every method is fitted on the same unlabelled pictures for the same number of steps, and classifies the same labelled
pictures under protocol A. A row that is done is a file in ``rows/``, and is not computed again.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from afd_serve.checkpoint import find_weights, load_afd, read_config, weights_digest
from afd_serve.config import FitConfig
from afd_serve.engines import Engine, torchscript
from afd_serve.errors import CheckpointError, ConfigError, InputError
from afd_serve.evaluation.baseline_fit import BASELINES, adapted_norms, fit_baseline, has_norms, restorer
from afd_serve.evaluation.baselines import BaselineClassifier, NormBank
from afd_serve.evaluation.contents import Contents
from afd_serve.evaluation.dataset import LabelledPicture, load_labelled
from afd_serve.evaluation.latency import Forms, Latency, measure
from afd_serve.evaluation.metrics import Interval
from afd_serve.evaluation.protocols import QUALITIES, compress, conditions
from afd_serve.export import example_inputs, freeze_classifier
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.classifier import AfdClassifier
from afd_serve.preprocess import UNREADABLE, ClassifierInputs, PreparedPicture, prepare, stack
from afd_serve.progress import task
from afd_serve.runs import alone_in, write_atomically, write_text
from afd_serve.training.fit import fit
from afd_serve.training.pictures import find_pictures

__all__ = ["CONDITIONS", "FITTED_HERE", "GATED_CLEAN", "PLOT_NAME", "ROWS", "CompareConfig", "Row", "compare", "macs"]

ROWS: Final = {
    "direct": "no protection",
    "arcnn": "AR-CNN, then classify (pixel loss)",
    "dncnn": "DnCNN, then classify (pixel loss)",
    "ddp": "feature-level DDP (loss at the stem)",
    "batchnorm": "BatchNorm adapted per QF",
    "paper": "AFD at the stem, as in the paper",
    "lite": "AFD, lite",
    "default": "AFD, default",
    "full": "AFD, full",
}
"""Names of the rows, in order, and what they are."""

CONDITIONS: Final = conditions(("clean", "A"))
GATED_CLEAN: Final = "clean, gated"
"""Key of the hits on clean pictures when the gate decides for which of them the method is applied."""

FITTED_HERE: Final = "fitted here"

_AFD: Final = ("paper", "lite", "default", "full")
PLOT_NAME: Final = "comparison.png"
_CONFIG_NAME: Final = "config.json"
_WEIGHTS_NAME: Final = "restorer.safetensors"


@dataclass(frozen=True)
class CompareConfig:
    """One comparison; answers are only reused between equal ones.

    Attributes:
        backbone: the classifier's spec.
        images: folders of unlabelled pictures for all fits; labelled pictures among them are left out.
        labelled: the labelled set, see `load_labelled`.
        out: folder for rows, fits and the report.
        split: of the labelled set.
        limit: at most so many labelled pictures.
        steps: of each fit.
        batch_size: pictures per step.
        size: side of the crops for fitting, a multiple of 32.
        seed: of everything.
        workers: processes that load pictures.
        bf16: whether to fit in bfloat16 where the CPU has it.
        rounds: for the latency of each row; 0 leaves it out.
    """

    backbone: str
    images: tuple[Path, ...]
    labelled: Path
    out: Path
    split: str | None = None
    limit: int | None = None
    steps: int = 800
    batch_size: int = 16
    size: int = 128
    seed: int = 0
    workers: int = 1
    bf16: bool = True
    rounds: int = 0

    def to_json(self, contents: Contents) -> str:
        """One JSON object with every key, and what the names among them stand for."""
        return json.dumps(asdict(self) | asdict(contents), indent=2, default=str)

    def differs(self, saved: dict[str, Any], contents: Contents) -> list[str]:
        """The keys in which rows of a saved configuration cannot be joined with those of this one."""
        free = {"out", "workers", "rounds", "images"}
        ours: dict[str, Any] = json.loads(self.to_json(contents))
        return [name for name, value in ours.items() if name not in free and saved.get(name) != value]


@dataclass(frozen=True)
class Row:
    """What one method did.

    Attributes:
        name: a key of `ROWS`.
        weights: where its weights come from: `FITTED_HERE`, or a model's name and digest.
        parameters: values stored beside the backbone's.
        macs: multiply-accumulates of one picture with the method, and without, in matrix products and convolutions.
        hits: for each condition's key 1, 0 or -1 (could not be read) per picture; with `GATED_CLEAN` where the
            method has a gate.
        latency: against the bare backbone, where measured.
    """

    name: str
    weights: str
    parameters: int
    macs: tuple[int, int]
    hits: dict[str, list[int]]
    latency: Latency | None = None

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Row":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: It is no row.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            times = values["latency"]
            if times is not None:
                ratios = {key: Interval(**times[key]) for key in ("closed", "opened")}
                times = Latency(**times | ratios)
            return cls(**values | {"macs": tuple(values["macs"]), "latency": times})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is no row of a comparison: {error}") from error


def compare(config: CompareConfig, rows: Sequence[str] = tuple(ROWS), ours: Sequence[str] = ()) -> list[Row]:
    """Compute the rows that are not there yet, and return all of them, ``direct`` first.

    Args:
        config: What to compare, and how.
        rows: Names of rows; ``direct`` is always among them.
        ours: Fitted models to take instead of fitting: each stands for the row of its preset.

    Raises:
        ConfigError: A row is unknown or cannot be had, or the folder holds another comparison, or
            another process is at work in it.
        CheckpointError: A model is missing, or another backbone's.
        BackboneError: The backbone cannot be loaded.
    """
    unknown = [row for row in rows if row not in ROWS]
    if unknown or not rows:
        raise ConfigError(f"unknown row {', '.join(unknown) or repr('')}; there are {', '.join(ROWS)}")
    with alone_in(config.out):
        comparison = _Comparison(config, ours)
        wanted = [row for row in ROWS if row in rows or row == "direct"]
        if "batchnorm" in wanted and not has_norms(comparison.backbone):
            wanted.remove("batchnorm")
        return [comparison.row(name) for name in wanted]


class _Comparison:
    """The classifier and the pictures of a comparison, and its rows, one at a time."""

    def __init__(self, config: CompareConfig, ours: Sequence[str]) -> None:
        self.config = config
        self.backbone = load_backbone(config.backbone)
        labels = self.backbone.labels
        everything = load_labelled(config.labelled, labels, split=config.split)
        self.pictures = load_labelled(config.labelled, labels, split=config.split, limit=config.limit)
        exclude = tuple(picture.path for picture in everything)
        if (plot := config.out / PLOT_NAME).exists():  # which is no picture to fit on where results lie among these
            exclude += (plot,)
        self.fitting = replace(_fit_config(config), exclude=exclude)
        self.unlabelled = find_pictures(self.fitting.images, self.fitting.exclude)
        contents = Contents.of(self.backbone.fingerprint, self.unlabelled, config.images, self.pictures)
        _check_resumable(config, contents)
        self.ours = {read_config(find_weights(model)).preset: model for model in ours}
        write_text(config.out / _CONFIG_NAME, config.to_json(contents))

    def row(self, name: str) -> Row:
        """Read a row, or compute it."""
        path = self.config.out / "rows" / f"{name}.json"
        weights = _described(self.ours[name]) if name in self.ours else FITTED_HERE
        row = _read_row(path, weights)
        if row is not None and (row.latency is not None or not self.config.rounds):
            return row
        module, parameters = self._build(name)
        plain = BaselineClassifier(self.backbone).eval()
        if row is None:
            size = self.backbone.preprocessing.size
            row = Row(name, weights, parameters, (macs(module, size), macs(plain, size)), self._hits(name, module))
        if self.config.rounds:
            row = replace(row, latency=self._latency(plain, module))
        write_text(path, row.to_json())
        return row

    def _build(self, name: str) -> tuple[nn.Module, int]:
        """A method's module in evaluation mode, and the number of values that it stores beside the backbone's."""
        if name == "direct":
            return BaselineClassifier(self.backbone).eval(), 0
        if name == "batchnorm":
            return self._norm_bank()
        if name in BASELINES:
            network = self._baseline(name)
            place = "features" if name == "ddp" else "pixels"
            return BaselineClassifier(self.backbone, **{place: network}).eval(), _count(network)
        weights = find_weights(self.ours[name]) if name in self.ours else self._fitted(name)
        afd = load_afd(weights, self.backbone)
        afd.reparameterize()
        return AfdClassifier(self.backbone, afd).eval(), _count(afd)

    def _fitted(self, preset: str) -> Path:
        return fit(replace(self.fitting, preset=preset, out=self.config.out / "fits" / preset)).weights

    def _norm_bank(self) -> tuple[nn.Module, int]:
        with task("adapting BatchNorm") as step:
            trunks = adapted_norms(self.backbone, self.unlabelled, QUALITIES, self.fitting, step)
        norms = (module for trunk in trunks for module in trunk.modules() if isinstance(module, nn.BatchNorm2d))
        return NormBank(self.backbone, QUALITIES, trunks).eval(), sum(2 * norm.num_features for norm in norms)

    def _baseline(self, name: str) -> nn.Module:
        """Fit a baseline, unless an earlier run has."""
        path = self.config.out / "fits" / name / _WEIGHTS_NAME
        if path.exists():
            network = restorer(name, self.backbone)
            try:
                network.load_state_dict(load_file(path))
            except RuntimeError as error:
                raise CheckpointError(f"{path} holds another network ({error}); delete it to fit again") from error
            return network.eval().requires_grad_(False)
        with task(f"fitting {name}") as step:
            network = fit_baseline(name, self.backbone, self.unlabelled, self.fitting, step)
        write_atomically(path, lambda target: save_file(network.state_dict(), target))
        return network

    def _hits(self, name: str, module: nn.Module) -> dict[str, list[int]]:
        engine = _engine(module, self.backbone) or module
        hits: dict[str, list[int]] = {condition.key: [] for condition in CONDITIONS}
        if name in _AFD:
            hits[GATED_CLEAN] = []
        with task(f"classifying, {name}") as step, torch.inference_mode():
            for done, picture in enumerate(self.pictures):
                answers = self._answers(engine, picture)
                for key, column in hits.items():
                    column.append(answers.get(key, -1))
                step(done + 1, len(self.pictures))
        return hits

    def _answers(self, engine: Engine, picture: LabelledPicture) -> dict[str, int]:
        """1 or 0 for each condition; nothing at all if the picture cannot be read."""
        preprocessing, answers = self.backbone.preprocessing, {}
        try:
            data = picture.read()
            for condition in CONDITIONS:
                file = compress(data, condition, preprocessing, picture_id=picture.id, seed=self.config.seed)
                prepared = prepare(file, preprocessing, crop=condition.crop)
                answers[condition.key] = _hit(engine, prepared, True, picture.label)
                if condition.key == "clean":
                    answers[GATED_CLEAN] = _hit(engine, prepared, not prepared.good, picture.label)
        except (*UNREADABLE, InputError):
            return {}
        return answers

    def _latency(self, plain: nn.Module, module: nn.Module) -> Latency | None:
        bare, engine = _engine(plain, self.backbone), _engine(module, self.backbone)
        if bare is None or engine is None:
            return None
        inputs = example_inputs(self.backbone.preprocessing.size, 1)
        closed, opened = (inputs._replace(gate=torch.full((1,), gate)) for gate in (0.0, 1.0))
        forms = Forms(lambda: bare(*opened), lambda: engine(*closed), lambda: engine(*opened))
        return measure(forms, self.config.rounds)


def _fit_config(config: CompareConfig) -> FitConfig:
    return FitConfig(
        backbone=config.backbone,
        images=config.images,
        out=config.out,
        steps=config.steps,
        batch_size=config.batch_size,
        sizes=(config.size,),
        seed=config.seed,
        workers=config.workers,
        bf16=config.bf16,
    )


def _check_resumable(config: CompareConfig, contents: Contents) -> None:
    path = config.out / _CONFIG_NAME
    if not path.exists():
        return
    saved = _saved_config(path)
    differing = config.differs(saved, contents)
    changed = {
        "fitting_pictures": f"the unlabelled pictures in {', '.join(map(str, config.images))}",
        "labelled_pictures": f"the labelled pictures of {config.labelled}",
    }
    settings = [name for name in differing if name not in changed]
    if settings:
        raise ConfigError(f"{config.out} holds another comparison ({', '.join(settings)}); choose another folder")
    if not saved.keys() >= changed.keys():
        raise ConfigError(f"{config.out} is of a version that did not record its pictures; choose another folder")
    if differing:
        raise ConfigError(
            f"{' and '.join(changed[name] for name in differing)} are not those that the rows in {config.out} were "
            "computed from: names, sizes or classes differ; restore them or choose another folder"
        )


def _saved_config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); choose another folder") from error


def _read_row(path: Path, weights: str) -> Row | None:
    """A row that an earlier run left, if it is of the same weights."""
    try:
        row = Row.from_json(path.read_bytes()) if path.exists() else None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; delete it to compute it again") from error
    return row if row is not None and row.weights == weights else None


def _engine(module: nn.Module, backbone: Backbone) -> Engine | None:
    """The module as it would be deployed, in TorchScript; None where the compiler refuses what cannot be recorded."""
    example = example_inputs(backbone.preprocessing.size)
    try:
        return torchscript.Packed(_frozen(module, example), example)
    except Exception:  # whatever the compiler dislikes in third-party code
        return None


def _frozen(module: nn.Module, example: ClassifierInputs) -> torch.jit.ScriptModule:
    if isinstance(module, AfdClassifier):
        return freeze_classifier(module, example)
    if isinstance(module, BaselineClassifier):
        return torchscript.freeze_or_record(module, example)
    return torchscript.freeze(module)  # a recorded `NormBank` would take one trunk for all pictures


def _hit(engine: Engine, prepared: PreparedPicture, is_open: bool, label: int) -> int:
    logits = engine(*stack([prepared], [is_open]))[0]
    return int(np.asarray(logits[0]).argmax() == label)


def _described(model: str) -> str:
    """Name a model such that equal names mean equal weights."""
    return f"{model} ({weights_digest(model)[:12]})"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def macs(module: nn.Module, size: int) -> int:
    """Multiply-accumulates of a method for one picture of ``size`` pixels with an open gate.

    Matrix products and convolutions count; what is done per value, such as gates and activations, does not.
    """
    inputs = example_inputs(size, 1)._replace(gate=torch.ones(1))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return int(counter.get_total_flops()) // 2
