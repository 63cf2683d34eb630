"""One evaluation from a model's name and a labelled set to a written report: what ``afd-serve evaluate`` does."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from afd_serve.checkpoint import weights_digest
from afd_serve.errors import BackboneError, InputError, NotExplainableError
from afd_serve.evaluation.dataset import LabelledPicture, load_labelled
from afd_serve.evaluation.drift_maps import DriftExample, choose_examples, drift_example, example_condition
from afd_serve.evaluation.latency import Forms, deployed_forms, measure
from afd_serve.evaluation.report import write_report
from afd_serve.evaluation.runner import RESULTS_FILE, Answer, Evaluation, Key, evaluate
from afd_serve.evaluation.summary import Report, summarize
from afd_serve.explain import Explainer
from afd_serve.export import load_features
from afd_serve.pipeline import Pipeline
from afd_serve.progress import Step
from afd_serve.runs import alone_in
from afd_serve.signature import Signature

__all__ = ["Study", "run_study"]


@dataclass(frozen=True)
class Study:
    """What to evaluate.

    Attributes:
        model: a shipped model's name, a run's folder or an exported model's folder.
        images: the labelled set, see `load_labelled`; ``split`` and ``limit`` go with it.
        out: folder for answers, report and plots; an interrupted study in it goes on.
        protocols: names, ``clean`` first, see `parse_protocols`.
        split: rows of a CSV file to keep.
        limit: use so many pictures, spread over the set.
        seed: of what protocol C draws.
        threads: torch's threads.
        latency_rounds: how often to time the classifier against its bare backbone; 0 leaves the timing out.
    """

    model: str
    images: Path
    out: Path
    protocols: tuple[str, ...]
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    threads: int = 1
    latency_rounds: int = 0


def run_study(study: Study, progress: Step | None = None, *, fresh: bool = False) -> tuple[Report, list[Path]]:
    """Classify, sum up, and write the report.

    Args:
        study: what to evaluate.
        progress: told of each lot of answers.
        fresh: forget the answers that ``study.out`` holds.

    Returns:
        The report, and the files written.

    Raises:
        BackboneError: the latency is asked for, and the bare backbone cannot be loaded.
        CheckpointError: there is no such model.
        ConfigError: the labelled set cannot be used, or ``study.out`` holds another evaluation, or another process is
            at work there.
    """
    with alone_in(study.out):
        return _run_alone(study, progress, fresh)


def _run_alone(study: Study, progress: Step | None, fresh: bool) -> tuple[Report, list[Path]]:
    pipeline = Pipeline.load(study.model, threads=study.threads)
    signature = pipeline.signature
    pictures = load_labelled(study.images, signature.labels, split=study.split, limit=study.limit)
    evaluation = Evaluation(
        model=_identity(study.model, signature),
        dataset=str(study.images.resolve()),
        preprocessing=signature.preprocessing,
        protocols=study.protocols,
        seed=study.seed,
        top_k=min(5, len(signature.labels)),
    )
    forms = _forms(study)  # which may fail: hours of classifying should not come first
    if fresh:
        (study.out / RESULTS_FILE).unlink(missing_ok=True)
    answers = evaluate(pipeline, pictures, evaluation, study.out, progress)
    latency = measure(forms, study.latency_rounds) if forms else None
    report = summarize(answers, pictures, evaluation, labels=signature.labels, latency=latency)
    used = [picture for picture in pictures if picture.id not in report.failures]
    examples = _drift_examples(study.model, pipeline, answers, used, evaluation)
    return report, write_report(report, study.out, examples)


def _identity(model: str, signature: Signature) -> str:
    """Name a model such that equal names mean equal weights."""
    # Fitted weights that are not exported have no digest in their signature: the file tells.
    digest = signature.sha256 or weights_digest(model)
    return f"{signature.backbone}, preset {signature.preset}, {digest[:16]}"


def _forms(study: Study) -> Forms | None:
    """What is timed, where that is asked for."""
    try:
        return deployed_forms(study.model) if study.latency_rounds else None
    except BackboneError as error:
        raise BackboneError(f"the latency is in times the bare backbone's, which cannot be loaded: {error}") from error


def _drift_examples(
    model: str,
    pipeline: Pipeline,
    answers: dict[Key, Answer],
    pictures: Sequence[LabelledPicture],
    evaluation: Evaluation,
) -> list[DriftExample]:
    """A few pictures' drift maps; none where nothing is compressed, or the model shows no features."""
    condition = example_condition(evaluation.protocols)
    try:
        explainer = Explainer(pipeline, load_features(model)) if condition else None
    except (BackboneError, NotExplainableError):  # the figures do without
        return []
    if explainer is None or condition is None:
        return []
    examples = []
    for picture in choose_examples(answers, pictures, condition):
        with suppress(InputError, OSError):  # answers may be older than what became of the file
            examples.append(drift_example(explainer, picture, condition, evaluation, pipeline.signature.labels))
    return examples
