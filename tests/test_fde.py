"""FDE-Net: the map and the descriptor."""

import torch

from afd_serve.models.fde import FREQUENCIES, STATISTICS, FdeNet, picture_statistics


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


def test_calibration_survives_inputs_that_never_vary() -> None:
    net = FdeNet(4, 4)
    net.calibrate(torch.zeros(10, FREQUENCIES), torch.ones(10, STATISTICS))
    assert net.describe(*inputs()).isfinite().all()
    assert net.map(inputs()[0]).isfinite().all()
