"""A whole fit of the tiny backbone: it learns, it resumes, it refuses what cannot work."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from afd_serve.checkpoint import load_afd
from afd_serve.config import FitConfig
from afd_serve.errors import BackboneError, CheckpointError, ConfigError
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.sharpness import Sharpness
from afd_serve.training import fit as fit_module
from afd_serve.training.data import CompressedPairs, Pair, Recipe
from afd_serve.training.fit import Trainer, _spread, fit, rate_share, training_sizes
from afd_serve.training.losses import FeatureLoss
from afd_serve.training.pictures import find_pictures
from tests import tiny_backbone


@pytest.fixture
def config(picture_folder: Callable[[int], Path], tmp_path: Path) -> FitConfig:
    return FitConfig(
        backbone=f"file:{tiny_backbone.__file__}",
        images=(picture_folder(4),),
        preset="full",
        out=tmp_path / "run",
        steps=24,
        batch_size=4,
        sizes=(64,),
        warmup_steps=2,
        workers=0,
        checkpoint_every=8,
        ema=0.8,
        learning_rate=0.002,
        bf16=False,
    )


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_fit_brings_the_loss_down_and_leaves_a_usable_run(config: FitConfig) -> None:
    fitted = replace(config, steps=240, learning_rate=5e-4)
    after = fit(fitted)
    still = replace(config, learning_rate=1e-9)  # the loss of what it starts from, both times on the same batches
    unfitted = fit(replace(still, out=config.out / "unfitted")).loss
    assert 0 < fit(replace(still, out=config.out / "more", init=str(config.out))).loss < 0.9 * unfitted
    assert after.remarks == ()
    assert FitConfig.from_json((config.out / "config.json").read_text()) == fitted
    assert len(losses(config.out)) == 12
    afd = load_afd(after.weights, load_backbone(config.backbone))
    assert drift(afd, config, 5) > 2 * drift(afd, config, 100) > 0


def test_the_sharpness_is_fitted_last(config: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def record(sharpness: Sharpness, logits: Tensor, descriptor: Tensor, clean: Tensor) -> None:
        shapes.append([tensor.shape[0] for tensor in (logits, descriptor, clean)])
        nn.init.constant_(sharpness.bias, 0.5)  # the tiny classifier is so unsure that a scale changes next to nothing

    monkeypatch.setattr(Sharpness, "fit", record)
    afd = load_afd(fit(replace(config, steps=1)).weights, load_backbone(config.backbone))
    ((logits, *others),) = shapes
    assert others == [logits, logits]
    assert logits > 100
    assert afd.sharpness.bias.item() == 0.5


@torch.inference_mode()
def drift(afd: AfdNet, config: FitConfig, quality: int) -> float:
    """The mean drift score of pictures that were compressed once."""
    recipe = Recipe(p_clean=0, p_mild=0, p_again=0, p_resave=0, p_other_codec=0, heavy=(quality,) * 2, only_open=False)
    settings = {"sizes": (64,), "batch_size": 16, "batches": 1, "seed": 5, "recipe": recipe}
    inputs = CompressedPairs(find_pictures(config.images), tiny_backbone.backbone().preprocessing, **settings)[0].inputs
    return float(afd.drift_score(afd.describe(*inputs[1:4])).mean())


@pytest.fixture
def trainer(config: FitConfig, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """One that has not trained yet."""
    monkeypatch.setattr(fit_module, "_CALIBRATION_BATCHES", 2)
    torch.manual_seed(0)
    return Trainer(replace(config, embedding_weight=2.5), tiny, find_pictures(config.images))


def test_distances_are_in_units_of_what_clean_pictures_vary_by(trainer: Trainer) -> None:
    clean = torch.cat([trainer.data[index].clean for index in range(2)])
    with torch.no_grad():
        _, *taps, embedding = trainer.teacher(trainer.normalize(clean))
    varying = embedding.var(dim=0, correction=0).mean()
    torch.testing.assert_close(trainer.loss.embedding_scale, 1 / varying, rtol=1e-3, atol=0)
    assert len(taps) == 3
    for index, tap in enumerate(taps):
        variance = tap.var(dim=(0, 2, 3), correction=0).clamp_min(1e-6)
        torch.testing.assert_close(
            trainer.loss.get_buffer(f"tap_scale_{index}").flatten(), 1 / variance, rtol=1e-3, atol=0
        )
    assert trainer.loss.embedding_weight == 2.5


def gradients(trainer: Trainer) -> Tensor:
    found = [parameter.grad for parameter in trainer.afd.parameters() if parameter.grad is not None]
    return torch.cat([gradient.flatten() for gradient in found])


def step_that_moves_nothing(trainer: Trainer, pair: Pair) -> None:
    trainer.step = trainer.config.steps  # the rate has come down to zero
    trainer._train_step(pair)


def test_a_steps_gradient_is_its_own_and_no_longer_than_one(trainer: Trainer) -> None:
    alone, other = trainer.data[2], trainer.data[3]
    step_that_moves_nothing(trainer, alone)
    expected = gradients(trainer)
    step_that_moves_nothing(trainer, other)
    step_that_moves_nothing(trainer, alone)
    torch.testing.assert_close(gradients(trainer), expected)
    trainer.loss.embedding_weight = 1e6
    step_that_moves_nothing(trainer, alone)
    assert gradients(trainer).norm() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("step", "share"), [(0, 0.9), (8, 0.5), (10**6, 0.2)])
def test_the_average_follows_quickly_at_first_and_slowly_later(trainer: Trainer, step: int, share: float) -> None:
    trainer.step = step
    with torch.no_grad():
        for mean, value in zip(trainer.average.parameters(), trainer.afd.parameters(), strict=True):
            mean.zero_()
            value.fill_(1.0)
    trainer._update_average()
    assert all(torch.allclose(mean, torch.tensor(share)) for mean in trainer.average.parameters())


def test_the_optimizer_is_as_the_settings_say(trainer: Trainer) -> None:
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (trainer.config.learning_rate, trainer.config.weight_decay)


def test_pictures_at_the_end_are_others_and_good_ones_are_among_them(trainer: Trainer) -> None:
    closing = trainer._closing_pairs()
    assert (closing.seed, closing.sizes, closing.recipe.only_open) == (trainer.config.seed + 1, (64,), False)
    assert (closing.recipe.p_turn, closing.recipe.p_mix, closing.recipe.p_colour) == (0, 0, 0)


def test_the_rate_is_warmed_up_and_comes_down_to_zero_as_half_a_cosine(config: FitConfig) -> None:
    hundred = replace(config, steps=100, warmup_steps=4)
    shares = [rate_share(done, hundred) for done in range(101)]
    assert shares[:2] == pytest.approx([0.25, 0.5], rel=1e-3)
    assert shares[25::25] == pytest.approx([0.85355, 0.5, 0.14645, 0], abs=1e-5)
    assert rate_share(0, replace(hundred, warmup_steps=0)) == 1, "without a warm-up the first step has the highest"


@pytest.mark.parametrize(
    ("count", "expected"), [(0, ""), (1, "a"), (2, "ab"), (3, "abc"), (5, "abcde"), (7, "acdfg"), (10, "bdfhj")]
)
def test_taps_are_spread_evenly_and_the_last_block_is_always_one(count: int, expected: str) -> None:
    assert "".join(_spread(tuple("abcdefghij"[:count]), 5)) == expected


def test_a_seed_decides_the_weights_that_a_fit_starts_from(config: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "_CALIBRATION_BATCHES", 1)
    monkeypatch.setattr(fit_module, "_CLOSING_BATCHES", 1)
    first, same, other = (
        load_file(fit(replace(config, out=config.out / name, seed=seed, steps=1, learning_rate=1e-9)).weights)
        for name, seed in (("first", 1), ("same", 1), ("other", 2))
    )
    weight = "fde.descriptor.0.weight"
    assert torch.equal(first[weight], same[weight])
    assert not torch.allclose(first[weight], other[weight])


def test_a_finished_run_that_is_run_again_reports_its_loss_and_that_nothing_was_left_to_do(config: FitConfig) -> None:
    config = replace(config, steps=2, learning_rate=1e-9)
    first, again = fit(config), fit(config)
    assert first.loss == pytest.approx(again.loss, abs=1e-5)
    assert first.remarks == ()
    assert again.remarks == (
        "all 2 steps were done before: the pictures were only used to estimate drift and sharpness",
    )


def test_what_is_remarked_of_a_backbone_is_told_with_the_fit(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = replace(load_backbone(config.backbone), remarks=("its crop is another",))
    monkeypatch.setattr(fit_module, "load_backbone", lambda _spec: backbone)
    assert fit(replace(config, steps=1, learning_rate=1e-9)).remarks[0] == "its crop is another"


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)], ids=["before", "after"])
@pytest.mark.parametrize("what", ["_train_step", "_update_average", "_bookkeeping"])
def test_a_run_that_is_interrupted_anywhere_resumes_to_the_same_weights(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch, what: str, first: bool, then: bool
) -> None:
    config = replace(config, checkpoint_every=5)
    straight = fit(replace(config, out=config.out / "straight"))
    whole = getattr(fit_module.Trainer, what)

    def interrupted(self: fit_module.Trainer, *pair: Pair) -> None:
        due = self.step == 13
        if due and first:
            raise KeyboardInterrupt
        whole(self, *pair)
        if due and then:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit_module.Trainer, what, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(config)
    resumed = fit(config)
    assert (resumed.loss, resumed.remarks) == (straight.loss, straight.remarks)
    expected, actual = load_file(straight.weights), load_file(resumed.weights)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_the_log_has_each_step_once_after_a_run_was_killed(config: FitConfig) -> None:
    config = replace(config, steps=60)
    straight = fit(replace(config, out=config.out / "straight"))
    config.out.joinpath("log.jsonl").write_text('{"step": 20, "loss": 1.0}\n{"step": 40, "lo')
    fit(config)
    log = (config.out / "log.jsonl").read_text()
    assert log == straight.weights.with_name("log.jsonl").read_text()


def test_damaged_settings_of_a_run_are_named(config: FitConfig) -> None:
    config.out.mkdir()
    for damage in (b'{"backbone"', b"[]", b"\xff", b"{}"):
        (config.out / "config.json").write_bytes(damage)
        with pytest.raises(ConfigError, match=r"run/config\.json: this is no fit configuration: .*; choose another"):
            fit(config)


def test_a_run_with_other_settings_is_not_resumed(config: FitConfig) -> None:
    fit(replace(config, steps=2))
    with pytest.raises(ConfigError, match=r"steps, seed"):
        fit(replace(config, steps=3, seed=9))


def test_a_run_that_goes_on_with_other_pictures_says_so(config: FitConfig) -> None:
    folder = config.images[0]
    (folder / "0.png").write_bytes(b"no picture")
    first = fit(config)
    assert any("1 of 4 pictures could not be read" in remark for remark in first.remarks)
    assert not any("other pictures" in remark for remark in fit(config).remarks)
    (folder / "0.png").unlink()
    remarks = fit(config).remarks
    assert remarks[0].startswith("the first 24 steps, or some of them, saw other pictures: --images or --exclude, ")
    assert not any("could not be read" in remark for remark in remarks)
    assert fit(config).remarks == remarks


def test_a_run_goes_on_with_other_workers_and_from_other_folders(config: FitConfig) -> None:
    moved = replace(config, out=config.out / "moved", images=(config.out,), exclude=(config.out,))
    assert replace(moved, workers=7, checkpoint_every=1).resumes(config) == []
    assert replace(moved, init="efficientnet-lite0", bf16=True).resumes(config) == ["bf16", "init"]


def test_a_fit_can_start_from_another_ones_weights(config: FitConfig) -> None:
    first = fit(config)
    next_run = replace(config, init=str(config.out), out=config.out / "next", steps=1, learning_rate=1e-9)
    started, ended = load_file(first.weights), load_file(fit(next_run).weights)
    for name in (name for name in started if not name.startswith(("drift.", "sharpness."))):
        torch.testing.assert_close(ended[name], started[name], atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="preset 'full'"):
        fit(replace(next_run, preset="lite", out=config.out / "lite"))


def test_an_fe_net_can_be_added_to_earlier_weights(config: FitConfig) -> None:
    first = fit(replace(config, preset="default"))
    added = replace(config, init=str(config.out), out=config.out / "full", steps=1, learning_rate=1e-9)
    started, ended = load_file(first.weights), load_file(fit(added).weights)
    for name in (name for name in started if not name.startswith(("drift.", "sharpness."))):
        torch.testing.assert_close(ended[name], started[name], atol=1e-6, rtol=0)
    assert any(name.startswith("enhancers.") for name in ended)


def test_a_damaged_state_is_refused(config: FitConfig) -> None:
    fit(replace(config, steps=2))
    (config.out / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="start afresh"):
        fit(replace(config, steps=2))


def test_a_run_is_not_resumed_for_other_weights_of_the_backbone(config: FitConfig, tmp_path: Path) -> None:
    source, text = tmp_path / "network.py", Path(tiny_backbone.__file__).read_text()
    config = replace(config, backbone=f"file:{source}", steps=2)
    source.write_text(text)
    fit(config)
    source.write_text(text.replace("manual_seed(5)", "manual_seed(17)"))
    with pytest.raises(CheckpointError, match=r"the backbone's weights changed; choose another folder .* or delete"):
        fit(config)


def test_a_backbone_with_other_weights_each_time_is_refused_before_it_is_fitted_to(
    config: FitConfig, tmp_path: Path
) -> None:
    source = tmp_path / "untrained.py"
    source.write_text(
        "from tests.tiny_backbone import *\n"
        "def untrained():\n"
        "    known = backbone()\n"
        "    return make_backbone(TinyNet(), known.preprocessing, known.labels, name='untrained', sites=SITES)\n"
        "SITES = Sites('stem', ('blocks.0', 'blocks.1'), 'classifier')\n"
    )
    with pytest.raises(BackboneError, match="untrained has other weights each time it is loaded"):
        fit(replace(config, backbone=f"file:{source}:untrained"))
    assert not config.out.exists()


def test_a_state_that_does_not_say_whose_it_is_is_refused(config: FitConfig) -> None:
    fit(replace(config, steps=2))
    state = config.out / "state.safetensors"
    save_file(load_file(state), state, {"step": "2"})
    with pytest.raises(CheckpointError, match="start afresh"):
        fit(replace(config, steps=2))


@pytest.mark.parametrize(
    "change",
    [
        {"preset": "huge"},
        {"steps": 0},
        {"batch_size": 1},
        {"sizes": (100,)},
        {"sizes": (0,)},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"seed": -1},
        {"seed": 2**64},
        {"sizes": ()},
        {"workers": -1},
        {"warmup_steps": -1},
        {"checkpoint_every": 0},
        {"ema": 1.0},
        {"ema": -0.1},
        {"ema": math.nan},
    ],
)
def test_impossible_settings_are_refused(config: FitConfig, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(config, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "expected"),
    [(224, (128, 128, 160, 224)), (240, (144, 144, 176, 240)), (64, (64,)), (299, (139, 139, 171, 235))],
)
def test_training_sizes_keep_the_backbones_padding(
    config: FitConfig, tiny: Backbone, size: int, expected: tuple[int, ...]
) -> None:
    backbone = replace(tiny, preprocessing=replace(tiny.preprocessing, size=size))
    assert training_sizes(replace(config, sizes=(128, 128, 160, 224)), backbone) == expected


@pytest.mark.parametrize(("size", "expected"), [(32, (32,)), (40, (40,)), (96, (64, 64, 96))])
def test_no_training_size_is_below_64_pixels_or_above_the_backbones(
    config: FitConfig, tiny: Backbone, size: int, expected: tuple[int, ...]
) -> None:
    backbone = replace(tiny, preprocessing=replace(tiny.preprocessing, size=size))
    assert training_sizes(replace(config, sizes=(32, 64, 96)), backbone) == expected


def test_distances_are_in_units_of_variance() -> None:
    torch.manual_seed(0)
    loss = FeatureLoss([torch.full((3,), 4.0)], torch.full((5,), 9.0), embedding_weight=2.0)
    taps, embedding = torch.randn(2, 3, 4, 4), torch.randn(2, 5)
    assert loss([taps, embedding], [taps, embedding]) == 0
    assert loss([taps + 2, embedding], [taps, embedding]) == pytest.approx(1.0)
    assert loss([taps, embedding + 3], [taps, embedding]) == pytest.approx(2.0)
    torch.testing.assert_close(loss.embedding_distance(embedding + 3, embedding), torch.ones(2))


def test_taps_share_a_weight_of_one_each_in_its_own_units() -> None:
    loss = FeatureLoss([torch.full((3,), 0.04), torch.full((4,), 9.0)], torch.ones(5), embedding_weight=0.0)
    shallow, deep, embedding = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 5)
    clean = [shallow, deep, embedding]
    assert loss([shallow + 0.2, deep, embedding], clean) == pytest.approx(0.5, rel=1e-4)
    assert loss([shallow + 0.2, deep + 3, embedding], clean) == pytest.approx(1.0, rel=1e-4)


def test_a_channel_that_never_varies_has_a_finite_distance() -> None:
    loss = FeatureLoss([torch.tensor([0.0, 1.0])], torch.ones(5), embedding_weight=1.0)
    taps, embedding = torch.zeros(2, 2, 4, 4), torch.zeros(2, 5)
    assert loss([taps, embedding], [taps, embedding]) == 0
