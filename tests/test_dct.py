"""The transform, against its definition and its own inverses."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch.autograd import gradcheck

from afd_serve import dct, jpeg
from tests.conftest import encoded, scene

SEEDS = st.integers(0, 2**31)


def test_zigzag_begins_and_ends_as_in_the_standard() -> None:
    assert dct.ZIGZAG_TO_NATURAL[:12] == (0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25)
    assert dct.ZIGZAG_TO_NATURAL[-4:] == (47, 55, 62, 63)
    assert sorted(dct.ZIGZAG_TO_NATURAL) == list(range(64))


def test_dct_matrix_is_orthonormal() -> None:
    matrix = dct.dct_matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8, dtype=torch.float64))


@given(SEEDS)
def test_inverse_undoes_forward(seed: int) -> None:
    samples = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(dct.block_idct(dct.block_dct(samples)), samples)


def test_a_flat_block_has_only_dc() -> None:
    coefficients = dct.block_dct(torch.full((8, 8), 5.0, dtype=torch.float64))
    assert coefficients[0, 0] == pytest.approx(40.0)
    assert coefficients.flatten()[1:].abs().max() < 1e-12


def test_rows_are_vertical_frequencies() -> None:
    ramp = torch.arange(8, dtype=torch.float64).unsqueeze(1).expand(8, 8)
    coefficients = dct.block_dct(ramp)
    assert coefficients[1, 0].abs() > 10
    assert coefficients[:, 1:].abs().max() < 1e-12


def test_the_transform_is_differentiable() -> None:
    samples = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(dct.block_dct, (samples,))


def test_unblockify_undoes_blockify() -> None:
    plane = torch.arange(2 * 16 * 24).reshape(2, 16, 24)
    blocks = dct.blockify(plane)
    assert blocks.shape == (2, 2, 3, 8, 8)
    assert torch.equal(blocks[1, 1, 2], plane[1, 8:16, 16:24])
    assert torch.equal(dct.unblockify(blocks), plane)


@pytest.mark.parametrize(("width", "height"), [(12, 8), (8, 12)])
def test_blockify_refuses_parts_of_blocks(width: int, height: int) -> None:
    with pytest.raises(ValueError, match=f"{width}x{height}"):
        dct.blockify(torch.zeros(height, width))


@given(SEEDS)
def test_colour_conversion_has_an_inverse(seed: int) -> None:
    rgb = 255 * torch.rand(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(dct.ycbcr_to_rgb(dct.rgb_to_ycbcr(rgb)), rgb)


def test_colour_conversion_is_jfifs() -> None:
    picture = scene()
    ours = dct.rgb_to_ycbcr(torch.from_numpy(np.array(picture)).permute(2, 0, 1).double())
    theirs = torch.from_numpy(np.array(picture.convert("YCbCr"))).permute(2, 0, 1)
    assert (ours.round() - theirs).abs().max() <= 1


def test_dequantized_blocks_give_the_decoders_pixels() -> None:
    image = jpeg.read(encoded(scene(64, 48).convert("L"), quality=60), pixels=True)
    component = image.components[0]
    dequantized = torch.from_numpy(dct.dequantize(component.coefficients, component.quant_table)).double()
    pixels = dct.unblockify(dct.block_idct(dequantized)) + dct.LEVEL_SHIFT
    assert image.pixels is not None
    assert (pixels.round().clamp(0, 255) - torch.from_numpy(image.pixels[:, :, 0])).abs().max() <= 1


def test_dequantize_saturates() -> None:
    huge = np.full((1, 8, 8), 2000, np.int16)
    assert (dct.dequantize(huge, np.full((8, 8), 60000, np.uint16)) == 32767).all()
    assert (dct.dequantize(-huge, np.full((8, 8), 60000, np.uint16)) == -32768).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orienting_blocks_is_orienting_pixels(orientation: int) -> None:
    plane = np.asarray(scene(24, 16).convert("L"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(io.BytesIO(encoded(Image.fromarray(plane), "PNG", exif=exif))) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    blocks = dct.block_dct(dct.blockify(torch.from_numpy(plane.astype(np.float64)))).numpy()
    turned = torch.from_numpy(dct.orient_blocks(blocks, orientation).copy())
    np.testing.assert_allclose(dct.unblockify(dct.block_idct(turned)).numpy(), upright, atol=1e-9)
