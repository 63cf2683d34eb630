"""An application's default type and autocast change no answer, and are as they were afterwards."""

from pathlib import Path

import pytest
import torch

from afd_serve.explain import Explainer
from afd_serve.pipeline import Pipeline
from tests.conftest import encoded, scene

PICTURES = [encoded(scene(), quality=quality) for quality in (10, 95)]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_classifier_is_loaded_whatever_the_default_type_is(tiny_run: Path, kind: torch.dtype) -> None:
    expected = Pipeline.load(tiny_run).predict(PICTURES)
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        explainer = Explainer.load(tiny_run)
        assert explainer.pipeline.predict(PICTURES) == expected
        assert explainer.explain(PICTURES[0]).prediction == expected[0]
        assert torch.get_default_dtype() is kind
    finally:
        torch.set_default_dtype(before)


def test_answers_and_maps_are_the_same_under_autocast(tiny_run: Path) -> None:
    explainer = Explainer.load(tiny_run)
    expected, map_ = explainer.pipeline.predict(PICTURES), explainer.explain(PICTURES[0]).map
    with torch.autocast("cpu", torch.bfloat16):
        assert explainer.pipeline.predict(PICTURES) == expected
        assert (explainer.explain(PICTURES[0]).map == map_).all()
        assert Pipeline.load(tiny_run).predict(PICTURES) == expected
        assert torch.is_autocast_enabled("cpu")
