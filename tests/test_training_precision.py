"""Fitting computes in bfloat16 only where the processor has it."""

import pytest
import torch

from afd_serve.training.precision import autocast_to_bfloat16


@pytest.mark.parametrize(
    ("wanted", "supported", "dtype"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_a_convolution_is_in_bfloat16_if_wanted_and_supported(
    wanted: bool, supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    conv = torch.nn.Conv2d(3, 4, 3)
    with autocast_to_bfloat16(wanted):
        assert conv(torch.rand(1, 3, 8, 8)).dtype == dtype
