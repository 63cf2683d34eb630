"""Explanations on the wire: formats, failures, and that features are loaded when they are needed."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from afd_serve.errors import CheckpointError, NotExplainableError
from afd_serve.explain import Explainer
from afd_serve.explanations import ExplanationService, NotAcceptableError, preferred_format
from afd_serve.export import load_features
from afd_serve.overlay import render
from afd_serve.pipeline import Pipeline
from afd_serve.response import ModelInfo, prediction_from_dict
from afd_serve.service import Call
from tests.conftest import encoded, scene

GOOD = encoded(scene(90, 70), quality=95)
POOR = encoded(scene(90, 70), quality=10)
INFO = ModelInfo("afd", "1.0")


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> Pipeline:
    return Pipeline.load(tiny_run)


@pytest.fixture(scope="module")
def service(pipeline: Pipeline, tiny_run: Path) -> ExplanationService:
    return ExplanationService(pipeline, lambda: load_features(tiny_run), INFO)


def ask(service: ExplanationService, parts: dict[str, Any], **headers: str) -> tuple[int, str, Any]:
    """Status, content type, and the parsed body where it is JSON."""
    reply, _ = service.answer(Call(parts, headers))
    body = json.loads(reply.body) if reply.content_type == "application/json" else reply.body
    return reply.status.value, reply.content_type, body


def test_json_is_the_prediction_and_the_map(service: ExplanationService, pipeline: Pipeline) -> None:
    status, _, body = ask(service, {"body": POOR, "top_k": b"3"})
    assert status == 200
    assert [prediction_from_dict(body)] == pipeline.predict([POOR], top_k=3)
    assert body["model"] == INFO.to_dict()
    assert body["resaved"] is False
    grid = np.array(body["map"])
    assert grid.shape == (8, 8)
    assert (grid > 0).all()


def test_a_closed_gate_has_moved_nothing(service: ExplanationService) -> None:
    _, _, body = ask(service, {"body": GOOD})
    assert body["protected"] is False
    assert not np.array(body["map"]).any()


def test_png_is_the_drawing(service: ExplanationService, pipeline: Pipeline, tiny_run: Path) -> None:
    status, kind, body = ask(service, {"body": POOR}, Accept="image/png")
    assert (status, kind) == (200, "image/png")
    assert body == render(Explainer(pipeline, load_features(tiny_run)).explain(POOR))
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("parts", "headers", "kind"),
    [
        ({"body": POOR, "format": b"png"}, {"accept": "application/json"}, "image/png"),
        ({"body": POOR}, {"format": "PNG"}, "image/png"),
        ({"body": {"b64": base64.b64encode(POOR).decode(), "format": "png"}}, {}, "image/png"),
        ({"body": POOR, "format": b"json"}, {"Accept": "image/png"}, "application/json"),
    ],
)
def test_the_option_comes_before_the_header(
    service: ExplanationService, parts: dict[str, Any], headers: dict[str, str], kind: str
) -> None:
    assert ask(service, parts, **headers)[:2] == (200, kind)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "json"),
        ("", "json"),
        ("image/*", "png"),
        ("IMAGE/PNG", "png"),
        ("text/html, image/avif, image/webp, */*;q=0.8", "json"),
        ("application/json;q=0.2, image/png;q=0.9", "png"),
        ("application/json;q=0, */*", "png"),
        ("image/png;q=many, application/json;q=0.5", "png"),
    ],
)
def test_what_a_client_accepts(accept: str, form: str) -> None:
    assert preferred_format(accept) == form


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg, image/png;q=0", "*/*;q=0", ";;;"])
def test_what_no_format_suits(accept: str) -> None:
    with pytest.raises(NotAcceptableError):
        preferred_format(accept)


@pytest.mark.parametrize(
    ("parts", "headers", "status", "code"),
    [
        ({"body": b"no picture"}, {}, 415, "not_an_image"),
        ({"body": POOR[:300]}, {}, 400, "truncated_jpeg"),
        ({"body": b""}, {"Accept": "image/png"}, 400, "empty"),
        ({"body": {"b64": "?"}}, {}, 400, "bad_base64"),
        ({}, {}, 400, "bad_request"),
        ({"one": POOR, "two": POOR}, {}, 413, "too_many_pictures"),
        ({"body": POOR}, {"format": "gif"}, 400, "bad_option"),
        ({"body": POOR}, {"top_k": "0"}, 400, "bad_option"),
        ({"body": POOR}, {"afd": "off"}, 400, "bad_option"),
        ({"body": POOR}, {"Accept": "text/html"}, 406, "not_acceptable"),
    ],
)
def test_bad_requests_have_the_usual_failures(
    service: ExplanationService, parts: dict[str, Any], headers: dict[str, str], status: int, code: str
) -> None:
    said, kind, body = ask(service, parts, **headers)
    assert (said, kind, body["error"]["code"]) == (status, "application/json", code)


def test_features_are_loaded_once_and_not_before_they_are_needed(pipeline: Pipeline, tiny_run: Path) -> None:
    loaded: list[int] = []

    def load() -> nn.Module:
        loaded.append(1)
        return load_features(tiny_run)

    service = ExplanationService(pipeline, load, INFO)
    assert ask(service, {"body": POOR, "format": b"gif"})[0] == 400
    assert not loaded
    assert [ask(service, {"body": POOR})[0] for _ in range(2)] == [200, 200]
    assert loaded == [1]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(NotExplainableError("export again"), 501, "not_supported"), (CheckpointError("changed"), 500, "internal")],
)
def test_a_model_without_usable_features(pipeline: Pipeline, error: Exception, status: int, code: str) -> None:
    def load() -> nn.Module:
        raise error

    said, _, body = ask(ExplanationService(pipeline, load, INFO), {"body": POOR})
    assert (said, body["error"]["code"]) == (status, code)
    assert (str(error) in body["error"]["reason"]) is (code == "not_supported")


def test_samples(service: ExplanationService) -> None:
    for picture, expected in (
        (POOR, ("afd_explanations_total", ())),
        (b"", ("afd_explanation_failures_total", ("empty",))),
    ):
        _, (sample,) = service.answer(Call({"body": picture}, {}))
        assert (sample.metric.name, sample.labels, sample.value) == (*expected, 1)
