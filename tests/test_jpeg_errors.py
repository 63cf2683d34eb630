"""What cannot be read says why: typed errors, warnings, limits."""

import contextlib
import dataclasses
import io
import math
import os
import re
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from afd_serve import _jpeg, jpeg
from afd_serve.errors import (
    CorruptJpegError,
    EmptyInputError,
    JpegError,
    JpegTooLargeError,
    TruncatedJpegError,
    UnsupportedJpegError,
)
from tests.jpeg_files import (
    APP0,
    ARITHMETIC,
    COM,
    DATA,
    DQT,
    PROCESSES,
    SAMPLINGS,
    SOF,
    SOS,
    YCC_420,
    after_soi,
    exif_segment,
    find_segment,
    make_jpeg,
    patched_size,
    pillow_jpeg,
    pillow_rgb,
    segment,
    truncated_at,
)


class TestErrors:
    @pytest.mark.parametrize("tolerant", [False, True])
    def test_no_bytes(self, tolerant: bool) -> None:
        with pytest.raises(EmptyInputError):
            jpeg.read(b"", tolerant=tolerant)
        with pytest.raises(EmptyInputError):
            jpeg.read_header(b"")

    @pytest.mark.parametrize("data", [b"x", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
    def test_what_is_no_jpeg_says_so(self, data: bytes) -> None:
        with pytest.raises(CorruptJpegError, match="not a JPEG"):
            jpeg.read(data)

    @pytest.mark.parametrize("interleaved", [True, False])
    @pytest.mark.parametrize("process", PROCESSES)
    def test_truncated_anywhere(self, process: Any, interleaved: bool) -> None:
        for restart_interval in (0, 2):
            made = make_jpeg(
                30, 20, YCC_420, process=process, interleaved=interleaved, restart_interval=restart_interval
            )
            for length in range(1, len(made.data) - 2):
                with pytest.raises(TruncatedJpegError):
                    jpeg.read(made.data[:length])

    @pytest.mark.parametrize("name", ARITHMETIC)
    def test_truncated_arithmetic_data(self, name: str) -> None:
        data = (DATA / name).read_bytes()
        for length in range(1, len(data)):
            with pytest.raises(TruncatedJpegError):
                jpeg.read(data[:length])

    def test_damaged_arithmetic_data_are_corrupt(self) -> None:
        damaged = bytearray((DATA / "arithmetic-progressive-444.jpg").read_bytes())
        damaged[-59] ^= 0x55
        assert "bad arithmetic code" in jpeg.read(bytes(damaged), tolerant=True).warnings[0]
        with pytest.raises(CorruptJpegError, match="bad arithmetic code"):
            jpeg.read(bytes(damaged))

    def test_a_missing_end_marker_loses_nothing(self) -> None:
        for process in PROCESSES:
            made = make_jpeg(30, 20, YCC_420, process=process)  # type: ignore[arg-type]
            for offset in (1, 2):
                image = jpeg.read(truncated_at(made.data, offset))
                assert image.warnings == ("Premature end of JPEG file",)
                np.testing.assert_array_equal(image.components[2].coefficients, made.coefficients[2])

    def test_tolerance_gives_what_is_there(self) -> None:
        data = pillow_jpeg(64, 64, quality=90)
        whole = jpeg.read(data, pixels=True)
        part = jpeg.read(truncated_at(data, 600), pixels=True, tolerant=True)
        assert any("Premature end" in text for text in part.warnings)
        assert part.warning_count >= len(part.warnings) > 0
        left, right = whole.components[0].coefficients, part.components[0].coefficients
        np.testing.assert_array_equal(left[:2], right[:2])
        assert (left[-1] != right[-1]).any()
        assert part.pixels is not None
        assert part.pixels.shape == (64, 64, 3)

    def test_tolerance_equals_pillows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        data = truncated_at(pillow_jpeg(64, 64, quality=90), 600) + b"\xff\xd9"
        np.testing.assert_array_equal(jpeg.read(data, pixels=True, tolerant=True).pixels, pillow_rgb(data))

    @pytest.mark.parametrize("interleaved", [True, False])
    @pytest.mark.parametrize("process", PROCESSES)
    def test_tolerance_keeps_every_scan_before_the_end(self, process: Any, interleaved: bool) -> None:
        made = make_jpeg(30, 20, YCC_420, process=process, interleaved=interleaved)
        scans = [match.start() for match in re.finditer(rb"\xff\xda", made.data)]
        for length in range(scans[0] + 20, len(made.data)):
            alone = jpeg.read(made.data[:length], tolerant=True)
            image = jpeg.read(made.data[:length], tolerant=True, pixels=True)
            assert alone.warning_count > 0
            assert alone.warnings == image.warnings
            for left, right in zip(alone.components, image.components, strict=True):
                np.testing.assert_array_equal(left.coefficients, right.coefficients)
            if len(scans) > 1 and length > scans[1]:
                expected = made.coefficients[0][..., 0, 0]
                got = image.components[0].coefficients[..., 0, 0]
                np.testing.assert_array_equal(got >> 2, expected >> 2)  # the first progressive scan leaves out two bits

    @pytest.mark.parametrize("process", PROCESSES)
    def test_tolerance_survives_a_damaged_later_header(self, process: Any) -> None:
        made = make_jpeg(30, 20, YCC_420, process=process, interleaved=False)
        second = made.data.index(b"\xff\xda", made.data.index(b"\xff\xda") + 2)
        for wrong in (b"\xff\xda\x00\x03\x09", b"\xff\xc4\x00\x04\xff\xff"):
            data = made.data[:second] + wrong + made.data[second:]
            with pytest.raises(CorruptJpegError):
                jpeg.read(data)
            for pixels in (False, True):
                image = jpeg.read(data, tolerant=True, pixels=pixels)
                got = image.components[0].coefficients[..., 0, 0]
                np.testing.assert_array_equal(got >> 2, made.coefficients[0][..., 0, 0] >> 2)
                assert image.warning_count >= 1

    @pytest.mark.parametrize("tolerant", [False, True])
    def test_a_second_frame_is_never_tolerated(self, tolerant: bool) -> None:
        made = make_jpeg(30, 20, SAMPLINGS["444"], interleaved=False)
        second = made.data.index(b"\xff\xda", made.data.index(b"\xff\xda") + 2)
        for count in (1, 3, 10, 255):
            frame = segment(0xC0, struct.pack(">BHHB", 8, 60000, 60000, count) + bytes([1, 0x44, 0]) * count)
            for pixels in (False, True):
                with pytest.raises(CorruptJpegError, match="two SOF"):
                    jpeg.read(made.data[:second] + frame + made.data[second:], tolerant=tolerant, pixels=pixels)

    def test_tolerance_of_missing_scans(self) -> None:
        made = make_jpeg(16, 16, SAMPLINGS["444"], interleaved=False)
        second = made.data.index(b"\xff\xda", made.data.index(b"\xff\xda") + 2)
        for ending, error in ((b"\xff\xd9", CorruptJpegError), (b"", TruncatedJpegError)):
            data = made.data[:second] + ending
            with pytest.raises(error, match="component 2 has no scan"):
                jpeg.read(data)
            image = jpeg.read(data, tolerant=True)
            np.testing.assert_array_equal(image.components[0].coefficients, made.coefficients[0])
            assert not image.components[1].coefficients.any()
            np.testing.assert_array_equal(image.components[1].quant_table, made.quant_tables[1])

    def test_corrupt_data_carries_the_librarys_words(self) -> None:
        data = pillow_jpeg(64, 64, restart_marker_blocks=1)
        assert b"\xff\xd1" in data
        with pytest.raises(CorruptJpegError, match="RST"):
            jpeg.read(data.replace(b"\xff\xd1", b"\xff\xd5"))
        image = jpeg.read(data.replace(b"\xff\xd1", b"\xff\xd5"), tolerant=True)
        assert any("RST" in text for text in image.warnings)

    @pytest.mark.parametrize(
        ("data", "remedy"),
        [
            (truncated_at(pillow_jpeg(64, 64), 300), "send the whole file"),
            (truncated_at(pillow_jpeg(64, 64), 300) + b"\xff\xd9", "send an intact copy"),
            (patched_size(pillow_jpeg(16, 16), 16, 0), "save it as a baseline"),
        ],
    )
    def test_the_message_says_what_to_do(self, data: bytes, remedy: str) -> None:
        with pytest.raises(JpegError) as raised:
            jpeg.read(data)
        (words,) = raised.value.args
        assert str(raised.value).startswith(f"{words}; {remedy}")

    def test_data_that_ends_early_before_a_marker_is_corrupt(self) -> None:
        data = truncated_at(pillow_jpeg(64, 64), 300) + b"\xff\xd9"
        with pytest.raises(CorruptJpegError, match="premature end of data segment"):
            jpeg.read(data)

    def test_harmless_oddities_are_warnings(self) -> None:
        plain = pillow_jpeg(16, 16)
        junk = b"\x12\x34\x56" + segment(COM, b"comment")
        position = find_segment(plain, lambda marker: marker == DQT)
        image = jpeg.read(plain[:position] + junk + plain[position:])
        assert image.warning_count == 1
        assert "3 extraneous bytes before marker" in image.warnings[0]
        newer = plain.replace(b"JFIF\0\x01", b"JFIF\0\x03")
        assert "JFIF" in jpeg.read(newer).warnings[0]

    def test_warning_texts_are_bounded_and_counted(self) -> None:
        plain = pillow_jpeg(16, 16)
        position = find_segment(plain, lambda marker: marker == DQT)
        junk = (b"\x12" + segment(COM, b"x")) * 50
        image = jpeg.read(plain[:position] + junk + plain[position:])
        assert len(image.warnings) == 16
        assert image.warning_count == 50

    @pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF])
    def test_lossless_and_hierarchical_are_unsupported(self, marker: int) -> None:
        data = make_jpeg(16, 16, [(1, 1)]).data.replace(b"\xff\xc0", bytes([0xFF, marker]), 1)
        with pytest.raises(UnsupportedJpegError):
            jpeg.read(data)

    def test_a_lossless_file_is_unsupported(self) -> None:
        file = (
            "ffd8 ffe000104a46494600010100000100010000 ffc3000b080008000801011100 ffc400160001010100000000000000000000"
            "000000010005 ffda0008010100010000 c355565556555655565556555655565557 ffd9"
        )
        tables = segment(DQT, bytes(1) + bytes([1] * 64))  # without them the file would be refused for want of them
        data = bytes.fromhex(file)
        for tolerant in (False, True):
            with pytest.raises(UnsupportedJpegError):
                jpeg.read(data[:2] + tables + data[2:], pixels=True, tolerant=tolerant)

    def test_12_bits_are_unsupported(self) -> None:
        data = bytearray(make_jpeg(16, 16, [(1, 1)], process="extended").data)
        data[find_segment(bytes(data), lambda marker: marker == SOF["extended"]) + 4] = 12
        with pytest.raises(UnsupportedJpegError, match="12"):
            jpeg.read(data)

    def test_other_numbers_of_components_are_unsupported(self) -> None:
        for count in (2, 5, 11):
            with pytest.raises(UnsupportedJpegError):
                jpeg.read(make_jpeg(16, 16, [(1, 1)] * count, interleaved=False).data)

    def test_a_height_to_come_is_unsupported(self) -> None:
        with pytest.raises(UnsupportedJpegError, match="DNL"):
            jpeg.read(patched_size(pillow_jpeg(16, 16), 16, 0))

    def test_fractional_sampling_has_coefficients_but_no_pixels(self) -> None:
        made = make_jpeg(50, 20, [(3, 1), (2, 1), (1, 1)])
        np.testing.assert_array_equal(jpeg.read(made.data).components[1].coefficients, made.coefficients[1])
        with pytest.raises(UnsupportedJpegError):
            jpeg.read(made.data, pixels=True)

    def test_a_file_without_a_picture(self) -> None:
        with pytest.raises(CorruptJpegError, match="no image"):
            jpeg.read(b"\xff\xd8\xff\xd9")
        with pytest.raises(TruncatedJpegError):
            jpeg.read(b"\xff\xd8" + segment(APP0, b"x"))

    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        data = pillow_jpeg(32, 32)
        for broken in (data[:-50], data[:300] + bytes(100), b"\xff\xd8\xff\xd9", b"no"):
            for tolerant in (False, True):
                with contextlib.suppress(JpegError):
                    jpeg.read(broken, tolerant=tolerant)
        assert capfd.readouterr() == ("", "")


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
