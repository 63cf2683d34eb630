"""From the answers to the figures: accuracy with and without AFD, recovered share, intervals, tests."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from afd_serve.errors import ConfigError
from afd_serve.evaluation.dataset import LabelledPicture
from afd_serve.evaluation.metrics import (
    Floats,
    Interval,
    bootstrap_means,
    calibration_error,
    interval,
    mcnemar,
    recovered_share,
    top_k_hits,
)
from afd_serve.evaluation.protocols import Condition, conditions
from afd_serve.evaluation.runner import Answer, Evaluation, Key

__all__ = ["ConditionReport", "ProtocolReport", "Report", "Scores", "summarize"]

_TOP = 5


@dataclass(frozen=True)
class Scores:
    """Accuracy (0..1) with its 95% interval, and expected calibration error (0..1)."""

    top1: Interval
    top5: Interval
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
        median_quality: of the estimated QF; None if no picture tells.
    """

    condition: Condition
    bare: Scores
    afd: Scores
    gain: Interval
    p_value: float
    gate_open: float
    median_quality: float | None


@dataclass(frozen=True)
class ProtocolReport:
    """One protocol: its conditions, and means over them; ``recovered`` is None for clean pictures."""

    name: str
    conditions: tuple[ConditionReport, ...]
    bare: Interval
    afd: Interval
    gain: Interval
    recovered: Interval | None


@dataclass(frozen=True)
class Report:
    """Everything that one evaluation found; ``failures`` maps the pictures left out to the reason."""

    model: str
    dataset: str
    seed: int
    pictures: int
    protocols: tuple[ProtocolReport, ...]
    failures: Mapping[str, str] = field(default_factory=dict)


def summarize(answers: Mapping[Key, Answer], pictures: Sequence[LabelledPicture], evaluation: Evaluation) -> Report:
    """Compute the figures; a picture that failed under any condition is left out of all of them.

    Args:
        answers: what ``evaluate`` returned.
        pictures: the labelled set.
        evaluation: what was evaluated.

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
    return Report(evaluation.model, evaluation.dataset, evaluation.seed, len(used), protocols, failures)


class _Table:
    """Hits per picture of every condition with and without AFD, and their bootstrap means."""

    def __init__(
        self, answers: Mapping[Key, Answer], pictures: Sequence[LabelledPicture], wanted: Sequence[Condition]
    ) -> None:
        labels = np.array([picture.label for picture in pictures], np.int64)
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
                columns.append(top_k_hits(indices, labels, k).astype(np.float64))
        self._hits = np.stack(columns, axis=1)
        self._resampled = bootstrap_means(self._hits)

    def hits(self, key: str, afd: bool, k: int = 1) -> Floats:
        """1.0 where the label is among the first ``k``, ``[N]``."""
        return self._hits[:, self._column[key, afd, k]]

    def resampled(self, key: str, afd: bool, k: int = 1) -> Floats:
        """Mean hits of each resample, ``[R]``."""
        return self._resampled[:, self._column[key, afd, k]]


def _padded(indices: Sequence[int]) -> list[int]:
    """Give rows of few-class models the same length; -1 is no class."""
    return [*indices, *[-1] * (_TOP - len(indices))]


def _scores(table: _Table, key: str, afd: bool) -> Scores:
    top1, top5 = (interval(float(table.hits(key, afd, k).mean()), table.resampled(key, afd, k)) for k in (1, _TOP))
    confidences = np.array([answer.confidence for answer in table.answers[key, afd]])
    return Scores(top1, top5, calibration_error(confidences, table.hits(key, afd) > 0))


def _condition_report(condition: Condition, table: _Table) -> ConditionReport:
    key = condition.key
    protected = table.answers[key, True]
    qualities = [answer.quality for answer in protected if answer.quality is not None]
    return ConditionReport(
        condition=condition,
        bare=_scores(table, key, afd=False),
        afd=_scores(table, key, afd=True),
        gain=_gain(table, [key]),
        p_value=mcnemar(table.hits(key, afd=False) > 0, table.hits(key, afd=True) > 0),
        gate_open=sum(answer.protected for answer in protected) / len(protected),
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
    )


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
    clean, bare, protected = (
        _means(table, ["clean"], afd=False),
        _means(table, keys, afd=False),
        _means(table, keys, afd=True),
    )
    share = recovered_share(np.array(clean[0]), np.array(bare[0]), np.array(protected[0]))
    value = float(share) if np.isfinite(share) else math.nan
    return interval(value, recovered_share(clean[1], bare[1], protected[1]))
