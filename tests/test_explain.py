"""The drift map: what it is, and that it tells the truth about the gate."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afd_serve.checkpoint import save_afd
from afd_serve.config import PRESETS
from afd_serve.errors import CheckpointError, NotAnImageError, NotExplainableError
from afd_serve.explain import Explainer, Explanation, relative_distance
from afd_serve.export import export_classifier
from afd_serve.exported import FEATURES_NAME
from afd_serve.models.backbones import Backbone, make_backbone
from afd_serve.models.classifier import map_site
from afd_serve.models.discovery import Sites
from afd_serve.overlay import heat, render
from afd_serve.pipeline import Pipeline, Prediction
from afd_serve.preprocess import stack
from afd_serve.signature import SIGNATURE_NAME
from tests.conftest import awakened, encoded, recompressed, scene
from tests.tiny_backbone import SIZE

GOOD = encoded(scene(90, 70), quality=95)
POOR = encoded(scene(90, 70), quality=10)
RESAVED = recompressed(scene(SIZE, SIZE), 10, 95)


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_classifier(tiny_run, tmp_path_factory.mktemp("exported")).folder


@pytest.fixture(scope="module", params=["fitted", "exported"])
def explainer(request: pytest.FixtureRequest, tiny_run: Path, exported: Path) -> Explainer:
    return Explainer.load(tiny_run if request.param == "fitted" else exported)


def test_the_map_lies_on_the_block_grid(explainer: Explainer) -> None:
    found = explainer.explain(POOR)
    assert (found.map.shape, found.map.dtype) == ((SIZE // 8, SIZE // 8), np.float32)
    assert (found.map > 0).all()
    assert found.rgb.shape == (SIZE, SIZE, 3)


def test_it_is_the_relative_distance_of_the_two_trunks_features(explainer: Explainer) -> None:
    picture = explainer.pipeline.prepare(POOR)
    bare, protected = (explainer.features(picture, protected=on) for on in (False, True))
    expected = (protected - bare).norm(dim=0) / bare.norm(dim=0)
    torch.testing.assert_close(torch.from_numpy(explainer.explain(POOR).map), expected, rtol=1e-4, atol=1e-5)


def test_the_bare_features_are_the_backbones(tiny: Backbone, explainer: Explainer) -> None:
    picture = explainer.pipeline.prepare(GOOD)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (tiny.preprocessing.mean, tiny.preprocessing.std))
    x = (stack([picture], [False]).rgb - mean) / std
    blocks, stem = (tiny.module.get_submodule(name) for name in ("blocks", "stem"))
    torch.testing.assert_close(explainer.features(picture, protected=False), blocks(stem(x))[0])


def test_a_good_picture_has_not_drifted(explainer: Explainer) -> None:
    found = explainer.explain(GOOD)
    assert not found.prediction.protected
    assert not found.map.any()
    assert "gate closed" in found.lines()[1]


def test_it_tells_the_quality_and_that_there_was_an_earlier_compression(explainer: Explainer) -> None:
    once, again = explainer.explain(POOR), explainer.explain(RESAVED, crop=False)
    assert (once.prediction.estimated_quality, once.resaved, once.prediction.protected) == (10, False, True)
    assert "estimated quality 10; no earlier compression found" in once.lines()
    assert (again.resaved, again.prediction.protected) == (True, True)
    assert again.prediction.estimated_quality is not None
    assert again.prediction.estimated_quality < 20
    assert "at least one earlier compression" in again.lines()[0]


def test_a_picture_without_tables_says_so(explainer: Explainer) -> None:
    found = explainer.explain(encoded(scene(), "PNG"))
    assert (found.prediction.estimated_quality, found.prediction.protected) == (None, False)
    assert found.lines()[0].startswith("no quantization tables")


@pytest.mark.parametrize("data", [GOOD, POOR])
def test_the_prediction_is_the_pipelines(explainer: Explainer, exported: Path, data: bytes) -> None:
    assert [explainer.explain(data, top_k=3).prediction] == Pipeline.load(exported).predict([data], top_k=3)


def test_an_exported_model_and_its_run_show_the_same_map(tiny_run: Path, exported: Path) -> None:
    fitted, deployed = (Explainer.load(source).explain(POOR).map for source in (tiny_run, exported))
    np.testing.assert_allclose(deployed, fitted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_map(tiny: Backbone, tmp_path: Path, preset: str) -> None:
    save_afd(awakened(tiny, preset), tmp_path / "afd.safetensors")
    found = Explainer.load(tmp_path).explain(POOR)
    assert found.map.shape == (8, 8)
    assert (found.map > 0).any()


def test_the_site_is_the_last_block_nearest_to_stride_8(tiny: Backbone) -> None:
    assert map_site(tiny) == "blocks.2"
    for blocks, expected in ((("blocks.0",), "blocks.0"), (("blocks.0", "blocks.1"), "blocks.1"), ((), "stem")):
        sites = Sites("stem", blocks, "classifier")
        backbone = make_backbone(tiny.module, tiny.preprocessing, tiny.labels, name=tiny.name, sites=sites)
        assert map_site(backbone) == expected


def test_relative_distance_survives_cells_without_features() -> None:
    reference = torch.ones(4, 3, 3)
    reference[:, 0, 0] = 0
    distance = relative_distance(reference + 0.1, reference)
    assert distance[1, 1] == pytest.approx(0.1)
    assert distance[0, 0] == pytest.approx(0.1 / (0.1 * 8 / 9))
    assert not relative_distance(reference, reference).any()
    assert torch.isfinite(relative_distance(torch.ones(2, 2, 2), torch.zeros(2, 2, 2))).all()


def test_what_is_no_picture_is_refused(explainer: Explainer) -> None:
    with pytest.raises(NotAnImageError):
        explainer.explain(b"no picture")


def test_a_model_that_was_exported_without_features_says_what_to_do(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "old"))
    values = json.loads((folder / SIGNATURE_NAME).read_text())
    del values["features_sha256"], values["signature_sha256"]
    (folder / SIGNATURE_NAME).write_text(json.dumps(values))
    assert isinstance(Pipeline.load(folder).predict([POOR])[0], Prediction)
    with pytest.raises(NotExplainableError, match="export the fitted run again"):
        Explainer.load(folder)


@pytest.mark.parametrize("content", [None, b"other features"])
def test_features_that_are_not_the_exported_ones_are_refused(
    exported: Path, tmp_path: Path, content: bytes | None
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "changed"))
    (folder / FEATURES_NAME).unlink()
    if content:
        (folder / FEATURES_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match=FEATURES_NAME):
        Explainer.load(folder)


def drawn(explanation: Explanation, top: float | None = None) -> np.ndarray:
    with Image.open(io.BytesIO(render(explanation, top=top))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_drawing_shows_the_crop_and_a_map_for_an_open_gate_only(explainer: Explainer) -> None:
    for data, colourful in ((POOR, True), (GOOD, False)):
        found = explainer.explain(data)
        picture = drawn(found)
        crop = Image.fromarray(found.rgb).resize((384, 384), Image.Resampling.BICUBIC)
        assert np.array_equal(picture[12:396, 12:396], np.asarray(crop))
        assert bool(np.ptp(picture[12:396, 408:792], axis=2).any()) is colourful


def test_the_scale_of_the_drawing_can_be_fixed(explainer: Explainer) -> None:
    found = explainer.explain(POOR)
    dark, bright = (drawn(found, top)[12:396, 408:792].mean() for top in (100.0, float(found.map.min())))
    assert dark < bright


def test_heat_rises_from_dark_to_bright() -> None:
    colours = heat(np.linspace(-0.5, 1.5, 50, dtype=np.float32))
    assert colours.shape == (50, 3)
    brightness = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) >= -1).all()
    assert brightness[0] < 10
    assert brightness[-1] > 230
