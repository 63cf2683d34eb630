"""Fitting: the frozen backbone on the clean crop teaches AFD on the compressed one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, Subset

from afd_serve.checkpoint import WEIGHTS_NAME, find_weights, load_afd, save_afd
from afd_serve.config import AfdConfig, FitConfig
from afd_serve.errors import BackboneError, ConfigError
from afd_serve.models.afd import AfdNet
from afd_serve.models.attach import attach, grey_picture
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.classifier import GUIDES, Normalize, insertions, kernel_changes
from afd_serve.models.fde import picture_statistics
from afd_serve.models.folding import fold_norms
from afd_serve.models.presets import preset_config
from afd_serve.progress import task
from afd_serve.runs import alone_in, write_text
from afd_serve.training.data import CompressedPairs, Pair, Recipe
from afd_serve.training.log import append_loss, keep_until
from afd_serve.training.losses import FeatureLoss
from afd_serve.training.pictures import find_pictures, pictures_digest
from afd_serve.training.precision import autocast_to_bfloat16, strided_depthwise_in_float32
from afd_serve.training.state import Done, load_state, save_state

__all__ = ["FitResult", "Trainer", "fit", "rate_share"]

_CALIBRATION_BATCHES = 16
_TAPS = 5
_CLOSING_BATCHES = 48
_STATE_NAME = "state.safetensors"
_CONFIG_NAME = "config.json"
_LOG_NAME = "log.jsonl"
_HOPELESS = 1e6
"""Times the distance without AFD, from which on the estimates at the end would have no finite numbers."""


@dataclass(frozen=True)
class FitResult:
    """Where the weights lie, the mean loss of the last steps, and remarks for the caller."""

    weights: Path
    loss: float
    remarks: tuple[str, ...] = ()


def fit(config: FitConfig) -> FitResult:
    """Fit AFD to a backbone, or go on with a run that was interrupted.

    The run's folder receives ``config.json``, ``log.jsonl``, ``state.safetensors`` (to resume from) and, at the end,
    ``afd.safetensors``.

    Raises:
        ConfigError: The settings cannot work, the fit diverges, or the run in ``config.out`` has other settings or
            damaged ones, or another process is at work there.
        CheckpointError: The backbone's weights have changed since the run in ``config.out``, or its state is damaged.
        BackboneError: The backbone cannot be loaded, has no usable attach site, or has other weights each time.
    """
    with alone_in(config.out):
        _check_resumable(config)
        torch.manual_seed(config.seed)
        backbone = load_backbone(config.backbone)
        _check_lasting(backbone)
        pictures = find_pictures(config.images, config.exclude)
        trainer = Trainer(config, backbone, pictures)
        return trainer.run()


def _check_resumable(config: FitConfig) -> None:
    path = config.out / _CONFIG_NAME
    if not path.exists():
        return
    try:
        differing = FitConfig.from_json(path.read_bytes()).resumes(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; choose another folder for this run or delete that one") from error
    if differing:
        raise ConfigError(
            f"{config.out} holds a run with other settings ({', '.join(differing)}); choose another folder for "
            "this one or delete that one"
        )


def _check_lasting(backbone: Backbone) -> None:
    """A user's file is executed again whenever the fitted weights are used, and must have the same classifier then."""
    if not backbone.name.startswith("file:"):
        return
    with torch.random.fork_rng(devices=[]):
        again = load_backbone(backbone.name)
    if again.fingerprint != backbone.fingerprint:
        raise BackboneError(
            f"{backbone.name} has other weights each time it is loaded, so what is fitted to it could not be used; "
            "load trained weights in it"
        )


def _spread(blocks: tuple[str, ...], count: int) -> tuple[str, ...]:
    """``count`` of the blocks, evenly spaced, the last always among them."""
    wanted = [round((k + 1) * len(blocks) / count) - 1 for k in range(count)]
    return tuple(dict.fromkeys(blocks[max(index, 0)] for index in wanted)) if blocks else ()


def training_sizes(config: FitConfig, backbone: Backbone) -> tuple[int, ...]:
    """The crop sizes of a fit: those asked for, moved so that padding falls as it does at the backbone's size.

    None is below 64 pixels or above the backbone's size. Sizes that the backbone refuses, as most vision transformers
    do, are left out; its own stands for none.
    """
    size = backbone.preprocessing.size
    moved = [side for side in (max(wanted + size % 32, 64) for wanted in config.sizes) if side <= size]
    taken = {side for side in set(moved) if _takes(backbone.module, side)}
    return tuple(side for side in moved if side in taken) or (size,)


@torch.inference_mode()
def _takes(module: nn.Module, size: int) -> bool:
    try:
        module(grey_picture(module, size))
    except Exception:  # there is no telling with what a third party's code refuses a size
        return False
    return True


def rate_share(done: int, config: FitConfig) -> float:
    """The learning rate after ``done`` steps, as a share of the highest: warmed up, then half a cosine down to zero."""
    warm = min(1.0, (done + 1) / max(config.warmup_steps, 1))
    return warm * 0.5 * (1 + math.cos(math.pi * done / config.steps))


class Trainer:
    """One fit, from its first step or from where it was interrupted, to its last.

    What a study may want to vary can be overridden: `calibrate` and `compare`.

    Args:
        config: Everything that is saved beside the result.
        backbone: The frozen classifier.
        pictures: Fitting pictures.
        afd_config: Another shape than that of the configuration's preset.
    """

    def __init__(
        self, config: FitConfig, backbone: Backbone, pictures: list[Path], afd_config: AfdConfig | None = None
    ) -> None:
        self.config = config
        self.afd = AfdNet(afd_config or preset_config(config.preset, backbone)).train()
        self.average = AfdNet(self.afd.config).eval().requires_grad_(False)
        self.normalize = Normalize(backbone.preprocessing)
        self.embedding = backbone.embedding
        self._cautions = backbone.remarks
        taps = _spread(backbone.blocks, _TAPS)
        self.frozen = frozen = fold_norms(backbone.module)
        self.teacher = strided_depthwise_in_float32(attach(frozen, taps=taps, embedding=backbone.embedding))
        student = attach(
            frozen,
            insertions(self.afd),
            kernels=kernel_changes(self.afd),
            inputs=GUIDES,
            taps=taps,
            embedding=backbone.embedding,
        )
        self.student = strided_depthwise_in_float32(student)
        self.data = CompressedPairs(
            pictures,
            backbone.preprocessing,
            sizes=training_sizes(config, backbone),
            batch_size=config.batch_size,
            batches=_CALIBRATION_BATCHES + config.steps,
            seed=config.seed,
        )
        self.optimizer = torch.optim.AdamW(
            self.afd.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        self._pictures = pictures_digest(pictures, config.images)
        self._unreadable: set[int] = set()
        self.loss = self.calibrate()
        if config.init is not None:
            self._start_from(find_weights(config.init), backbone)
        self.average.load_state_dict(self.afd.state_dict())
        done = self._resume()
        self.step, self.mean_loss = done.step, done.loss
        self._changed = done.pictures not in (None, self._pictures)
        self._pictures = done.pictures or self._pictures  # so that later runs see the change as well
        if not self._changed:
            self._unreadable |= {index for index in done.unreadable if index < len(pictures)}
        self._whole = True
        keep_until(config.out / _LOG_NAME, self.step)

    def _start_from(self, weights: Path, backbone: Backbone) -> None:
        """Take over earlier weights; FE-Nets that they lack stay as they are, which is the identity."""
        earlier, ours = load_afd(weights, backbone), self.afd.config
        alike = replace(earlier.config, preset=ours.preset, fe=ours.fe) == ours
        if not alike or earlier.config.fe not in ((), ours.fe):
            raise ConfigError(f"{weights} has preset {earlier.config.preset!r}, this fit {ours.preset!r}")
        self.afd.load_state_dict(earlier.state_dict(), strict=False)

    def compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss of one batch; both arguments are (logits, *taps, embedding)."""
        loss: Tensor = self.loss(student[1:], teacher[1:])
        return loss

    def run(self) -> FitResult:
        """Train until the last step; the state is saved as it goes and when it is interrupted.

        Returns:
            What was fitted; the mean loss is that of then where all steps were done before.

        Raises:
            ConfigError: The fit diverges.
        """
        write_text(self.config.out / _CONFIG_NAME, self.config.to_json())
        begun = self.step
        with task("fitting") as report:
            try:
                for pair in self._batches():
                    self._train_step(pair)
                    report(self.step, self.config.steps, f"loss {self.mean_loss:.3f}")
                    self._bookkeeping()
            finally:
                if self._whole:  # else the state that was saved last is the one to go on from
                    self._save_state()
        left = self._fit_estimates()
        save_afd(self.average, self.config.out / WEIGHTS_NAME)
        return FitResult(self.config.out / WEIGHTS_NAME, self.mean_loss, tuple(self._remarks(begun, left)))

    def _remarks(self, begun: int, left: float) -> Iterator[str]:
        """What the figures do not tell; ``left`` is what AFD leaves of the distance, as a share."""
        yield from self._cautions
        if self._changed and begun:
            yield (
                f"the first {begun} steps, or some of them, saw other pictures: --images or --exclude, or what is "
                "there, has changed since"
            )
        if begun == self.config.steps:
            yield f"all {begun} steps were done before: the pictures were only used to estimate drift and sharpness"
        if left > 1:
            yield (
                f"AFD leaves features {left:.3g} times as far from the clean ones as they are without it: it needs "
                "more steps or a lower --learning-rate"
            )
        if self._unreadable:
            first = str(self.data.pictures[min(self._unreadable)])
            yield f"{len(self._unreadable)} of {len(self.data.pictures)} pictures could not be read, as {first!r}"

    def _batches(self) -> Iterator[Pair]:
        first = _CALIBRATION_BATCHES + self.step
        rest = Subset(self.data, range(first, _CALIBRATION_BATCHES + self.config.steps))
        yield from DataLoader(rest, batch_size=None, num_workers=self.config.workers)

    def _train_step(self, pair: Pair) -> None:
        rate = self.config.learning_rate * rate_share(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast_to_bfloat16(self.config.bf16):
            with torch.no_grad():
                target = self.teacher(self.normalize(pair.clean))
            rgb = self.normalize(pair.inputs.rgb)
            descriptor = self.afd.describe(*pair.inputs[1:4])
            outputs = self.student(rgb, *self.afd.guide(descriptor, pair.inputs.dequantized), descriptor)
        loss = self.compare(outputs, target)
        if not loss.isfinite():
            raise self._diverged(f"the loss of step {self.step + 1} is {float(loss.detach())}")
        self._unreadable |= pair.unreadable
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.afd.parameters(), 1.0)
        self._advance(float(loss.detach()))

    def _advance(self, loss: float) -> None:
        """Take the step that the gradients say; an interruption may come anywhere in it."""
        self._whole = False
        self.optimizer.step()
        self._update_average()
        self.mean_loss = loss if math.isnan(self.mean_loss) else 0.98 * self.mean_loss + 0.02 * loss
        self.step += 1
        self._whole = True

    def _diverged(self, how: str) -> ConfigError:
        return ConfigError(
            f"the fit has diverged: {how}. Choose a --learning-rate lower than {self.config.learning_rate:g} and "
            f"another --out, or delete {self.config.out}: what it holds would diverge again"
        )

    @torch.no_grad()
    def _fit_estimates(self) -> float:
        """Solve the drift score, how far an unprotected embedding is from the clean one, and the sharpness.

        Returns:
            How far a protected embedding is from the clean one, as a share of the unprotected one's distance.
        """
        descriptors, distances, remaining, logits, wanted = [], [], [], [], []
        protected = attach(
            self.frozen,
            insertions(self.average),
            kernels=kernel_changes(self.average),
            inputs=GUIDES,
            embedding=self.embedding,
        )
        pairs = self._closing_pairs()
        with task("estimating drift") as report:
            for index in range(len(pairs)):
                pair = pairs[index]
                self._unreadable |= pair.unreadable
                clean, *_, embedding = self.teacher(self.normalize(pair.clean))
                x = self.normalize(pair.inputs.rgb)
                *_, unprotected = self.teacher(x)
                descriptor = self.average.describe(*pair.inputs[1:4])
                guides = *self.average.guide(descriptor, pair.inputs.dequantized), descriptor
                answers, corrected = protected(x, *guides)
                logits.append(answers)
                remaining.append(self.loss.embedding_distance(corrected, embedding))
                wanted.append(clean)
                descriptors.append(descriptor)
                distances.append(self.loss.embedding_distance(unprotected, embedding))
                report(index + 1, len(pairs))
        described, distance = torch.cat(descriptors), torch.cat(distances)
        left = float(torch.cat(remaining).mean() / distance.mean())
        if not (left <= _HOPELESS and described.isfinite().all()):
            raise self._diverged(f"it leaves features {left:.3g} times as far from the clean ones as they are without")
        self.average.fit_drift(described, distance)
        self.average.sharpness.fit(torch.cat(logits), described, torch.cat(wanted))
        if not all(value.isfinite().all() for value in self.average.parameters()):
            raise self._diverged("no drift score and sharpness can be found for its drift descriptors")
        return left

    def _closing_pairs(self) -> CompressedPairs:
        """Pictures as they are served, good ones too: whole crops at the backbone's size, not mixed, not recoloured."""
        return CompressedPairs(
            self.data.pictures,
            self.data.preprocessing,
            sizes=(self.data.preprocessing.size,),
            batch_size=self.config.batch_size,
            batches=_CLOSING_BATCHES,
            seed=self.config.seed + 1,
            recipe=Recipe(least_area=0.4, p_turn=0, p_mix=0, p_colour=0, only_open=False),
        )

    def _update_average(self) -> None:
        # Early steps would weigh on the average for long without this ramp.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.afd.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def calibrate(self) -> FeatureLoss:
        """What is not learned: input scales of FDE-Net from compressed crops, variances of features from clean ones."""
        cells, statistics, features = [], [], []
        for index in range(_CALIBRATION_BATCHES):
            pair = self.data[index]
            self._unreadable |= pair.unreadable
            inputs = pair.inputs
            cells.append(inputs.dequantized.flatten(0, 2)[::7])
            statistics.append(picture_statistics(inputs.dequantized, inputs.quant_tables, inputs.geometry))
            features.append(_channel_moments(self.teacher, self.normalize(pair.clean)))
        self.afd.fde.calibrate(torch.cat(cells), torch.cat(statistics))
        mean = [torch.stack([batch[k][0] for batch in features]).mean(dim=0) for k in range(len(features[0]))]
        square = [torch.stack([batch[k][1] for batch in features]).mean(dim=0) for k in range(len(features[0]))]
        *taps, embedding = [s - m.square() for s, m in zip(square, mean, strict=True)]
        return FeatureLoss(taps, embedding, self.config.embedding_weight)

    def _bookkeeping(self) -> None:
        if self.step % 20 == 0 or self.step == self.config.steps:
            append_loss(self.config.out / _LOG_NAME, self.step, self.mean_loss)
        if self.step % self.config.checkpoint_every == 0:
            self._save_state()

    def _save_state(self) -> None:
        done = Done(self.step, self.mean_loss, frozenset(self._unreadable), self._pictures)
        save_state(self.config.out / _STATE_NAME, done, self.afd, self.average, self.optimizer)

    def _resume(self) -> Done:
        path = self.config.out / _STATE_NAME
        return load_state(path, self.afd, self.average, self.optimizer) if path.exists() else Done()


def _channel_moments(teacher: fx.GraphModule, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        _, *features = teacher(pixels)
    flat = [f.transpose(0, 1).flatten(1) for f in features]
    return [(values.mean(dim=1), values.square().mean(dim=1)) for values in flat]
