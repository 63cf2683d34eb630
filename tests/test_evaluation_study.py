"""`afd_serve.evaluation.study`: one evaluation at a time in a folder, and none that can only fail at its end."""

from pathlib import Path

import pytest

from afd_serve.checkpoint import save_afd
from afd_serve.errors import BackboneError, ConfigError
from afd_serve.evaluation.runner import RESULTS_FILE
from afd_serve.evaluation.study import Study, run_study
from afd_serve.export import export_classifier
from afd_serve.models.backbones import load_backbone
from afd_serve.runs import alone_in
from tests import tiny_backbone
from tests.conftest import awakened, scene


def test_a_folder_in_which_another_process_is_at_work_is_left_alone(tmp_path: Path) -> None:
    study = Study(model="efficientnet-lite0", images=tmp_path, out=tmp_path / "out", protocols=("clean",))
    with alone_in(study.out), pytest.raises(ConfigError, match="another run is at work"):
        run_study(study, fresh=True)
    assert not list(study.out.iterdir())


def test_a_latency_that_cannot_be_measured_is_refused_before_anything_is_classified(tmp_path: Path) -> None:
    source = tmp_path / "network.py"
    source.write_bytes(Path(tiny_backbone.__file__).read_bytes())
    save_afd(awakened(load_backbone(f"file:{source}")), tmp_path / "run" / "afd.safetensors")
    exported = export_classifier(tmp_path / "run", tmp_path / "exported").folder
    source.unlink()
    (tmp_path / "labelled" / "0").mkdir(parents=True)
    scene().save(tmp_path / "labelled" / "0" / "picture.png")
    study = Study(str(exported), tmp_path / "labelled", tmp_path / "out", ("clean",), latency_rounds=1)
    with pytest.raises(BackboneError, match=r"latency .* bare backbone's, .*: there is no Python file .*network\.py"):
        run_study(study)
    assert not (study.out / RESULTS_FILE).exists()
