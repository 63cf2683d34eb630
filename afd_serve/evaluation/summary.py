"""From the answers to the figures: accuracy with and without AFD, recovered share, intervals, tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from afd_serve.errors import ConfigError
from afd_serve.evaluation.dataset import LabelledPicture
from afd_serve.evaluation.latency import Latency
from afd_serve.evaluation.metrics import (
    Floats,
    Interval,
    ReliabilityBin,
    bootstrap_means,
    calibration_error,
    interval,
    mcnemar,
    recovered_share,
    reliability,
    top_k_hits,
)
from afd_serve.evaluation.protocols import RESAVED, SAVED_ONCE, Condition, conditions
from afd_serve.evaluation.runner import Answer, Evaluation, Key

__all__ = ["ClassGain", "ConditionReport", "ProtocolReport", "Report", "Scores", "summarize"]

_TOP = 5


@dataclass(frozen=True)
class Scores:
    """How good the answers are.

    Attributes:
        top1: accuracy (0..1) of the first class with its 95% interval.
        top5: the same of the first five.
        agreement: share of the pictures whose first class is that of the clean picture without AFD.
        calibration_error: expected calibration error (0..1).
    """

    top1: Interval
    top5: Interval
    agreement: float
    calibration_error: float


@dataclass(frozen=True)
class ConditionReport:
    """One condition.

    Attributes:
        condition: which.
        bare: the classifier alone.
        afd: the classifier with AFD.
        gain: top-1 with AFD - without, paired over pictures.
        p_value: of McNemar's exact test that both err equally often.
        gate_open: share of the pictures that AFD judged worth correcting.
        gates_opened: how many these are.
        median_quality: of the estimated QF; None if no picture tells.
    """

    condition: Condition
    bare: Scores
    afd: Scores
    gain: Interval
    p_value: float
    gate_open: float
    gates_opened: int
    median_quality: float | None


@dataclass(frozen=True)
class ProtocolReport:
    """One protocol: its conditions, and means over them.

    Attributes:
        name: of the protocol.
        conditions: in order.
        bare: mean top-1 of the classifier alone.
        afd: mean top-1 with AFD.
        gain: the difference, paired over pictures.
        recovered: share of the lost top-1 that AFD wins back; None for clean pictures.
        bare_reliability: confidence against accuracy of the classifier alone, all conditions together.
        afd_reliability: the same with AFD.
    """

    name: str
    conditions: tuple[ConditionReport, ...]
    bare: Interval
    afd: Interval
    gain: Interval
    recovered: Interval | None
    bare_reliability: tuple[ReliabilityBin, ...]
    afd_reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class ClassGain:
    """One class's top-1 without and with AFD, over all compressed conditions together."""

    label: str
    pictures: int
    bare: float
    afd: float

    @property
    def gain(self) -> float:
        """What AFD adds."""
        return self.afd - self.bare


@dataclass(frozen=True)
class Report:
    """Everything that one evaluation found.

    Attributes:
        model: the classifier and its weights.
        dataset: the labelled set.
        seed: of what was drawn.
        pictures: how many were classified under every condition.
        protocols: clean pictures first.
        classes: every class that the set has pictures of, in order; empty where nothing was compressed.
        latency: what AFD costs, where it was measured.
        failures: the pictures left out, and why.
        resave_gap: the share recovered of pictures that were saved again, minus that of those saved once, paired
            over pictures; None where one of them was not evaluated.
    """

    model: str
    dataset: str
    seed: int
    pictures: int
    protocols: tuple[ProtocolReport, ...]
    classes: tuple[ClassGain, ...] = ()
    latency: Latency | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    resave_gap: Interval | None = None


def summarize(
    answers: Mapping[Key, Answer],
    pictures: Sequence[LabelledPicture],
    evaluation: Evaluation,
    *,
    labels: Sequence[str] | None = None,
    latency: Latency | None = None,
) -> Report:
    """Compute the figures; a picture that failed under any condition is left out of all of them.

    Args:
        answers: what ``evaluate`` returned.
        pictures: the labelled set.
        evaluation: what was evaluated.
        labels: names of the classes; their indices where left out.
        latency: what a measurement found.

    Raises:
        ConfigError: no picture could be classified.
    """
    wanted = conditions(evaluation.protocols)
    failures: dict[str, str] = {}
    for picture in pictures:
        for answer in (answers[picture.id, c.key, afd] for c in wanted for afd in (False, True)):
            if answer.failure:
                failures.setdefault(picture.id, answer.failure)
    used = [picture for picture in pictures if picture.id not in failures]
    if not used:
        raise ConfigError(f"no picture could be classified; the first failure: {next(iter(failures.values()), 'none')}")
    table = _Table(answers, used, wanted)
    protocols = tuple(_protocol_report(name, table) for name in evaluation.protocols)
    return Report(
        model=evaluation.model,
        dataset=evaluation.dataset,
        seed=evaluation.seed,
        pictures=len(used),
        protocols=protocols,
        classes=_class_gains(table, [c.key for c in wanted if c.protocol != "clean"], labels),
        latency=latency,
        failures=failures,
        resave_gap=_resave_gap(table, wanted),
    )


class _Table:
    """Labels and hits per picture of every condition with and without AFD, and their bootstrap means."""

    def __init__(
        self, answers: Mapping[Key, Answer], pictures: Sequence[LabelledPicture], wanted: Sequence[Condition]
    ) -> None:
        self.labels = np.array([picture.label for picture in pictures], np.int64)
        self.answers = {
            (c.key, afd): [answers[picture.id, c.key, afd] for picture in pictures]
            for c in wanted
            for afd in (False, True)
        }
        columns: list[Floats] = []
        self._column: dict[tuple[str, bool, int], int] = {}
        for (key, afd), column in self.answers.items():
            indices = np.array([_padded(answer.indices) for answer in column], np.int64)
            for k in (1, _TOP):
                self._column[key, afd, k] = len(columns)
                columns.append(top_k_hits(indices, self.labels, k).astype(np.float64))
        self._hits = np.stack(columns, axis=1)
        self._resampled = bootstrap_means(self._hits)

    def hits(self, key: str, afd: bool, k: int = 1) -> Floats:
        """1.0 where the label is among the first ``k``, ``[N]``."""
        return self._hits[:, self._column[key, afd, k]]

    def agreement(self, key: str, afd: bool) -> float:
        """Share of the pictures whose first class is that of the clean picture without AFD."""
        pairs = zip(self.answers[key, afd], self.answers["clean", False], strict=True)
        return float(np.mean([answer.indices[0] == clean.indices[0] for answer, clean in pairs]))

    def resampled(self, key: str, afd: bool, k: int = 1) -> Floats:
        """Mean hits of each resample, ``[R]``."""
        return self._resampled[:, self._column[key, afd, k]]


def _padded(indices: Sequence[int]) -> list[int]:
    """Give rows of few-class models the same length; -1 is no class."""
    return [*indices, *[-1] * (_TOP - len(indices))]


def _scores(table: _Table, key: str, afd: bool) -> Scores:
    top1, top5 = (interval(float(table.hits(key, afd, k).mean()), table.resampled(key, afd, k)) for k in (1, _TOP))
    confidences = np.array([answer.confidence for answer in table.answers[key, afd]])
    return Scores(top1, top5, table.agreement(key, afd), calibration_error(confidences, table.hits(key, afd) > 0))


def _condition_report(condition: Condition, table: _Table) -> ConditionReport:
    key = condition.key
    protected = table.answers[key, True]
    opened = sum(answer.protected for answer in protected)
    qualities = [answer.quality for answer in protected if answer.quality is not None]
    return ConditionReport(
        condition=condition,
        bare=_scores(table, key, afd=False),
        afd=_scores(table, key, afd=True),
        gain=_gain(table, [key]),
        p_value=mcnemar(table.hits(key, afd=False) > 0, table.hits(key, afd=True) > 0),
        gate_open=opened / len(protected),
        gates_opened=opened,
        median_quality=float(np.median(qualities)) if qualities else None,
    )


def _protocol_report(name: str, table: _Table) -> ProtocolReport:
    reports = tuple(_condition_report(condition, table) for condition in conditions([name]))
    keys = [report.condition.key for report in reports]
    return ProtocolReport(
        name=name,
        conditions=reports,
        bare=_mean(table, keys, afd=False),
        afd=_mean(table, keys, afd=True),
        gain=_gain(table, keys),
        recovered=None if name == "clean" else _recovered(table, keys),
        bare_reliability=_reliability(table, keys, afd=False),
        afd_reliability=_reliability(table, keys, afd=True),
    )


def _reliability(table: _Table, keys: Sequence[str], *, afd: bool) -> tuple[ReliabilityBin, ...]:
    confidences = np.array([answer.confidence for key in keys for answer in table.answers[key, afd]])
    return reliability(confidences, np.concatenate([table.hits(key, afd) for key in keys]) > 0)


def _class_gains(table: _Table, keys: Sequence[str], labels: Sequence[str] | None) -> tuple[ClassGain, ...]:
    if not keys:
        return ()
    # Counts, so that a class which is right as often has no gain, and not one of the last bit.
    bare, protected = (np.sum([table.hits(key, afd) for key in keys], axis=0) for afd in (False, True))
    gains = []
    for index in np.unique(table.labels).tolist():
        own = table.labels == index
        name = str(index) if labels is None else labels[index]
        answers = int(own.sum()) * len(keys)
        shares = (float(hits[own].sum()) / answers for hits in (bare, protected))
        gains.append(ClassGain(name, int(own.sum()), *shares))
    return tuple(gains)


def _means(table: _Table, keys: Sequence[str], *, afd: bool) -> tuple[float, Floats]:
    """Mean top-1 over pictures and conditions, and the same of each resample."""
    value = float(np.mean([table.hits(key, afd) for key in keys]))
    return value, np.mean([table.resampled(key, afd) for key in keys], axis=0)


def _mean(table: _Table, keys: Sequence[str], *, afd: bool) -> Interval:
    return interval(*_means(table, keys, afd=afd))


def _gain(table: _Table, keys: Sequence[str]) -> Interval:
    (bare, bare_resampled), (protected, resampled) = (_means(table, keys, afd=afd) for afd in (False, True))
    return interval(protected - bare, resampled - bare_resampled)


def _recovered(table: _Table, keys: Sequence[str]) -> Interval:
    return interval(*_shares(table, keys))


def _shares(table: _Table, keys: Sequence[str]) -> tuple[float, Floats]:
    """The recovered share, and the same of each resample; NaN where nothing was lost."""
    clean, bare, protected = (
        _means(table, ["clean"], afd=False),
        _means(table, keys, afd=False),
        _means(table, keys, afd=True),
    )
    share = recovered_share(np.array(clean[0]), np.array(bare[0]), np.array(protected[0]))
    return float(share), recovered_share(clean[1], bare[1], protected[1])


def _resave_gap(table: _Table, wanted: Sequence[Condition]) -> Interval | None:
    if RESAVED not in wanted or SAVED_ONCE not in wanted:
        return None
    (resaved, resampled), (once, once_resampled) = (_shares(table, [c.key]) for c in (RESAVED, SAVED_ONCE))
    return interval(resaved - once, resampled - once_resampled)
