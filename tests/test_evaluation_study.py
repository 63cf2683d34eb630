"""`afd_serve.evaluation.study`: one evaluation at a time in a folder."""

from pathlib import Path

import pytest

from afd_serve.errors import ConfigError
from afd_serve.evaluation.study import Study, run_study
from afd_serve.runs import alone_in


def test_a_folder_in_which_another_process_is_at_work_is_left_alone(tmp_path: Path) -> None:
    study = Study(model="efficientnet-lite0", images=tmp_path, out=tmp_path / "out", protocols=("clean",))
    with alone_in(study.out), pytest.raises(ConfigError, match="another run is at work"):
        run_study(study, fresh=True)
    assert not list(study.out.iterdir())
