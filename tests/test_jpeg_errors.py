"""What cannot be read says why: typed errors and warnings."""

import contextlib
import re
import struct
from typing import Any

import numpy as np
import pytest
from PIL import ImageFile

from afd_serve import jpeg
from afd_serve.errors import (
    CorruptJpegError,
    EmptyInputError,
    JpegError,
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
    YCC_420,
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
