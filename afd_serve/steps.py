"""The pipeline in two steps, for servers that run each step as a model of its own: preparing, then answering.

What lies between them are the classifier's tensors and, for each picture, a `Finding`. Put together, the steps give
`Pipeline`'s answers, bit for bit on the same machine: see Note [One picture at a time].

Note [Blank rows]
    A batch has one row per picture, whatever became of it. The row of a picture that cannot be read is blank: all zero,
    with the gate closed. The tables of a picture hold no zero, so a blank row shows, and is not worth a pass of the
    model; a server that passes it through the model all the same harms nobody, because rows do not see each other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from afd_serve.budget import within_budget
from afd_serve.dct import BLOCK
from afd_serve.errors import InputError
from afd_serve.export import Deployed
from afd_serve.jpeg import JpegLimits
from afd_serve.mode import Mode
from afd_serve.models.fde import FREQUENCIES, GEOMETRY
from afd_serve.pipeline import Failure, Prediction, make_prediction
from afd_serve.preprocess import Buffer, ClassifierInputs, PreparedPicture, prepare, stack
from afd_serve.quality import CompressionHistory
from afd_serve.response import ModelInfo, encode, failure_to_dict, prediction_to_dict
from afd_serve.results import Shadow
from afd_serve.sample import sample_picture
from afd_serve.shadow import look
from afd_serve.transforms import Preprocessing
from afd_serve.triton_protocol import OK

__all__ = ["Answered", "ClassifierStep", "Finding", "PreparedBatch", "PreparingStep", "make_answers"]


@dataclass(frozen=True)
class Finding:
    """What preparing tells of one picture, besides tensors.

    Attributes:
        estimated_quality: QF of the heaviest compression found, 1..100; None where nothing tells, or on failure.
        protected: Whether the gate is open.
        shadowed: Whether it would be open if the mode were not shadow.
        failure: Why the picture's row is blank; None where it is not.
        sample: Whether it is the sample picture, which health probes have.
    """

    estimated_quality: int | None = None
    protected: bool = False
    shadowed: bool = False
    failure: Failure | None = None
    sample: bool = False

    def to_json(self) -> bytes:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes | str) -> "Finding":
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        failure = values.pop("failure")
        return cls(**values, failure=Failure(**failure) if failure else None)


class PreparedBatch(NamedTuple):
    """One request's pictures: a row and a finding for each."""

    inputs: ClassifierInputs
    findings: list[Finding]


class PreparingStep:
    """Bytes in, the classifier's inputs out."""

    def __init__(self, preprocessing: Preprocessing, limits: JpegLimits | None = None) -> None:
        self._preprocessing = preprocessing
        self._limits = limits or JpegLimits()

    def prepare(self, items: Sequence[Buffer], *, mode: Mode = Mode.PROTECT, crop: bool = True) -> PreparedBatch:
        """Prepare a request's pictures; the row of one that is not read is blank, and its finding says why."""
        pairs = [self._prepare_one(item, mode, crop) for item in within_budget(items, self._limits)]
        findings = [finding for _, finding in pairs]
        inputs = stack([picture for picture, _ in pairs], [finding.protected for finding in findings])
        return PreparedBatch(inputs, findings)

    def _prepare_one(self, item: Buffer | Failure, mode: Mode, crop: bool) -> tuple[PreparedPicture, Finding]:
        if isinstance(item, Failure):
            return self._blank, Finding(failure=item)
        try:
            picture = prepare(item, self._preprocessing, crop=crop, limits=self._limits)
        except InputError as error:
            return self._blank, Finding(failure=Failure(error.code, str(error)))
        return picture, Finding(
            estimated_quality=picture.estimated_quality,
            protected=mode is Mode.PROTECT and not picture.good,
            shadowed=mode is Mode.SHADOW and not picture.good,
            sample=item == sample_picture(),
        )

    @cached_property
    def _blank(self) -> PreparedPicture:
        size = self._preprocessing.size
        grid = -(-size // BLOCK)
        return PreparedPicture(
            rgb=np.zeros((size, size, 3), np.uint8),
            dequantized=np.zeros((grid, grid, FREQUENCIES), np.int16),
            quant_tables=np.zeros((3, BLOCK * BLOCK), np.int32),
            geometry=np.zeros(GEOMETRY, np.float32),
            history=CompressionHistory(quality=100, resaved=False),
            has_tables=False,
        )


class ClassifierStep:
    """The exported classifier on one device.

    Args:
        deployed: The classifier, loaded for the device.
        device: Where it runs.
        together: Whether all pictures at hand go through it in one pass, as suits a GPU, or one at a time.
    """

    def __init__(self, deployed: Deployed, device: torch.device, *, together: bool) -> None:
        self._module = deployed.module
        self._device = device
        self._together = together
        self._classes = len(deployed.signature.labels)

    def classify(self, batches: Sequence[ClassifierInputs]) -> list[tuple[Tensor, Tensor]]:
        """Classify several requests' pictures.

        Returns:
            For each batch logits [N, K] and drift scores [N], float32 in the CPU's memory; what stands in blank rows
            has no meaning.
        """
        if not self._together:
            return [self._one_by_one(inputs) for inputs in batches]
        joined = (self._upload(tensors) for tensors in zip(*batches, strict=True))
        logits, drift = self._run(ClassifierInputs(*joined))
        ends = np.cumsum([len(inputs.gate) for inputs in batches])[:-1].tolist()
        return list(zip(logits.tensor_split(ends), drift.tensor_split(ends), strict=True))

    def shadow(self, batches: Sequence[PreparedBatch], given: Sequence[Tensor]) -> list[list[Shadow | Failure | None]]:
        """Classify once more, with AFD, the pictures that are answered without it in shadow mode. Never raises.

        Args:
            batches: Several requests' pictures.
            given: For each batch the logits [N, K] that `classify` gave.

        Returns:
            For each batch a `Prediction.shadow` per picture.
        """
        chosen = [[row for row, finding in enumerate(batch.findings) if finding.shadowed] for batch in batches]

        def protect() -> Tensor:
            opened = [_opened(batch.inputs, rows) for batch, rows in zip(batches, chosen, strict=True)]
            return torch.cat([logits for logits, _ in self.classify(opened)])

        bare = torch.cat([logits[rows] for logits, rows in zip(given, chosen, strict=True)])
        found = iter(look(bare, protect))
        return [[next(found) if finding.shadowed else None for finding in batch.findings] for batch in batches]

    def _upload(self, tensors: Sequence[Tensor]) -> Tensor:
        """Join tensors [N, ...] on the device; for a GPU in memory that it can read while this process goes on."""
        rows, first = sum(len(tensor) for tensor in tensors), tensors[0]
        joined = torch.empty((rows, *first.shape[1:]), dtype=first.dtype, pin_memory=self._device.type == "cuda")
        return torch.cat(list(tensors), out=joined).to(self._device, non_blocking=True)

    def _one_by_one(self, inputs: ClassifierInputs) -> tuple[Tensor, Tensor]:
        # See Note [One picture at a time] and Note [Blank rows].
        logits, drift = torch.zeros(len(inputs.gate), self._classes), torch.zeros(len(inputs.gate))
        for index in inputs.quant_tables[:, 0, 0].nonzero()[:, 0].tolist():
            row = ClassifierInputs(*(tensor[index : index + 1].to(self._device) for tensor in inputs))
            logits[index : index + 1], drift[index : index + 1] = self._run(row)
        return logits, drift

    def _run(self, inputs: ClassifierInputs) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            logits, drift = self._module(*inputs)
        return logits.cpu(), drift.cpu()


def _opened(inputs: ClassifierInputs, rows: Sequence[int]) -> ClassifierInputs:
    """Some rows, with the gate open."""
    chosen = ClassifierInputs(*(tensor[rows] for tensor in inputs))
    return chosen._replace(gate=torch.ones_like(chosen.gate))


@dataclass(frozen=True)
class Answered:
    """One request's answers, a row for each picture.

    Attributes:
        results: What `Pipeline.predict` gives.
        probabilities: float32 [N, K]; zero for a failure.
        drift: float32 [N, 1]; zero for a failure.
        estimated_quality: int32 [N, 1]; zero where nothing tells.
        status: `OK` or the failure's code.
        bodies: The answers in the wire format of `afd_serve.response`, as JSON.
    """

    results: list[Prediction | Failure]
    probabilities: Tensor
    drift: Tensor
    estimated_quality: Tensor
    status: list[str]
    bodies: list[str]


def make_answers(
    logits: Tensor,
    drift: Tensor,
    findings: Sequence[Finding],
    *,
    labels: Sequence[str],
    model: ModelInfo,
    top_k: int,
    shadows: Sequence[Shadow | Failure | None] | None = None,
) -> Answered:
    """Put what the classifier says and what preparing found together.

    Args:
        logits: float32 [N, K].
        drift: float32 [N].
        findings: N of them.
        labels: The names of the K classes.
        model: Which model answers.
        top_k: How many classes the bodies name, at most; from 1 on.
        shadows: N of what `ClassifierStep.shadow` gives; None where there is nothing of the kind.
    """
    failed = torch.tensor([finding.failure is not None for finding in findings])
    probabilities = torch.stack([row.softmax(dim=0) for row in logits]).masked_fill(failed[:, None], 0.0)
    drift = drift.masked_fill(failed, 0.0)
    results = [
        finding.failure or replace(_prediction(row, float(score), finding, labels, top_k), shadow=shadow)
        for row, score, finding, shadow in zip(
            probabilities, drift, findings, shadows or [None] * len(findings), strict=True
        )
    ]
    return Answered(
        results=results,
        probabilities=probabilities,
        drift=drift[:, None],
        estimated_quality=torch.tensor([[finding.estimated_quality or 0] for finding in findings], dtype=torch.int32),
        status=[finding.failure.code if finding.failure else OK for finding in findings],
        bodies=[encode(_body(result, model)).decode() for result in results],
    )


def _prediction(row: Tensor, drift: float, finding: Finding, labels: Sequence[str], top_k: int) -> Prediction:
    return make_prediction(
        row,
        drift,
        labels=labels,
        top_k=top_k,
        estimated_quality=finding.estimated_quality,
        protected=finding.protected,
    )


def _body(result: Prediction | Failure, model: ModelInfo) -> Mapping[str, Any]:
    return failure_to_dict(result) if isinstance(result, Failure) else prediction_to_dict(result, model)
