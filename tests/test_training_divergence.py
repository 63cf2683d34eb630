"""Fits that go wrong: they say so, and leave no weights that look like a result."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from afd_serve.config import FitConfig
from afd_serve.errors import ConfigError
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone
from afd_serve.models.presets import preset_config
from afd_serve.training import fit as fit_module
from afd_serve.training.fit import Trainer, fit
from afd_serve.training.pictures import find_pictures
from tests import tiny_backbone


@pytest.fixture
def make(picture_folder: Callable[[int], Path], tmp_path: Path) -> Callable[..., FitConfig]:
    """Settings of a short fit at some rate."""
    pictures = picture_folder(4)

    def settings(learning_rate: float, steps: int = 24) -> FitConfig:
        return FitConfig(
            backbone=f"file:{tiny_backbone.__file__}",
            images=(pictures,),
            out=tmp_path / "run",
            preset="full",
            steps=steps,
            batch_size=4,
            sizes=(64,),
            learning_rate=learning_rate,
            warmup_steps=2,
            workers=0,
            bf16=False,
        )

    return settings


def test_a_fit_ends_at_the_first_loss_that_is_no_number_and_so_does_one_that_goes_on(
    make: Callable[..., FitConfig],
) -> None:
    config = make(1e6)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"diverged: the loss of step \d is (nan|inf)\.") as refused:
            fit(config)
        assert f"lower than 1e+06 and another --out, or delete {config.out}" in str(refused.value)
    assert sorted(path.name for path in config.out.iterdir()) == ["config.json", "state.safetensors"]


def test_a_fit_that_only_makes_it_worse_says_so(make: Callable[..., FitConfig]) -> None:
    (remark,) = fit(make(0.01)).remarks
    assert remark.startswith("AFD leaves features ")
    assert remark.endswith(
        " times as far from the clean ones as they are without it: it needs more steps or a lower --learning-rate"
    )


def test_singular_equations_have_no_drift_score(tiny: Backbone) -> None:
    afd = AfdNet(preset_config("default", tiny))
    afd.fit_drift(torch.full((8, afd.config.descriptor), 1e38), torch.ones(8))
    assert afd.drift.weight.isnan().all()


@pytest.mark.parametrize(
    ("part", "value", "complaint"),
    [
        ("adapters", 10.0, r"it leaves features \d.* times as far"),
        ("adapters", torch.nan, "it leaves features nan times as far"),
        ("fde.descriptor", torch.inf, "it leaves features"),
        ("fde.descriptor", 1e10, "no drift score and sharpness can be found for its drift descriptors"),
    ],
)
def test_weights_of_which_no_estimate_can_be_made_are_not_kept(
    make: Callable[..., FitConfig],
    tiny: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    value: float,
    complaint: str,
) -> None:
    monkeypatch.setattr(fit_module, "_CALIBRATION_BATCHES", 2)
    config = make(1e-9, steps=1)
    config.out.mkdir()
    trainer = Trainer(config, tiny, find_pictures(config.images))
    trainer.step = 1
    with torch.no_grad():
        for parameter in trainer.average.get_submodule(part).parameters():
            parameter.fill_(value)
    with pytest.raises(ConfigError, match=f"diverged: {complaint}"):
        trainer.run()
    assert not (config.out / "afd.safetensors").exists()
