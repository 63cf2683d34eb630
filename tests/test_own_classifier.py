"""docs/own_classifier.md, run as it stands: from a classifier that the project does not know to its servers."""

import io
import json
import re
import runpy
import shlex
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afd_serve.cli import main
from afd_serve.models.backbones import load_backbone
from afd_serve.models.classifier import Normalize
from afd_serve.pipeline import Pipeline, Prediction
from tests.conftest import encoded

GUIDE = (Path(__file__).parents[1] / "docs" / "own_classifier.md").read_text()


def files() -> dict[str, str]:
    """The guide's Python files by name."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    return {block.splitlines()[0].removeprefix("# "): block for block in blocks}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which a reader has followed the guide."""
    folder = tmp_path_factory.mktemp("guide")
    for name, text in files().items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands():
            if words[0] == "python":
                with pytest.MonkeyPatch.context() as path:
                    path.syspath_prepend(folder)  # as the interpreter does for a script, but not for `afd-serve`
                    runpy.run_path(words[1])
                sys.modules.pop("my_classifier")
            else:
                run(words[1:])
        yield folder


def run(arguments: list[str]) -> None:
    if arguments[0] == "fit":
        arguments = [*arguments, "--workers", "0"]  # a process of its own takes seconds to start
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code, arguments


def test_afd_wins_back_a_share_of_what_compression_took(guide: Path) -> None:
    assert len(list((guide / "my_pictures").iterdir())) == 100
    report = json.loads((guide / "reports" / "mine" / "report.json").read_text())
    clean, compressed = report["protocols"]
    assert clean["bare"]["value"] > 0.85
    assert clean["afd"]["value"] == clean["bare"]["value"]
    assert compressed["bare"]["value"] < clean["bare"]["value"] - 0.08
    assert compressed["recovered"]["value"] > 0.1
    assert compressed["gain"]["low"] > 0


def test_good_pictures_get_the_bare_classifiers_logits(guide: Path) -> None:
    backbone = load_backbone("file:my_classifier.py")
    normalize, pipeline = Normalize(backbone.preprocessing), Pipeline.load(guide / "exported" / "mine")
    pictures = sorted((guide / "labelled").glob("*/*.png"))[:20]
    for path in pictures:
        with Image.open(path) as picture:
            data = encoded(picture, quality=95)
        with_afd, without = pipeline.predict([data, data], top_k=10, afd=[True, False])
        assert isinstance(with_afd, Prediction)
        assert not with_afd.protected
        assert with_afd == without
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)[None]
        with torch.inference_mode():
            probabilities = backbone.module(normalize(pixels))[0].softmax(dim=0)
        expected = probabilities[list(with_afd.indices)]
        torch.testing.assert_close(torch.tensor(with_afd.probabilities), expected, atol=1e-5, rtol=1e-5)


def test_the_exported_folder_answers_without_the_users_file(guide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (guide / "my_classifier.py").rename(guide / "moved.py")
    try:
        runpy.run_path("use_it.py")
    finally:
        (guide / "moved.py").rename(guide / "my_classifier.py")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("digit ") and line.endswith("False") for line in lines)


def test_the_packages_hold_the_classifier(guide: Path) -> None:
    with zipfile.ZipFile(guide / "model_store" / "afd.mar") as archive:
        assert {"model.pt", "signature.json", "afd_handler.py"} <= set(archive.namelist())
    assert list((guide / "model_repository").rglob("config.pbtxt"))
    assert list((guide / "model_repository").rglob("model.pt"))
