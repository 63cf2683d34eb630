"""Bytes in, predictions or per-item failures out: the one path behind every server, the CLI and the evaluation.

Note [One picture at a time]
    On a CPU core the classifier is fastest at batch size 1, where the features stay in the cache (19-22 ms per picture
    against 25-28 ms at 8 or 16, one thread), and a convolution's last bits depend on the batch size. So every picture
    goes through the model alone, and its answer is the same, bit for bit, whatever it is batched with.
"""

import io
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from afd_serve.errors import ConfigError, InputError
from afd_serve.export import Deployed, load_deployed
from afd_serve.jpeg import JpegLimits
from afd_serve.mode import Mode
from afd_serve.preprocess import Buffer, ClassifierInputs, PreparedPicture, prepare, stack
from afd_serve.results import Failure, Prediction
from afd_serve.shadow import look
from afd_serve.surroundings import inference

__all__ = ["Failure", "Pipeline", "Prediction", "StageTimes", "make_prediction"]


@dataclass
class StageTimes:
    """Seconds that calls of `Pipeline.predict` spent, added up by whoever passes the same object again."""

    preprocess: float = 0.0
    inference: float = 0.0
    shadow: float = 0.0


class Pipeline:
    """A loaded classifier with its preprocessing. Thread-safe: nothing changes after loading.

    A process that is forked off may use it as well, on one thread.
    """

    def __init__(self, deployed: Deployed, limits: JpegLimits | None = None) -> None:
        self._process = os.getpid()
        self._module = deployed.module
        self._limits = limits or JpegLimits()
        self.signature = deployed.signature

    @classmethod
    def load(
        cls, source: str | Path = "efficientnet-lite0", *, threads: int | None = None, limits: JpegLimits | None = None
    ) -> "Pipeline":
        """Load a classifier with its AFD module.

        Args:
            source: A shipped model's name (``efficientnet-lite0``), a run's folder, or an exported model's folder.
            threads: Torch's threads for this process; left alone where None.
            limits: On what one picture may cost.

        Raises:
            CheckpointError: There is no such model, or its files do not belong together.
            ConfigError: ``threads`` is not positive.
        """
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads must be at least 1, not {threads}")
            torch.set_num_threads(threads)
        return cls(load_deployed(source), limits)

    def predict(
        self,
        items: Sequence[Buffer],
        *,
        top_k: int = 5,
        afd: Mode | str | bool | Iterable[Mode | str | bool] = Mode.PROTECT,
        crop: bool = True,
        times: StageTimes | None = None,
    ) -> list[Prediction | Failure]:
        """Classify pictures; one that cannot be read never harms the others.

        Args:
            items: The bytes of each picture.
            top_k: How many classes to name, from 1 on; all of them where there are fewer.
            afd: The mode, its name, or whether to protect at all; one value, or one per item. Where AFD does not
                answer, the answer is the bare backbone's, bit for bit.
            crop: False takes each picture as the model's crop already; it is resized only if its size differs.
            times: Where to add the time that each stage takes.

        Returns:
            One result per item, in order.

        Raises:
            ConfigError: An argument has an impossible value.
        """
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, not {top_k}")
        wanted = [afd] * len(items) if isinstance(afd, str) or not isinstance(afd, Iterable) else list(afd)
        if len(wanted) != len(items):
            raise ConfigError(f"afd has {len(wanted)} values for {len(items)} pictures")
        times = times or StageTimes()
        modes = [Mode.of(choice) for choice in wanted]
        return [self._predict_one(item, top_k, mode, crop, times) for item, mode in zip(items, modes, strict=True)]

    def prepare(self, item: Buffer, *, crop: bool = True) -> PreparedPicture:
        """What `predict` does before the model, for one picture.

        Raises:
            InputError: A subclass says what is wrong with the picture.
        """
        self._compute_after_a_fork()
        return prepare(item, self.signature.preprocessing, crop=crop, limits=self._limits)

    def logits(self, inputs: ClassifierInputs) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and drift scores [N] of prepared inputs."""
        self._compute_after_a_fork()
        with inference():
            logits, drift = self._module(*inputs)
        return logits, drift

    def warm_up(self, rounds: int = 3) -> None:
        """Answer for a grey picture a few times, open and closed, so that the first request finds all compiled."""
        picture = self.prepare(_grey_jpeg(self.signature.preprocessing.size))
        for _ in range(rounds):
            for is_open in (True, False):
                self._run(picture, is_open)

    def _compute_after_a_fork(self) -> None:
        """Do without the parent's OpenMP threads, which do not exist here: torch would wait for them without an end."""
        if os.getpid() != self._process:
            torch.set_num_threads(1)
            self._process = os.getpid()

    def _predict_one(self, item: Buffer, top_k: int, mode: Mode, crop: bool, times: StageTimes) -> Prediction | Failure:
        start = time.perf_counter()
        try:
            picture = self.prepare(item, crop=crop)
        except InputError as error:
            return Failure(error.code, str(error))
        finally:
            ready = time.perf_counter()
            times.preprocess += ready - start
        is_open = mode is Mode.PROTECT and not picture.good
        logits, drift = self._run(picture, is_open)
        answer = self._prediction(picture, logits, drift, is_open, top_k)
        answered = time.perf_counter()
        times.inference += answered - ready
        if mode is Mode.SHADOW and not picture.good:
            (shadow,) = look(logits, lambda: self._run(picture, True)[0])
            answer = replace(answer, shadow=shadow)
            times.shadow += time.perf_counter() - answered
        return answer

    def classify(self, picture: PreparedPicture, *, protect: bool, top_k: int) -> Prediction:
        """What `predict` does after `prepare`; ``protect`` opens the gate."""
        return self._prediction(picture, *self._run(picture, protect), protect, top_k)

    def _run(self, picture: PreparedPicture, is_open: bool) -> tuple[Tensor, Tensor]:
        # See Note [One picture at a time].
        return self.logits(stack([picture], [is_open]))

    def _prediction(
        self, picture: PreparedPicture, logits: Tensor, drift: Tensor, protected: bool, top_k: int
    ) -> Prediction:
        return make_prediction(
            logits[0].softmax(dim=0),
            drift.item(),
            labels=self.signature.labels,
            top_k=top_k,
            estimated_quality=picture.estimated_quality,
            protected=protected,
        )


def make_prediction(
    probabilities: Tensor,
    drift: float,
    *,
    labels: Sequence[str],
    top_k: int,
    estimated_quality: int | None,
    protected: bool,
) -> Prediction:
    """The answer for one picture from its probabilities [K] and drift score: its ``top_k`` first classes, or all."""
    best, classes = (values.tolist() for values in probabilities.topk(min(top_k, len(labels))))
    return Prediction(
        indices=tuple(classes),
        labels=tuple(labels[index] for index in classes),
        probabilities=tuple(best),
        estimated_quality=estimated_quality,
        drift=drift,
        protected=protected,
    )


def _grey_jpeg(size: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (127, 127, 127)).save(out, "JPEG", quality=50)
    return out.getvalue()
