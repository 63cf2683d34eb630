"""The one path: bytes in, predictions or failures out."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afd_serve.errors import CheckpointError, ConfigError
from afd_serve.export import export_classifier
from afd_serve.mode import Mode
from afd_serve.models.backbones import Backbone
from afd_serve.pipeline import Failure, Pipeline, Prediction, StageTimes
from afd_serve.preprocess import ClassifierInputs, prepare, stack
from afd_serve.results import Shadow
from afd_serve.sample import sample_picture
from tests.conftest import encoded, recompressed, scene
from tests.tiny_backbone import CLASSES, SIZE

GOOD = encoded(scene(90, 70), quality=95)
POOR = encoded(scene(90, 70), quality=10)


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> Pipeline:
    return Pipeline.load(tiny_run)


def predictions(results: list[Prediction | Failure]) -> list[Prediction]:
    return [result for result in results if isinstance(result, Prediction)]


def test_each_item_has_its_own_result_in_order(pipeline: Pipeline) -> None:
    results = pipeline.predict([POOR, b"", b"junk", GOOD, POOR[:-100], b"\xff\xd8\xff\xe0"])
    kinds = [result.code if isinstance(result, Failure) else "ok" for result in results]
    assert kinds == ["ok", "empty", "not_an_image", "ok", "truncated_jpeg", "truncated_jpeg"]
    assert all(result.reason for result in results if isinstance(result, Failure))


def test_an_answer_does_not_depend_on_its_neighbours(pipeline: Pipeline) -> None:
    items = [encoded(scene(seed=seed), quality=20) for seed in range(5)]
    together = pipeline.predict(items)
    assert together == [pipeline.predict([item])[0] for item in items]
    assert pipeline.predict([b"", *items, b"x"])[1:-1] == together


def test_a_prediction_is_complete(pipeline: Pipeline) -> None:
    (prediction,) = predictions(pipeline.predict([POOR], top_k=CLASSES))
    assert sorted(prediction.indices) == list(range(CLASSES))
    assert prediction.labels == tuple(f"class {index}" for index in prediction.indices)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    assert sum(prediction.probabilities) == pytest.approx(1.0)
    assert prediction.estimated_quality == 10
    assert prediction.drift >= 0
    assert prediction.protected


def test_a_classifier_of_few_classes_names_all_of_them(pipeline: Pipeline) -> None:
    assert pipeline.predict([POOR], top_k=CLASSES + 5) == pipeline.predict([POOR], top_k=CLASSES)


def test_good_pictures_and_unprotected_ones_get_the_bare_backbones_answer(tiny: Backbone, pipeline: Pipeline) -> None:
    def bare(data: bytes) -> list[float]:
        picture = prepare(data, tiny.preprocessing)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (tiny.preprocessing.mean, tiny.preprocessing.std))
        rgb = stack([picture], [False]).rgb
        probabilities: list[float] = tiny.module((rgb - mean) / std).softmax(dim=1)[0].tolist()
        return probabilities

    good, unprotected, protected = predictions(
        pipeline.predict([GOOD, POOR, POOR], afd=[True, False, True], top_k=CLASSES)
    )
    assert (good.protected, unprotected.protected, protected.protected) == (False, False, True)
    for prediction, data in ((good, GOOD), (unprotected, POOR)):
        expected = bare(data)
        assert prediction.probabilities == pytest.approx([expected[i] for i in prediction.indices], abs=1e-5)
    assert protected.probabilities != unprotected.probabilities
    assert predictions(pipeline.predict([GOOD], afd=False, top_k=CLASSES)) == [good]


def test_a_mode_may_be_given_by_its_name(pipeline: Pipeline) -> None:
    for name in ("protect", "off", "shadow"):
        expected = pipeline.predict([POOR] * 3, afd=Mode(name))
        assert pipeline.predict([POOR] * 3, afd=name) == pipeline.predict([POOR] * 3, afd=[name] * 3) == expected


@pytest.mark.parametrize("unknown", ["of", "", None, 2])
def test_what_is_no_mode_is_refused(unknown: Any, pipeline: Pipeline) -> None:
    for afd in (unknown, [unknown]):
        with pytest.raises(ConfigError, match=f"protect, off, shadow, True or False, not {unknown!r}"):
            pipeline.predict([POOR], afd=afd)


@pytest.fixture
def passes(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The gate of every pass through the model so far."""
    gates: list[float] = []
    logits = pipeline.logits

    def counted(inputs: ClassifierInputs) -> tuple[torch.Tensor, torch.Tensor]:
        gates.append(inputs.gate.item())
        return logits(inputs)

    monkeypatch.setattr(pipeline, "logits", counted)
    return gates


def test_warming_up_passes_through_the_gate_open_and_closed(pipeline: Pipeline, passes: list[float]) -> None:
    pipeline.warm_up(2)
    assert passes == [1, 0, 1, 0]


def test_shadow_answers_without_afd_and_compares(pipeline: Pipeline, passes: list[float]) -> None:
    bare, shadowed, protected = predictions(
        pipeline.predict([POOR] * 3, afd=[Mode.OFF, Mode.SHADOW, Mode.PROTECT], top_k=CLASSES)
    )
    assert passes == [0, 0, 1, 1]
    assert shadowed == bare
    assert shadowed.protected is False
    assert bare.shadow is protected.shadow is None
    assert isinstance(shadowed.shadow, Shadow)
    assert shadowed.shadow.disagrees is (protected.indices[0] != bare.indices[0])
    change = protected.probabilities[0] - bare.probabilities[0]
    assert shadowed.shadow.confidence_change == pytest.approx(change, abs=1e-6)
    assert change != 0


def test_shadow_costs_one_pass_where_the_gate_is_closed(pipeline: Pipeline, passes: list[float]) -> None:
    times = StageTimes()
    (shadowed,) = predictions(pipeline.predict([GOOD], afd=Mode.SHADOW, times=times))
    assert passes == [0]
    assert shadowed.shadow is None
    assert times.shadow == 0


def test_a_failing_shadow_pass_harms_no_answer(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = pipeline.predict([POOR], afd=Mode.OFF)
    logits = pipeline.logits

    def failing(inputs: ClassifierInputs) -> tuple[torch.Tensor, torch.Tensor]:
        if inputs.gate.any():
            raise RuntimeError("no memory for AFD")
        return logits(inputs)

    monkeypatch.setattr(pipeline, "logits", failing)
    shadowed = predictions(pipeline.predict([POOR], afd=Mode.SHADOW))
    assert shadowed == bare
    assert isinstance(shadowed[0].shadow, Failure)


def test_a_resaved_picture_is_protected_though_its_table_is_good(pipeline: Pipeline) -> None:
    (prediction,) = predictions(pipeline.predict([recompressed(scene(SIZE, SIZE), 10, 95)], crop=False))
    assert prediction.protected
    assert prediction.estimated_quality is not None
    assert prediction.estimated_quality < 20


def test_crop_false_takes_the_whole_picture(pipeline: Pipeline) -> None:
    picture = scene(SIZE, SIZE)
    whole = encoded(picture, "PNG")
    assert np.array_equal(pipeline.prepare(whole, crop=False).rgb, np.asarray(picture))
    assert pipeline.predict([whole], crop=False) != pipeline.predict([whole], crop=True)


def test_an_exported_folder_answers_as_the_run_does(pipeline: Pipeline, tiny_run: Path, tmp_path: Path) -> None:
    exported = Pipeline.load(export_classifier(tiny_run, tmp_path).folder)
    exported.warm_up(1)
    for ours, theirs in zip(
        predictions(exported.predict([GOOD, POOR])), predictions(pipeline.predict([GOOD, POOR])), strict=True
    ):
        assert ours.indices == theirs.indices
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-6)


def test_stage_times_add_up(pipeline: Pipeline) -> None:
    times = StageTimes()
    pipeline.predict([POOR], times=times)
    once = (times.preprocess, times.inference)
    pipeline.predict([POOR, b""], times=times)
    assert times.preprocess > once[0] > 0
    assert times.inference > once[1] > 0
    assert times.shadow == 0
    pipeline.predict([POOR], afd=Mode.SHADOW, times=times)
    assert times.shadow > 0


@pytest.mark.parametrize("arguments", [{"top_k": 0}, {"afd": [True]}])
def test_impossible_arguments_are_refused(pipeline: Pipeline, arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        pipeline.predict([GOOD, GOOD], **arguments)  # type: ignore[arg-type]


def test_loading_sets_torchs_threads_where_it_is_told_to(tiny_run: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        Pipeline.load(tiny_run, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


_FORKED = """
import multiprocessing, sys
from pathlib import Path
from afd_serve.pipeline import Pipeline

def classify(picture):
    return pipeline.predict([picture])[0].indices

pipeline = Pipeline.load(Path(sys.argv[1]), threads=2)
picture = sys.stdin.buffer.read()
expected = classify(picture)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(classify, [picture] * 3) == [expected] * 3)
"""


_FORKED_AT_WORK = """
import io, os, sys, threading
from PIL import Image
from afd_serve.preprocess import prepare
from afd_serve.transforms import Preprocessing

preprocessing = Preprocessing(64, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)
png = io.BytesIO()
Image.open(sys.stdin.buffer).resize((900, 900)).save(png, "PNG")
ended = threading.Event()

def work():
    while not ended.is_set():
        prepare(png.getvalue(), preprocessing)

workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers:
    worker.start()
for _ in range(8):
    child = os.fork()
    if child == 0:
        prepare(png.getvalue(), preprocessing)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
ended.set()
for worker in workers:
    worker.join()
print(True)
"""


@pytest.mark.parametrize("program", [_FORKED, _FORKED_AT_WORK], ids=["while nothing runs", "while threads decode"])
def test_forked_processes_classify_as_well(program: str, tiny_run: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", program, str(tiny_run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            out, _ = process.communicate(POOR, timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its own
            raise
    assert out == b"True\n"


def test_impossible_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Pipeline.load(tmp_path)
    with pytest.raises(ConfigError):
        Pipeline.load(tmp_path, threads=0)


def test_the_shipped_default_recognizes_the_sample() -> None:
    (prediction,) = predictions(Pipeline.load("efficientnet-lite0").predict([sample_picture()]))
    assert prediction.labels[0] == "wall clock"
    assert prediction.estimated_quality == 10
    assert prediction.protected
