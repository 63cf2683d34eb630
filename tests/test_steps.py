"""The pipeline in two steps gives the pipeline's answers."""

import json
from pathlib import Path

import pytest
import torch

from afd_serve import budget
from afd_serve.export import Deployed, deploy
from afd_serve.mode import Mode
from afd_serve.pipeline import Failure, Pipeline, Prediction
from afd_serve.preprocess import ClassifierInputs
from afd_serve.response import ModelInfo, failure_to_dict, prediction_to_dict
from afd_serve.results import Shadow
from afd_serve.steps import Answered, ClassifierStep, Finding, PreparedBatch, PreparingStep, make_answers
from tests.conftest import encoded, recompressed, scene
from tests.jpeg_files import DQT, find_segment

MODEL = ModelInfo("afd_classify", "1")
PICTURES = [
    recompressed(scene(seed=1), 10),
    b"no picture",
    encoded(scene(130, 70, seed=2), quality=96),
    b"",
    encoded(scene(50, 90, seed=3), "PNG"),
    recompressed(scene(seed=4), 30)[:300],
]


@pytest.fixture(scope="module")
def deployed(tiny_run: Path) -> Deployed:
    return deploy(tiny_run)


def prepared(
    deployed: Deployed, pictures: list[bytes], mode: Mode = Mode.PROTECT, *, crop: bool = True
) -> PreparedBatch:
    return PreparingStep(deployed.signature.preprocessing).prepare(pictures, mode=mode, crop=crop)


def answered(deployed: Deployed, batch: PreparedBatch, *, together: bool = False, top_k: int = 5) -> Answered:
    step = ClassifierStep(deployed, torch.device("cpu"), together=together)
    # Between the steps, findings are text.
    batch = batch._replace(findings=[Finding.from_json(finding.to_json()) for finding in batch.findings])
    ((logits, drift),) = step.classify([batch.inputs])
    (shadows,) = step.shadow([batch], [logits])
    labels = deployed.signature.labels
    return make_answers(logits, drift, batch.findings, labels=labels, model=MODEL, top_k=top_k, shadows=shadows)


def shadows_of(results: list[Prediction | Failure]) -> list[Shadow | Failure | None]:
    return [result.shadow if isinstance(result, Prediction) else None for result in results]


@pytest.mark.parametrize(
    ("mode", "crop", "top_k"),
    [(Mode.PROTECT, True, 5), (Mode.OFF, True, 3), (Mode.SHADOW, True, 3), (Mode.PROTECT, False, 100)],
)
def test_the_steps_together_are_the_pipeline(deployed: Deployed, mode: Mode, crop: bool, top_k: int) -> None:
    most = min(top_k, len(deployed.signature.labels))
    expected = Pipeline(deployed).predict(PICTURES, afd=mode, crop=crop, top_k=most)
    results = answered(deployed, prepared(deployed, PICTURES, mode, crop=crop), top_k=top_k).results
    assert results == expected
    assert shadows_of(results) == shadows_of(expected)
    assert any(shadows_of(results)) is (mode is Mode.SHADOW)


def test_a_step_of_zero_in_a_table_makes_no_blank_row(deployed: Deployed) -> None:
    data = bytearray(PICTURES[0])
    data[find_segment(bytes(data), lambda marker: marker == DQT) + 5] = 0
    expected = Pipeline(deployed).predict([bytes(data)])
    assert isinstance(expected[0], Prediction)
    assert answered(deployed, prepared(deployed, [bytes(data)])).results == expected


def test_a_pass_for_all_shadows_of_several_requests_as_on_a_gpu(deployed: Deployed) -> None:
    parts, modes = (PICTURES[2::-1], PICTURES[2:3], PICTURES[3:]), (Mode.SHADOW, Mode.SHADOW, Mode.PROTECT)
    batches = [prepared(deployed, part, mode) for part, mode in zip(parts, modes, strict=True)]
    step = ClassifierStep(deployed, torch.device("cpu"), together=True)
    given = [logits for logits, _ in step.classify([batch.inputs for batch in batches])]
    first, good, protected = step.shadow(batches, given)
    (expected,) = shadows_of(Pipeline(deployed).predict(PICTURES[:1], afd=Mode.SHADOW))
    assert isinstance(expected, Shadow)
    *others, shadow = first
    assert isinstance(shadow, Shadow)
    assert shadow.disagrees is expected.disagrees
    assert shadow.confidence_change == pytest.approx(expected.confidence_change, abs=1e-4)
    assert [others, good, protected] == [[None, None], [None], [None] * 3]


def test_the_tensors_say_what_the_results_say(deployed: Deployed) -> None:
    answers = answered(deployed, prepared(deployed, PICTURES))
    assert answers.probabilities.shape == (6, 10)
    assert (answers.drift.shape, answers.estimated_quality.shape) == ((6, 1), (6, 1))
    assert answers.estimated_quality.dtype == torch.int32
    for index, result in enumerate(answers.results):
        body = json.loads(answers.bodies[index])
        if isinstance(result, Failure):
            assert answers.status[index] == result.code
            assert not answers.probabilities[index].any()
            assert not answers.drift[index].any()
            assert body == failure_to_dict(result)
        else:
            assert answers.status[index] == "ok"
            assert answers.probabilities[index, list(result.indices)].tolist() == list(result.probabilities)
            assert answers.drift[index].item() == result.drift
            assert answers.estimated_quality[index].item() == (result.estimated_quality or 0)
            assert body == prediction_to_dict(result, MODEL)


def test_a_failed_picture_has_a_blank_row_and_costs_no_pass(deployed: Deployed) -> None:
    batch = prepared(deployed, PICTURES)
    failed = [finding.failure is not None for finding in batch.findings]
    assert failed == [False, True, False, True, False, True]
    for tensor in batch.inputs:
        assert not tensor[failed].any()
    assert batch.inputs.quant_tables[[not is_failed for is_failed in failed]].all()
    nothing = prepared(deployed, [b"no picture", b"nor this"])
    assert [result.code for result in answered(deployed, nothing).results if isinstance(result, Failure)] == [
        "not_an_image",
        "not_an_image",
    ]


def test_a_pass_for_all_pictures_as_on_a_gpu(deployed: Deployed) -> None:
    """The path of a GPU on the CPU's tensors: close to one at a time, and each request gets its own rows."""
    batches = [prepared(deployed, PICTURES[:3]), prepared(deployed, PICTURES[3:]), prepared(deployed, PICTURES[:1])]
    inputs = [batch.inputs for batch in batches]
    one_by_one = ClassifierStep(deployed, torch.device("cpu"), together=False).classify(inputs)
    together = ClassifierStep(deployed, torch.device("cpu"), together=True).classify(inputs)
    for batch, ours, theirs in zip(batches, together, one_by_one, strict=True):
        good = [finding.failure is None for finding in batch.findings]
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our[good], their[good], rtol=1e-4, atol=1e-4)


def test_a_blank_row_in_a_pass_harms_nobody(deployed: Deployed) -> None:
    """What Triton's own PyTorch backend does: it knows nothing of blank rows."""
    batch = prepared(deployed, PICTURES)
    good = [finding.failure is None for finding in batch.findings]
    alone = ClassifierInputs(*(tensor[good] for tensor in batch.inputs))
    step = ClassifierStep(deployed, torch.device("cpu"), together=True)
    ((logits, _),) = step.classify([batch.inputs])
    ((expected, _),) = step.classify([alone])
    torch.testing.assert_close(logits[good], expected, rtol=1e-4, atol=1e-4)
    answers = answered(deployed, batch, together=True)
    assert [isinstance(result, Prediction) for result in answers.results] == good
    assert answers.probabilities.isfinite().all()


def test_a_request_has_a_budget_for_pictures_that_are_no_jpegs(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MAX_OTHER_PIXELS_PER_REQUEST", 50 * 90)
    png = PICTURES[4]
    batch = prepared(deployed, [png, PICTURES[0], png])
    codes = [finding.failure.code if finding.failure else None for finding in batch.findings]
    assert codes == [None, None, "crowded_out"]
    assert not batch.inputs.quant_tables[2].any()
    assert prepared(deployed, [png]).findings[0].failure is None
