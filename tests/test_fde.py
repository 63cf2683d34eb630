"""FDE-Net: the map and the descriptor."""

import math

import pytest
import torch

from afd_serve import _jpeg
from afd_serve.models.fde import FREQUENCIES, STATISTICS, FdeNet, picture_statistics, statistics_of


def inputs(pictures: int = 2, grid: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    dequantized = torch.randint(-200, 200, (pictures, grid, grid, FREQUENCIES), dtype=torch.int16)
    return dequantized, torch.randint(1, 256, (pictures, 3, 64), dtype=torch.int32), torch.zeros(pictures, 3)


def test_the_map_has_one_vector_per_block() -> None:
    net = FdeNet(16, 8)
    dequantized, *_ = inputs()
    fdm = net.map(dequantized)
    assert fdm.shape == (2, 16, 5, 5)
    changed = dequantized.clone()
    changed[:, 2, 3] += 100
    where = (net.map(changed) != fdm).any(dim=1)
    assert where[:, 2, 3].all()
    assert where.sum() == 2


def test_statistics_see_magnitudes_tables_and_geometry_and_no_positions() -> None:
    dequantized, tables, geometry = inputs()
    statistics = picture_statistics(dequantized, tables, geometry)
    assert statistics.shape == (2, STATISTICS)
    assert torch.equal(picture_statistics(-dequantized, tables, geometry), statistics)
    torch.testing.assert_close(picture_statistics(dequantized.flip(1), tables, geometry), statistics)
    assert not torch.equal(picture_statistics(dequantized, tables + 1, geometry), statistics)
    assert not torch.equal(picture_statistics(dequantized, tables, geometry + 1), statistics)


def test_statistics_of_extreme_values_are_finite() -> None:
    dequantized = torch.full((1, 2, 2, FREQUENCIES), -32768, dtype=torch.int16)
    tables = torch.full((1, 3, 64), 65535, dtype=torch.int32)
    assert picture_statistics(dequantized, tables, torch.zeros(1, 3)).isfinite().all()
    assert picture_statistics(torch.zeros_like(dequantized), tables, torch.zeros(1, 3)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_statistics_are_log_magnitudes_log_steps_and_the_geometry(dtype: torch.dtype) -> None:
    dequantized = torch.zeros(1, 2, 2, FREQUENCIES, dtype=dtype)
    dequantized[0, 0, 1, 5] = -8
    tables = torch.full((1, 3, 64), 16, dtype=torch.int32)
    tables[0, 1, 2] = 1
    before = dequantized.clone()
    magnitudes, steps, geometry = picture_statistics(dequantized, tables, torch.tensor([[2.0, 1.0, 0.0]]))[0].split(
        (FREQUENCIES, FREQUENCIES, 3)
    )
    expected_magnitudes, expected_steps = torch.full((FREQUENCIES,), math.log(1e-3)), torch.zeros(FREQUENCIES)
    expected_magnitudes[5], expected_steps[64 + 2] = math.log(2 + 1e-3), -1.0
    torch.testing.assert_close(magnitudes, expected_magnitudes)
    torch.testing.assert_close(steps, expected_steps)
    assert geometry.tolist() == [2.0, 1.0, 0.0]
    assert torch.equal(dequantized, before)


def test_statistics_are_those_of_the_mean_magnitudes() -> None:
    dequantized, tables, geometry = inputs()
    magnitudes = torch.from_numpy(_jpeg.mean_magnitudes(dequantized.numpy()))
    expected = picture_statistics(dequantized, tables, geometry)
    torch.testing.assert_close(statistics_of(magnitudes, tables, geometry), expected)


def test_what_is_far_from_all_that_calibration_saw_counts_as_four_deviations() -> None:
    torch.manual_seed(1)
    net = FdeNet(16, 8)
    cells, statistics = 30 * torch.randn(50, FREQUENCIES), 10 + 2 * torch.randn(50, STATISTICS)
    net.calibrate(cells, statistics)
    dequantized, tables, _ = inputs()
    mean, std = statistics.mean(dim=0)[-3:], statistics.std(dim=0)[-3:]

    def described(deviations: float) -> torch.Tensor:
        return net.describe(dequantized, tables, (mean + deviations * std).expand(2, 3))

    def mapped(deviations: float) -> torch.Tensor:
        return net.map((deviations * cells.std(dim=0)).expand(1, 1, 1, FREQUENCIES))

    for seen in (described, mapped):
        for sign in (-1, 1):
            torch.testing.assert_close(seen(sign * 9), seen(sign * 4))
            assert not torch.allclose(seen(sign * 3), seen(sign * 4))


def test_a_net_without_a_map_gives_one_without_channels() -> None:
    fdm = FdeNet(0, 8).map(inputs()[0])
    assert (fdm.shape, fdm.dtype) == ((2, 0, 5, 5), torch.float32)


def test_calibration_survives_inputs_that_never_vary() -> None:
    net = FdeNet(4, 4)
    net.calibrate(torch.zeros(10, FREQUENCIES), torch.ones(10, STATISTICS))
    assert net.describe(*inputs()).isfinite().all()
    assert net.map(inputs()[0]).isfinite().all()
