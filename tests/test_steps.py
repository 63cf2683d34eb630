"""The pipeline in two steps gives the pipeline's answers."""

import json
from pathlib import Path

import pytest
import torch

from afd_serve.export import Deployed, deploy
from afd_serve.pipeline import Failure, Pipeline, Prediction
from afd_serve.preprocess import ClassifierInputs
from afd_serve.request import Options
from afd_serve.response import ModelInfo, failure_to_dict, prediction_to_dict
from afd_serve.steps import Answered, ClassifierStep, Finding, PreparedBatch, PreparingStep, make_answers
from tests.conftest import encoded, recompressed, scene

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


def prepared(deployed: Deployed, pictures: list[bytes], options: Options | None = None) -> PreparedBatch:
    return PreparingStep(deployed.signature.preprocessing).prepare(pictures, options or Options())


def answered(deployed: Deployed, batch: PreparedBatch, *, together: bool = False, top_k: int = 5) -> Answered:
    step = ClassifierStep(deployed, torch.device("cpu"), together=together)
    ((logits, drift),) = step.classify([batch.inputs])
    # Between the steps, findings are text.
    findings = [Finding.from_json(finding.to_json()) for finding in batch.findings]
    return make_answers(logits, drift, findings, labels=deployed.signature.labels, model=MODEL, top_k=top_k)


@pytest.mark.parametrize("options", [Options(), Options(afd=False, top_k=3), Options(crop=False, top_k=100)])
def test_the_steps_together_are_the_pipeline(deployed: Deployed, options: Options) -> None:
    top_k = min(options.top_k, len(deployed.signature.labels))
    expected = Pipeline(deployed).predict(PICTURES, afd=options.afd, crop=options.crop, top_k=top_k)
    assert answered(deployed, prepared(deployed, PICTURES, options), top_k=options.top_k).results == expected


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
