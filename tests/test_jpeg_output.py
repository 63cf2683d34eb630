"""Decoding into memory of the caller's, and handing results to others without a copy."""

import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from afd_serve import _jpeg, jpeg
from afd_serve.errors import CorruptJpegError, OutputTooSmallError
from tests.jpeg_files import ARITHMETIC, DATA, YCC_420, GeneratedJpeg, after_soi, exif_segment, make_jpeg, pillow_jpeg

PADDED = (6 * 4 + 2 * 3 * 2) * 64  # coefficients of 40x24 pixels at 4:2:0: 5x3 blocks of luma are padded to 6x4


def made(process: Any = "baseline", seed: int = 0) -> GeneratedJpeg:
    return make_jpeg(40, 24, YCC_420, process=process, seed=seed)


def output(coefficients: int = PADDED, samples: int = 40 * 24 * 3) -> jpeg.JpegOutput:
    """Memory that holds something else already."""
    return jpeg.JpegOutput(coefficients=np.full(coefficients, 77, np.int16), pixels=np.full(samples, 77, np.uint8))


def addresses(image: jpeg.JpegImage) -> Iterator[int]:
    yield from (component.coefficients.ctypes.data for component in image.components)
    if image.pixels is not None:
        yield image.pixels.ctypes.data


def assert_equal(left: jpeg.JpegImage, right: jpeg.JpegImage) -> None:
    for mine, other in zip(left.components, right.components, strict=True):
        np.testing.assert_array_equal(mine.coefficients, other.coefficients)
        np.testing.assert_array_equal(mine.quant_table, other.quant_table)
    np.testing.assert_array_equal(left.pixels, right.pixels)
    assert left.warnings == right.warnings


class TestRead:
    @pytest.mark.parametrize("process", ["baseline", "extended", "progressive"])
    def test_results_are_views_of_the_callers_memory(self, process: Any) -> None:
        data = made(process).data
        out = output()
        image = jpeg.read(data, pixels=True, out=out)
        assert_equal(image, jpeg.read(data, pixels=True))
        luma, blue, red, pixels = addresses(image)
        assert isinstance(out.coefficients, np.ndarray)
        assert isinstance(out.pixels, np.ndarray)
        assert luma == out.coefficients.ctypes.data
        assert (blue - luma, red - blue) == (6 * 4 * 128, 2 * 3 * 128)
        assert pixels == out.pixels.ctypes.data
        assert image.components[0].coefficients.strides == (6 * 128, 128, 16, 2)

    def test_memory_is_used_again_whatever_it_holds(self) -> None:
        out = output()
        for process in ("baseline", "progressive", "baseline"):
            for seed in range(4):
                data = made(process, seed).data
                assert_equal(jpeg.read(data, pixels=True, out=out), jpeg.read(data, pixels=True))
                small = pillow_jpeg(16, 8, "L", seed)
                assert_equal(jpeg.read(small, pixels=True, out=out), jpeg.read(small, pixels=True))

    @pytest.mark.parametrize("name", ARITHMETIC)
    def test_arithmetic_files(self, name: str) -> None:
        data = (DATA / name).read_bytes()
        image = jpeg.read(data, pixels=True, out=output(coefficients=10_000, samples=10_000))
        assert_equal(image, jpeg.read(data, pixels=True))

    def test_what_is_missing_is_zero(self) -> None:
        data = made("progressive").data
        for length in range(data.index(b"\xff\xda") + 20, len(data), 50):
            image = jpeg.read(data[:length], tolerant=True, pixels=True, out=output())
            assert_equal(image, jpeg.read(data[:length], tolerant=True, pixels=True))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_pixels_are_turned_into_it(self, orientation: int) -> None:
        data = after_soi(made().data, exif_segment(orientation))
        out = output()
        image = jpeg.read(data, pixels=True, apply_orientation=True, out=out)
        assert_equal(image, jpeg.read(data, pixels=True, apply_orientation=True))
        assert image.pixels is not None
        assert np.shares_memory(image.pixels, out.pixels)

    def test_any_shape_and_either_part_alone(self) -> None:
        data = made().data
        coefficients = np.empty((36, 8, 8), np.int16)
        image = jpeg.read(data, pixels=True, out=jpeg.JpegOutput(coefficients=coefficients))
        assert np.shares_memory(image.components[2].coefficients, coefficients)
        pixels = np.empty((24, 40, 3), np.uint8)
        image = jpeg.read(data, pixels=True, out=jpeg.JpegOutput(pixels=pixels))
        np.testing.assert_array_equal(image.pixels, pixels)
        assert_equal(image, jpeg.read(data, pixels=True))
        assert_equal(jpeg.read(data, out=jpeg.JpegOutput()), jpeg.read(data))

    def test_tensors(self) -> None:
        data = made().data
        coefficients, pixels = torch.empty(PADDED, dtype=torch.int16), torch.empty(24, 40, 3, dtype=torch.uint8)
        image = jpeg.read(data, pixels=True, out=jpeg.JpegOutput(coefficients=coefficients, pixels=pixels))
        assert_equal(image, jpeg.read(data, pixels=True))
        assert image.components[0].tensor.data_ptr() == coefficients.data_ptr()
        np.testing.assert_array_equal(pixels.numpy(), image.pixels)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_pinned_tensors(self) -> None:
        pinned = torch.empty(PADDED, dtype=torch.int16).pin_memory()
        image = jpeg.read(made().data, out=jpeg.JpegOutput(coefficients=pinned))
        assert image.components[0].tensor.is_pinned()
        assert image.components[0].tensor.data_ptr() == pinned.data_ptr()

    def test_views_keep_the_memory_and_no_buffer_of_ours(self) -> None:
        gc.collect()
        before = _jpeg.live_buffers()
        picture = made()
        tensor = jpeg.read(picture.data, out=output()).components[1].tensor
        assert _jpeg.live_buffers() == before
        gc.collect()
        np.testing.assert_array_equal(tensor.numpy(), picture.coefficients[1])

    def test_the_header_says_how_much_is_needed(self) -> None:
        for sampling in ([(1, 1)], [(2, 2)], YCC_420, [(1, 2), (1, 1), (1, 1)], [(4, 1), (1, 1), (2, 1)]):
            data = make_jpeg(41, 25, sampling).data
            count = jpeg.read_header(data).coefficient_count
            jpeg.read(data, out=jpeg.JpegOutput(coefficients=np.empty(count, np.int16)))
            with pytest.raises(OutputTooSmallError, match=f"{count} coefficients.* {count - 1}"):
                jpeg.read(data, out=jpeg.JpegOutput(coefficients=np.empty(count - 1, np.int16)))


class TestRefusals:
    def test_too_few_samples(self) -> None:
        data = made().data
        with pytest.raises(OutputTooSmallError, match=r"2880 samples.* 2879"):
            jpeg.read(data, pixels=True, out=output(samples=2879))
        jpeg.read(data, pixels=True, scale=4, out=output(samples=20 * 12 * 3))
        jpeg.read(data, out=output(samples=0))

    @pytest.mark.parametrize(
        "wrong",
        [
            np.empty(PADDED, np.uint16),
            np.empty(PADDED, np.float32),
            np.empty(PADDED, ">i2"),
            np.empty(2 * PADDED, np.int16)[::2],
            np.empty((PADDED // 64, 64), np.int16).T,
            bytearray(2 * PADDED),
            [0] * PADDED,
        ],
    )
    def test_other_arrays(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match="coefficients must be a C-contiguous int16 array"):
            jpeg.read(made().data, out=jpeg.JpegOutput(coefficients=wrong))

    def test_memory_of_another_device(self) -> None:
        with pytest.raises(TypeError):
            jpeg.read(made().data, out=jpeg.JpegOutput(coefficients=torch.empty(PADDED, device="meta")))

    def test_read_only_and_unaligned_memory(self) -> None:
        frozen = np.empty(PADDED, np.int16)
        frozen.flags.writeable = False
        with pytest.raises(ValueError, match="coefficients must be writable"):
            jpeg.read(made().data, out=jpeg.JpegOutput(coefficients=frozen))
        unaligned = np.empty(PADDED + 1, np.int16)[1:]
        with pytest.raises(ValueError, match="aligned to 16 bytes"):
            jpeg.read(made().data, out=jpeg.JpegOutput(coefficients=unaligned))

    def test_overlap(self) -> None:
        memory = np.empty(2 * PADDED, np.int16)
        with pytest.raises(ValueError, match="overlap"):
            jpeg.read(made().data, out=jpeg.JpegOutput(coefficients=memory, pixels=memory[8:].view(np.uint8)))

    @pytest.mark.parametrize("offset", [16, 8 * PADDED - 16])
    def test_overlap_with_the_source(self, offset: int) -> None:
        data = made().data
        memory = np.zeros(8 * PADDED + len(data), np.uint8)
        source = memory[offset : offset + len(data)]
        source[:] = np.frombuffer(data, np.uint8)
        kept = source.copy()
        out = jpeg.JpegOutput(coefficients=memory[: 8 * PADDED].view(np.int16))
        with pytest.raises(ValueError, match="overlaps a source"):
            jpeg.read(source, out=out)
        with pytest.raises(ValueError, match="overlaps a source"):
            jpeg.read_batch([data, source], out=[out, jpeg.JpegOutput()])
        np.testing.assert_array_equal(source, kept)

    def test_memory_beside_the_source_is_no_overlap(self) -> None:
        data = made().data
        length = -(-len(data) // 16) * 16
        memory = np.zeros(length + 4 * PADDED, np.uint8)
        source = memory[2 * PADDED : 2 * PADDED + len(data)]
        source[:] = np.frombuffer(data, np.uint8)
        before, behind = memory[: 2 * PADDED], memory[2 * PADDED + length :]
        outs = [jpeg.JpegOutput(coefficients=part.view(np.int16)) for part in (before, behind)]
        for image in jpeg.read_batch([source, source], out=outs):
            assert isinstance(image, jpeg.JpegImage)
            assert_equal(image, jpeg.read(data))

    def test_a_failed_read_leaves_the_memory_to_its_owner(self) -> None:
        out = output()
        with pytest.raises(CorruptJpegError):
            jpeg.read(b"nothing", out=out)
        assert_equal(jpeg.read(made().data, pixels=True, out=out), jpeg.read(made().data, pixels=True))


class TestBatch:
    def test_each_picture_has_its_own_memory(self) -> None:
        sources = [made("progressive" if seed % 2 else "baseline", seed).data for seed in range(12)]
        outs = [output() for _ in sources]
        for threads in (1, 3):
            images = jpeg.read_batch(sources, threads=threads, pixels=True, out=outs)
            for source, out, image in zip(sources, outs, images, strict=True):
                assert isinstance(image, jpeg.JpegImage)
                assert_equal(image, jpeg.read(source, pixels=True))
                assert np.shares_memory(image.components[0].coefficients, out.coefficients)

    def test_failures_stay_alone(self) -> None:
        outs = [output(), output(coefficients=10), output(), output()]
        sources = [made().data, made().data, "no/such/file.jpg", made(seed=1).data]
        good, small, missing, other = jpeg.read_batch(sources, out=outs)
        assert isinstance(good, jpeg.JpegImage)
        assert isinstance(small, OutputTooSmallError)
        assert isinstance(missing, FileNotFoundError)
        assert isinstance(other, jpeg.JpegImage)
        assert np.shares_memory(other.components[0].coefficients, outs[3].coefficients)

    def test_wrong_numbers_and_shared_memory(self) -> None:
        data = made().data
        for outs in ([], [output()], [output()] * 3):
            with pytest.raises(ValueError, match=f"{len(outs)} outputs for 2 sources"):
                jpeg.read_batch([data, data], out=outs)
        with pytest.raises(ValueError, match="overlap"):
            jpeg.read_batch([data, data], out=[output()] * 2)
        halves = np.empty(2 * PADDED, np.int16).reshape(2, -1)
        outs = [jpeg.JpegOutput(coefficients=half) for half in halves]
        assert all(isinstance(image, jpeg.JpegImage) for image in jpeg.read_batch([data, data], out=outs))


class TestDlpack:
    """Whoever speaks DLPack takes the arrays as they are, strided ones too."""

    @pytest.mark.parametrize("out", [None, output()], ids=["fresh", "out"])
    def test_every_array_is_shared(self, out: jpeg.JpegOutput | None) -> None:
        image = jpeg.read(made().data, pixels=True, out=out)
        arrays = [array for c in image.components for array in (c.coefficients, c.quant_table)]
        assert image.pixels is not None
        for array in [*arrays, image.pixels]:
            tensor = torch.from_dlpack(array)
            assert tensor.data_ptr() == array.ctypes.data
            assert tensor.shape == array.shape
            assert [step * tensor.element_size() for step in tensor.stride()] == list(array.strides)
            np.testing.assert_array_equal(np.from_dlpack(array), array)

    def test_a_tensor_outlives_the_picture(self) -> None:
        picture = made()
        tensor = torch.from_dlpack(jpeg.read(picture.data).components[0].coefficients)
        gc.collect()
        others = [jpeg.read(pillow_jpeg(40, 24, seed=seed)) for seed in range(10)]
        np.testing.assert_array_equal(tensor.numpy(), picture.coefficients[0])
        assert others

    def test_header_tables_are_arrays_too(self) -> None:
        table = jpeg.read_header(made().data).components[0].quant_table
        assert table is not None
        assert torch.from_dlpack(table).shape == (8, 8)


def test_outputs_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        output().pixels = None  # type: ignore[misc]
