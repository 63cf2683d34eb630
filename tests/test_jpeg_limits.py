"""What one JPEG may cost: every limit is exact, and checked before memory or time is spent."""

import contextlib
import dataclasses
import io
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from afd_serve import _jpeg, jpeg
from afd_serve.errors import (
    JpegTooLargeError,
)
from tests.jpeg_files import (
    COM,
    DATA,
    SAMPLINGS,
    SOS,
    YCC_420,
    after_soi,
    exif_segment,
    make_jpeg,
    patched_size,
    pillow_jpeg,
    segment,
)


def assert_refused_quickly(data: bytes, limit: str, **options: Any) -> None:
    """Refuses with no more than 10 ms of the processor's time, and says which limit to raise."""
    times = []
    for _ in range(3):
        start = time.thread_time()
        with pytest.raises(JpegTooLargeError, match=rf"JpegLimits\({limit}=\.\.\.\)"):
            jpeg.read(data, **options)
        times.append(time.thread_time() - start)
    assert min(times) < 0.01


class TestLimits:
    @pytest.mark.parametrize("tolerant", [False, True])
    def test_bombs_are_refused_quickly(self, tolerant: bool) -> None:
        small = pillow_jpeg(300, 200)[:3000]
        assert_refused_quickly(patched_size(small, 65500, 65500), "max_pixels", tolerant=tolerant)
        assert_refused_quickly(patched_size(small, 9000, 9000), "max_blocks_per_byte", tolerant=tolerant)
        arithmetic = (DATA / "arithmetic-grayscale.jpg").read_bytes()
        assert_refused_quickly(patched_size(arithmetic, 9000, 9000), "max_blocks_per_byte", tolerant=tolerant)

    @pytest.mark.parametrize("tolerant", [False, True])
    def test_a_thousand_scans_are_refused_quickly(self, tolerant: bool) -> None:
        data = pillow_jpeg(600, 400, progressive=True)
        last = data.rindex(b"\xff\xda")
        assert_refused_quickly(data[:-2] + data[last:-2] * 1000 + b"\xff\xd9", "max_scans", tolerant=tolerant)

    def test_scans_are_counted_in_sequential_files_too(self) -> None:
        data = make_jpeg(16, 16, SAMPLINGS["444"], interleaved=False).data
        with pytest.raises(JpegTooLargeError, match="max_scans"):
            jpeg.read(data, limits=jpeg.JpegLimits(max_scans=2))
        assert jpeg.read(data, limits=jpeg.JpegLimits(max_scans=3)).warnings == ()

    def test_a_scan_inside_a_thumbnail_does_not_count(self) -> None:
        data = pillow_jpeg(16, 16, progressive=True)
        scans = data.count(bytes([0xFF, SOS]))
        hidden = after_soi(data, segment(0xE2, b"\xff\xda" * 500))
        assert jpeg.read(hidden, limits=jpeg.JpegLimits(max_scans=scans)).warnings == ()

    def test_each_limit_is_exact(self) -> None:
        data = pillow_jpeg(64, 48, subsampling="4:2:0")
        coefficients = 2 * (64 * 48 * 3 // 2)
        for name, need in {"max_pixels": 64 * 48, "max_bytes": len(data), "max_memory_bytes": coefficients}.items():
            jpeg.read(data, limits=dataclasses.replace(jpeg.DEFAULT_LIMITS, **{name: need}))
            with pytest.raises(JpegTooLargeError, match=name):
                jpeg.read(data, limits=dataclasses.replace(jpeg.DEFAULT_LIMITS, **{name: need - 1}))

    @pytest.mark.parametrize("surplus", [0, 1, 2**24])
    def test_no_more_of_a_pipe_is_read_than_the_limit_allows(self, tmp_path: Path, surplus: int) -> None:
        data, written = pillow_jpeg(64, 48), []
        limits = dataclasses.replace(jpeg.DEFAULT_LIMITS, max_bytes=len(data))

        def write() -> None:
            with contextlib.suppress(BrokenPipeError), (tmp_path / "pipe").open("wb", buffering=0) as pipe:
                written.extend(map(pipe.write, (data, *[bytes(2**12)] * (surplus // 2**12 or surplus))))

        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=write)
        writer.start()
        if surplus:
            with pytest.raises(JpegTooLargeError, match="max_bytes"):
                jpeg.read(tmp_path / "pipe", limits=limits)
        else:
            assert jpeg.read(tmp_path / "pipe", limits=limits).width == 64
        writer.join()
        assert sum(written) < 2**20

    def test_memory_counts_pixels_at_their_scale_and_copies(self) -> None:
        data = after_soi(pillow_jpeg(64, 48, subsampling="4:2:0"), exif_segment(6))
        coefficients = 2 * (64 * 48 * 3 // 2)
        for options, pixels in (
            ({}, 64 * 48 * 3),
            ({"scale": 4}, 32 * 24 * 3),
            ({"apply_orientation": True}, 2 * 64 * 48 * 3),
        ):
            need = coefficients + pixels
            jpeg.read(data, pixels=True, limits=jpeg.JpegLimits(max_memory_bytes=need), **options)
            with pytest.raises(JpegTooLargeError, match="max_memory_bytes"):
                jpeg.read(data, pixels=True, limits=jpeg.JpegLimits(max_memory_bytes=need - 1), **options)
        upright = jpeg.JpegLimits(max_memory_bytes=coefficients + 64 * 48 * 3)
        jpeg.read(pillow_jpeg(64, 48, subsampling="4:2:0"), pixels=True, limits=upright, apply_orientation=True)

    def test_blocks_per_byte_is_exact_and_spares_small_pictures(self) -> None:
        data = pillow_jpeg(2400, 1760, "L", quality=5)  # 300 x 220 blocks
        allowed = 300 * 220 / len(data)
        jpeg.read(data, limits=jpeg.JpegLimits(max_blocks_per_byte=allowed))
        with pytest.raises(JpegTooLargeError, match="max_blocks_per_byte"):
            jpeg.read(data, limits=jpeg.JpegLimits(max_blocks_per_byte=allowed * 0.999))
        small = pillow_jpeg(2048, 2048, "L", quality=5)  # 65536 blocks
        jpeg.read(small, limits=jpeg.JpegLimits(max_blocks_per_byte=0.001))

    def test_arithmetic_blocks_are_exact_and_refused_before_they_are_decoded(self) -> None:
        data = (DATA / "arithmetic-420.jpg").read_bytes()  # 37x29 pixels: 5 x 4 blocks of luma, 3 x 2 of each chroma
        jpeg.read(data, limits=jpeg.JpegLimits(max_arithmetic_blocks=32))
        with pytest.raises(JpegTooLargeError, match=r"32 .*max_arithmetic_blocks"):
            jpeg.read(data, limits=jpeg.JpegLimits(max_arithmetic_blocks=31))
        jpeg.read(make_jpeg(37, 29, YCC_420).data, limits=jpeg.JpegLimits(max_arithmetic_blocks=1))

    @pytest.mark.parametrize("tolerant", [False, True])
    def test_little_arithmetic_data_for_many_blocks_are_refused_quickly(self, tolerant: bool) -> None:
        filler = segment(COM, bytes(65_533)) * 4  # so that there are no more than 8 blocks for each byte
        for name in ("arithmetic-grayscale.jpg", "arithmetic-progressive-444.jpg"):
            data = after_soi(patched_size((DATA / name).read_bytes(), 9000, 1500), filler)
            assert_refused_quickly(data, "max_arithmetic_blocks", tolerant=tolerant)

    def test_arithmetic_blocks_that_come_again_count_again(self) -> None:
        data = (DATA / "arithmetic-progressive-444.jpg").read_bytes()  # 3 x 2 blocks for each of three components
        start = data.index(bytes.fromhex("ffda 0008 01 0301 01 3f"))  # brings all but one for the first time
        scan = data[start : data.index(b"\xff\xda", start + 2)]
        again = data[:-2] + scan * 3 + data[-2:]
        need = 18 + 3 * 6 * 63 // 64
        jpeg.read(again, limits=jpeg.JpegLimits(max_arithmetic_blocks=need), tolerant=True)
        with pytest.raises(JpegTooLargeError, match=r"come again.*max_arithmetic_blocks"):
            jpeg.read(again, limits=jpeg.JpegLimits(max_arithmetic_blocks=need - 1), tolerant=True)

    def test_what_only_refines_arithmetic_blocks_does_not_count(self) -> None:
        data = (DATA / "arithmetic-progressive-444.jpg").read_bytes()  # 3 x 2 blocks for each of three components
        assert data.count(bytes([0xFF, SOS])) == 10
        jpeg.read(data, limits=jpeg.JpegLimits(max_arithmetic_blocks=18))

    @pytest.mark.parametrize("tolerant", [False, True])
    @pytest.mark.parametrize("decoder", ["fastest", "libjpeg"])
    def test_blocks_of_all_scans_are_exact(self, tolerant: bool, decoder: Any) -> None:
        data = make_jpeg(37, 29, YCC_420, process="progressive").data
        # Three scans of all components' DC coefficients, five of each component's others.
        for need, limits in ((32 * 8, jpeg.JpegLimits(max_scan_blocks=32 * 8)), (0, jpeg.DEFAULT_LIMITS)):
            assert jpeg.read(data, limits=limits, tolerant=tolerant).warnings == (), need
        native = jpeg.native_limits(jpeg.JpegLimits(max_scan_blocks=32 * 8 - 1))
        for pixels in (False, True):
            with pytest.raises(JpegTooLargeError, match=r"JpegLimits\(max_scan_blocks=\.\.\.\)"):
                _jpeg.read(
                    data, native, pixels=pixels, scale=8, tolerant=tolerant, apply_orientation=False, decoder=decoder
                )

    @pytest.mark.parametrize("tolerant", [False, True])
    def test_many_blocks_in_all_scans_are_refused_quickly(self, tolerant: bool) -> None:
        data = patched_size(pillow_jpeg(64, 64, progressive=True, subsampling="4:4:4"), 9900, 9900)
        scans = data[data.index(b"\xff\xda") : -2]
        filler = segment(COM, bytes(65_533)) * 9  # so that there are no more than 8 blocks for each byte
        many = after_soi(data[:-2] + scans * 2 + data[-2:], filler)
        assert_refused_quickly(many, "max_scan_blocks", tolerant=tolerant)

    def test_blocks_of_all_scans_hold_what_encoders_write(self) -> None:
        largest = jpeg.DEFAULT_LIMITS.max_pixels // 64
        for sampling, options in (("4:4:4", {}), ("4:2:0", {}), ("4:4:4", {"keep_rgb": True})):
            data = pillow_jpeg(64, 64, progressive=True, subsampling=sampling, **options)
            jpeg.read(data, limits=jpeg.JpegLimits(max_scan_blocks=64 * jpeg.DEFAULT_LIMITS.max_scan_blocks // largest))
        four = pillow_jpeg(64, 64, "CMYK", progressive=True)
        jpeg.read(four, limits=jpeg.JpegLimits(max_scan_blocks=64 * jpeg.DEFAULT_LIMITS.max_scan_blocks // largest))

    def test_blocks_per_byte_refuses_no_flat_picture(self) -> None:
        for progressive in (False, True):
            out = io.BytesIO()
            Image.new("L", (6000, 6000), 128).save(out, "JPEG", quality=5, optimize=True, progressive=progressive)
            image = jpeg.read(out.getvalue())
            assert image.components[0].coefficients.shape == (750, 750, 8, 8)

    @pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(jpeg.JpegLimits)])
    def test_limits_are_positive(self, field: str) -> None:
        for value in (0, -1):
            with pytest.raises(ValueError, match=field):
                jpeg.JpegLimits(**{field: value})

    def test_limits_are_sizes_that_there_can_be(self) -> None:
        largest = {field.name: sys.maxsize for field in dataclasses.fields(jpeg.JpegLimits)}
        for limits in (jpeg.JpegLimits(**largest), jpeg.JpegLimits(max_blocks_per_byte=math.inf)):
            assert jpeg.read(pillow_jpeg(16, 16, progressive=True), limits=limits).warnings == ()
        with pytest.raises(ValueError, match="max_bytes"):
            jpeg.JpegLimits(max_bytes=2**64)
