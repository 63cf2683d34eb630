"""Classify a labelled set under every condition, with and without AFD, keeping each answer as it comes."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from afd_serve.errors import ConfigError
from afd_serve.evaluation.dataset import LabelledPicture
from afd_serve.evaluation.protocols import Condition, compress, conditions
from afd_serve.picture_files import file_size
from afd_serve.pipeline import Failure, Prediction
from afd_serve.preprocess import UNREADABLE
from afd_serve.progress import Step
from afd_serve.transforms import Preprocessing

__all__ = ["Answer", "Evaluation", "Predictor", "evaluate"]

RESULTS_FILE = "results.jsonl"


class Predictor(Protocol):
    """What the evaluation needs of a `Pipeline`."""

    def predict(
        self, items: Sequence[bytes], *, top_k: int = 5, afd: bool | Sequence[bool] = True, crop: bool = True
    ) -> list[Prediction | Failure]:
        """One result per item, in order."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how; answers are only reused between equal ones.

    Attributes:
        model: identifies the classifier and its AFD weights.
        dataset: identifies the labelled set.
        preprocessing: gives the model's crop.
        protocols: names from ``protocols.PROTOCOLS``.
        seed: of what protocol C draws.
        top_k: how many classes to keep; fewer than 5 only where there are fewer.
        batch_size: pictures that the pipeline gets at once (each with and without AFD).
    """

    model: str
    dataset: str
    preprocessing: Preprocessing
    protocols: tuple[str, ...]
    seed: int = 0
    top_k: int = 5
    batch_size: int = 16


@dataclass(frozen=True)
class Answer:
    """What the pipeline said of one picture under one condition.

    Attributes:
        indices: the first classes, most probable first; empty for a failure.
        confidence: probability of the first.
        quality: estimated QF, where the picture tells.
        drift: drift score.
        protected: whether the gate opened.
        failure: why there is no answer.
    """

    indices: tuple[int, ...] = ()
    confidence: float = 0.0
    quality: int | None = None
    drift: float | None = None
    protected: bool = False
    failure: str | None = None


Key = tuple[str, str, bool]
"""Picture id, condition, with AFD."""


def evaluate(
    pipeline: Predictor,
    pictures: Sequence[LabelledPicture],
    evaluation: Evaluation,
    out: Path,
    progress: Step | None = None,
) -> dict[Key, Answer]:
    """Classify every picture under every condition, with AFD and without.

    Answers are appended to ``out/results.jsonl`` as they come; a run that was interrupted goes on from there. A picture
    whose file has another size by then is classified again.

    Args:
        pipeline: bytes in, predictions out.
        pictures: the labelled set.
        evaluation: what to do.
        out: folder for the answers, made if missing.
        progress: told after each lot how many answers are known.

    Returns:
        An answer for each picture, condition and ``afd``.

    Raises:
        ConfigError: ``out`` holds the answers of another evaluation, or they are damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / RESULTS_FILE
    sizes = {picture.id: file_size(picture.path) for picture in pictures}
    known = _read_answers(path, evaluation, sizes)
    wanted = conditions(evaluation.protocols)
    total = 2 * len(pictures) * len(wanted)
    done = sum((picture.id, c.key, afd) in known for picture in pictures for c in wanted for afd in (True, False))
    with path.open("a", encoding="utf-8") as file:
        for condition, lot in _lots(pictures, wanted, evaluation.batch_size, known):
            answers = _classify(pipeline, lot, condition, evaluation)
            fresh = {key: answer for key, answer in answers.items() if key not in known}
            known.update(fresh)
            _append(file, fresh, sizes)
            done += len(fresh)
            if progress:
                progress(done, total)
    return known


def _lots(
    pictures: Sequence[LabelledPicture], wanted: Sequence[Condition], size: int, known: Mapping[Key, Answer]
) -> Iterator[tuple[Condition, list[LabelledPicture]]]:
    """Yield what is still to do, lot by lot; all conditions of the first pictures come first."""
    for start in range(0, len(pictures), size):
        for condition in wanted:
            lot = [
                picture
                for picture in pictures[start : start + size]
                if (picture.id, condition.key, True) not in known or (picture.id, condition.key, False) not in known
            ]
            if lot:
                yield condition, lot


def _classify(
    pipeline: Predictor, lot: Sequence[LabelledPicture], condition: Condition, evaluation: Evaluation
) -> dict[Key, Answer]:
    answers: dict[Key, Answer] = {}
    sent: list[tuple[LabelledPicture, bytes]] = []
    for picture in lot:
        file = _file_to_send(picture, condition, evaluation)
        if isinstance(file, bytes):
            sent.append((picture, file))
        else:
            answers.update({(picture.id, condition.key, afd): file for afd in (True, False)})
    files = [file for _, file in sent]
    flags = [True] * len(files) + [False] * len(files)
    results = pipeline.predict(files + files, top_k=evaluation.top_k, afd=flags, crop=condition.crop)
    for (picture, _), afd, result in zip(sent * 2, flags, results, strict=True):
        answers[picture.id, condition.key, afd] = _answer(result)
    return answers


def _file_to_send(picture: LabelledPicture, condition: Condition, evaluation: Evaluation) -> bytes | Answer:
    """Compress a picture; where it cannot be read, say so in an answer."""
    try:
        data = picture.read()
        return compress(data, condition, evaluation.preprocessing, picture_id=picture.id, seed=evaluation.seed)
    except UNREADABLE as error:
        return Answer(failure=f"cannot be read: {error}")


def _answer(result: Prediction | Failure) -> Answer:
    if isinstance(result, Failure):
        return Answer(failure=f"{result.code}: {result.reason}")
    return Answer(
        tuple(result.indices),
        float(result.probabilities[0]),
        result.estimated_quality,
        result.drift,
        result.protected,
    )


def _append(file: IO[str], answers: Mapping[Key, Answer], sizes: Mapping[str, int]) -> None:
    for (picture, condition, afd), answer in answers.items():
        row = {"picture": picture, "size": sizes[picture], "condition": condition, "afd": afd, **asdict(answer)}
        file.write(json.dumps(row) + "\n")
    file.flush()


def _read_answers(path: Path, evaluation: Evaluation, sizes: Mapping[str, int]) -> dict[Key, Answer]:
    """Read an earlier run's answers to the same evaluation; start the file if there was none.

    Left out are failures, because the picture may be readable by now, and answers of files that had another size.
    """
    identity = _identity(evaluation)
    lines = _whole_lines(path) if path.exists() else []
    if not lines:
        path.write_text(json.dumps({"evaluation": identity, "model": evaluation.model}) + "\n", encoding="utf-8")
        return {}
    try:
        if json.loads(lines[0])["evaluation"] != identity:
            raise ConfigError(f"{path} holds another evaluation's answers; choose another folder or delete the file")
        return {key: answer for key, answer, size in map(_read_answer, lines[1:]) if _holds(key, answer, size, sizes)}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); choose another folder or delete the file") from error


def _read_answer(line: bytes) -> tuple[Key, Answer, int | None]:
    """One row as `_append` wrote it, and the picture's size; a damaged row raises whatever its kind of damage does."""
    row: dict[str, Any] = json.loads(line)
    key, size = (row.pop("picture"), row.pop("condition"), row.pop("afd")), row.pop("size", None)
    return key, Answer(**row | {"indices": tuple(row["indices"])}), size


def _holds(key: Key, answer: Answer, size: int | None, sizes: Mapping[str, int]) -> bool:
    """Whether this is an answer to a picture as it is now, as far as its size tells; earlier versions kept none."""
    unchanged = size is None or sizes.get(key[0], size) == size
    return unchanged and answer.failure is None


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines; a last one that was torn by an interruption is cut off."""
    text = path.read_bytes()
    end = text.rfind(b"\n") + 1
    if end != len(text):
        with path.open("r+b") as file:
            file.truncate(end)
    return text[:end].splitlines()


def _identity(evaluation: Evaluation) -> str:
    """Digest what an answer depends on; the protocols and the batch size decide only which answers there are."""
    parts = {name: value for name, value in asdict(evaluation).items() if name not in ("protocols", "batch_size")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
