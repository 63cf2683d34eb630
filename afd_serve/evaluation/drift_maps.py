"""Drift maps of a few labelled pictures: what AFD found, and how far the features really are from clean ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afd_serve.evaluation.dataset import LabelledPicture
from afd_serve.evaluation.protocols import Condition, compress, conditions
from afd_serve.evaluation.runner import Answer, Evaluation, Key
from afd_serve.evaluation.wording import printable
from afd_serve.explain import Explainer, relative_distance

__all__ = ["DriftExample", "choose_examples", "drift_example", "example_condition"]

_COUNT: Final = 5
_LOST: Final = 1
"""Of the examples, how many show a picture that AFD made wrong, where there is one."""


@dataclass(frozen=True)
class DriftExample:
    """One picture under one condition.

    Attributes:
        title: what it is, and what became of it.
        rgb: uint8 [S, S, 3], the model's crop, compressed.
        found: float32 [G', G'], the drift map of `afd_serve.explain`.
        actual: float32 [G', G'], the bare backbone's features against those of the clean picture.
        remaining: float32 [G', G'], the protected features against the same.
    """

    title: str
    rgb: NDArray[np.uint8]
    found: NDArray[np.float32]
    actual: NDArray[np.float32]
    remaining: NDArray[np.float32]


def example_condition(protocols: Sequence[str]) -> Condition | None:
    """The condition to show: quality 10 of the first protocol that has it, else the hardest of the first one."""
    compressed = [condition for condition in conditions(protocols) if condition.protocol != "clean"]
    if not compressed:
        return None
    at_ten = [condition for condition in compressed if condition.protocol in ("A", "B") and condition.level == 10]
    return at_ten[0] if at_ten else conditions([compressed[0].protocol])[-1]


def choose_examples(
    answers: Mapping[Key, Answer], pictures: Sequence[LabelledPicture], condition: Condition, count: int = _COUNT
) -> list[LabelledPicture]:
    """Pictures that AFD made right, one that it made wrong, and others until there are enough.

    Args:
        answers: what ``evaluate`` returned.
        pictures: those that could be classified.
        condition: the one that is shown.
        count: how many, at most.
    """

    def right(picture: LabelledPicture, afd: bool) -> bool:
        return answers[picture.id, condition.key, afd].indices[:1] == (picture.label,)

    gained = [picture for picture in pictures if right(picture, True) and not right(picture, False)]
    lost = [picture for picture in pictures if right(picture, False) and not right(picture, True)]
    rest = [picture for picture in pictures if picture not in gained and picture not in lost]
    return [*_spread(gained, count - _LOST), *lost[:_LOST], *_spread(rest, count)][:count]


def _spread(pictures: Sequence[LabelledPicture], count: int) -> list[LabelledPicture]:
    if len(pictures) <= count:
        return list(pictures)
    return [pictures[index] for index in np.linspace(0, len(pictures), count, endpoint=False).astype(int)]


def drift_example(
    explainer: Explainer, picture: LabelledPicture, condition: Condition, evaluation: Evaluation, labels: Sequence[str]
) -> DriftExample:
    """Map one picture's drift.

    Raises:
        InputError: the picture cannot be read.
        OSError: its file cannot be read.
    """
    data = picture.read()
    file = compress(data, condition, evaluation.preprocessing, picture_id=picture.id, seed=evaluation.seed)
    explanation = explainer.explain(file, top_k=1, crop=condition.crop)
    prepared = explainer.pipeline.prepare(file, crop=condition.crop)
    clean = explainer.features(explainer.pipeline.prepare(data), protected=False)
    bare = explainer.features(prepared, protected=False)
    corrected = explainer.features(prepared, protected=explanation.prediction.protected)
    unprotected = explainer.pipeline.classify(prepared, protect=False, top_k=1)
    firsts = (found.labels[0] for found in (unprotected, explanation.prediction))
    label, without, with_afd = map(printable, (labels[picture.label], *firsts))
    return DriftExample(
        f"{label}, {condition.title}\nwithout AFD: {without}\nwith AFD: {with_afd}",
        explanation.rgb,
        explanation.map,
        relative_distance(bare, clean).numpy(),
        relative_distance(corrected, clean).numpy(),
    )
