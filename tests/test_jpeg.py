"""The codec: equal to jpeglib and Pillow where they read, whatever the bytes lie in."""

import io
import itertools
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jpeglib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from afd_serve import jpeg
from afd_serve.errors import (
    CorruptJpegError,
    InputError,
    JpegTooLargeError,
)
from tests.jpeg_files import (
    ARITHMETIC,
    DATA,
    DQT,
    ODD_SIZES,
    PROCESSES,
    SAMPLINGS,
    YCC_420,
    adobe_segment,
    after_soi,
    empty_exif_segment,
    exif_segment,
    find_segment,
    make_jpeg,
    patched_size,
    pillow_jpeg,
    pillow_rgb,
    segment,
)


def assert_equal_to_jpeglib(data: bytes, image: jpeg.JpegImage, folder: Path) -> None:
    path = folder / "picture.jpg"
    path.write_bytes(data)
    reference = jpeglib.read_dct(str(path))
    planes = [plane for plane in (reference.Y, reference.Cb, reference.Cr, reference.K) if plane is not None]
    assert len(planes) == len(image.components)
    for i, component in enumerate(image.components):
        np.testing.assert_array_equal(component.coefficients, planes[i])
        np.testing.assert_array_equal(component.quant_table, reference.qt[reference.quant_tbl_no[i]])
        assert (component.v, component.h) == tuple(reference.samp_factor[i])  # jpeglib's order is (v, h)


class TestEqualToOthers:
    """Two other readers agree with ours, and generated files give back what was written."""

    @pytest.mark.parametrize("process", PROCESSES)
    @pytest.mark.parametrize("name", SAMPLINGS)
    def test_generated_files_give_back_what_was_written(self, name: str, process: Any, tmp_path: Path) -> None:
        cases = itertools.product(ODD_SIZES, (True, False), (0, 3))
        for seed, ((width, height), interleaved, restart_interval) in enumerate(cases):
            made = make_jpeg(
                width,
                height,
                SAMPLINGS[name],
                process=process,
                interleaved=interleaved,
                restart_interval=restart_interval,
                wide_tables=process != "baseline",
                seed=seed,
            )
            image = jpeg.read(made.data, pixels=True)
            for component, blocks, table, sampling in zip(
                image.components, made.coefficients, made.quant_tables, made.sampling, strict=True
            ):
                np.testing.assert_array_equal(component.coefficients, blocks)
                np.testing.assert_array_equal(component.quant_table, table)
                assert (component.h, component.v) == sampling
            assert (image.width, image.height) == (width, height)
            assert image.progressive == (process == "progressive")
            assert image.restart_interval == restart_interval
            assert image.warnings == ()
            assert_equal_to_jpeglib(made.data, image, tmp_path)
            np.testing.assert_array_equal(image.pixels, pillow_rgb(made.data))

    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_pillows_files_of_every_option(self, mode: str, progressive: bool, tmp_path: Path) -> None:
        options: list[dict[str, Any]] = [{}, {"restart_marker_blocks": 2}, {"restart_marker_rows": 1}]
        options += [{"optimize": True}, {"qtables": [list(range(1, 65)), [7] * 64]}]
        options += [{"keep_rgb": True}] if mode == "RGB" else []
        cases = itertools.product(((1, 1), (7, 9), (50, 41)), (5, 75, 100), ("4:4:4", "4:2:2", "4:2:0"), options)
        for (width, height), quality, subsampling, more in cases:
            if "keep_rgb" in more and subsampling != "4:4:4":
                continue
            arguments = {"quality": quality, "subsampling": subsampling, "progressive": progressive} | more
            data = pillow_jpeg(width, height, mode, **arguments)
            image = jpeg.read(data, pixels=True)
            assert_equal_to_jpeglib(data, image, tmp_path)
            np.testing.assert_array_equal(image.pixels, pillow_rgb(data))

    @pytest.mark.parametrize("name", ARITHMETIC)
    def test_arithmetic_files_hold_what_their_huffman_twins_hold(self, name: str) -> None:
        data = (DATA / name).read_bytes()
        image = jpeg.read(data, pixels=True)
        assert image.arithmetic
        assert image.progressive == ("progressive" in name)
        twin = ARITHMETIC[name]()
        for component, blocks in zip(image.components, twin.coefficients, strict=True):
            np.testing.assert_array_equal(component.coefficients, blocks)
        np.testing.assert_array_equal(image.pixels, jpeg.read(twin.data, pixels=True).pixels)

    @pytest.mark.parametrize("transform", [0, 2])
    @pytest.mark.parametrize("name", ["four", "four-420"])
    def test_adobe_cmyk_and_ycck(self, name: str, transform: int) -> None:
        data = make_jpeg(30, 21, SAMPLINGS[name], prefix=adobe_segment(transform)).data
        image = jpeg.read(data, pixels=True)
        assert image.color_space == ("ycck" if transform else "cmyk")
        np.testing.assert_array_equal(image.pixels, pillow_rgb(data))

    @pytest.mark.parametrize(
        ("prefix", "ids", "color_space"),
        [
            (adobe_segment(0), (1, 2, 3), "rgb"),
            (adobe_segment(1), (1, 2, 3), "ycbcr"),
            (b"", (ord("R"), ord("G"), ord("B")), "rgb"),
            (b"", (0, 1, 2), "ycbcr"),
            (b"", (1, 2, 3), "ycbcr"),
        ],
    )
    def test_color_space_comes_from_markers_and_ids(
        self, prefix: bytes, ids: tuple[int, ...], color_space: str
    ) -> None:
        data = make_jpeg(20, 20, SAMPLINGS["444"], prefix=prefix, ids=ids).data
        image = jpeg.read(data, pixels=True)
        assert image.color_space == color_space
        assert tuple(component.component_id for component in image.components) == ids
        np.testing.assert_array_equal(image.pixels, pillow_rgb(data))

    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    def test_scaled_pixels_are_pillows_draft(self, mode: str, subsampling: str) -> None:
        for (width, height), scale in itertools.product(((64, 48), (61, 83)), (1, 2, 4)):
            data = pillow_jpeg(width, height, mode, subsampling=subsampling)
            drafted = Image.open(io.BytesIO(data))
            drafted.draft(mode, (width * scale // 8, height * scale // 8))
            scaled = jpeg.read(data, pixels=True, scale=scale)
            np.testing.assert_array_equal(scaled.pixels, np.asarray(drafted.convert("RGB")))
            assert (scaled.width, scaled.height) == (width, height)

    @pytest.mark.parametrize("scale", range(1, 9))
    def test_every_eighth_rounds_its_sides_up(self, scale: int) -> None:
        pixels = jpeg.read(pillow_jpeg(61, 43), pixels=True, scale=scale).pixels
        assert pixels is not None
        assert pixels.shape == (-(-43 * scale // 8), -(-61 * scale // 8), 3)

    @pytest.mark.parametrize("scale", range(1, 9))
    @pytest.mark.parametrize("process", PROCESSES)
    def test_pixels_do_not_change_the_coefficients(self, process: Any, scale: int) -> None:
        for sampling in (YCC_420, SAMPLINGS["444"], SAMPLINGS["grayscale"]):
            made = make_jpeg(37, 29, sampling, process=process)
            image = jpeg.read(made.data, pixels=True, scale=scale)
            for component, blocks in zip(image.components, made.coefficients, strict=True):
                np.testing.assert_array_equal(component.coefficients, blocks)
        assert jpeg.read(made.data).pixels is None

    def test_the_table_in_force_at_the_first_scan_is_reported(self) -> None:
        made = make_jpeg(16, 16, SAMPLINGS["444"], interleaved=False)
        first = made.data.index(b"\xff\xda")
        second = made.data.index(b"\xff\xda", first + 2)
        other = segment(DQT, bytes([0, *[77] * 64])) + segment(DQT, bytes([1, *[99] * 64]))
        image = jpeg.read(made.data[:second] + other + made.data[second:])
        np.testing.assert_array_equal(image.components[0].quant_table, made.quant_tables[0])
        assert (image.components[1].quant_table == 99).all()


class TestHeader:
    def test_facts_before_the_first_scan(self) -> None:
        made = make_jpeg(37, 29, YCC_420, process="progressive", restart_interval=4, prefix=adobe_segment(1))
        header = jpeg.read_header(made.data)
        assert (header.width, header.height, header.precision) == (37, 29, 8)
        assert header.color_space == "ycbcr"
        assert (header.progressive, header.arithmetic, header.restart_interval) == (True, False, 4)
        assert (header.orientation, header.adobe_transform) == (1, 1)
        luma, chroma, _ = header.components
        assert (luma.component_id, luma.h, luma.v, luma.width_in_blocks, luma.height_in_blocks) == (1, 2, 2, 5, 4)
        assert (chroma.h, chroma.v, chroma.width_in_blocks, chroma.height_in_blocks) == (1, 1, 3, 2)
        np.testing.assert_array_equal(luma.quant_table, made.quant_tables[0])

    def test_without_adobes_marker_there_is_no_transform(self) -> None:
        assert jpeg.read_header(make_jpeg(8, 8, YCC_420).data).adobe_transform is None

    def test_a_table_that_comes_later_is_unknown(self) -> None:
        data = make_jpeg(8, 8, [(1, 1)]).data
        start = find_segment(data, lambda marker: marker == DQT)
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        assert jpeg.read_header(data[:start] + data[end:]).components[0].quant_table is None
        with pytest.raises(CorruptJpegError, match=r"(?i)quantization table"):
            jpeg.read(data[:start] + data[end:])

    def test_only_the_limit_on_bytes_applies(self) -> None:
        data = patched_size(pillow_jpeg(16, 16), 65500, 65500)
        assert jpeg.read_header(data).width == 65500
        with pytest.raises(JpegTooLargeError, match="max_bytes"):
            jpeg.read_header(data, limits=jpeg.JpegLimits(max_bytes=100))

    def test_many_small_segments(self) -> None:
        data = after_soi(pillow_jpeg(8, 8), segment(0xE1, b"") * 1_000_000, exif_segment(7))
        assert jpeg.read_header(data).orientation == 7

    def test_many_segments_that_claim_more_entries_than_they_hold(self) -> None:
        data = after_soi(pillow_jpeg(8, 8), empty_exif_segment() * 200_000, exif_segment(7))
        assert jpeg.read_header(data).orientation == 7

    def test_the_codec_is_named(self) -> None:
        assert re.fullmatch(r"libjpeg-turbo [\d.]+", jpeg.CODEC)

    def test_the_module_says_how_it_was_built(self) -> None:
        command = [sys.executable, "-m", "afd_serve.jpeg"]
        facts = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name in ("afd-serve", "decoder", "compiler", "flags"):
            assert re.search(rf"^{name} +\S", facts, re.MULTILINE)
        assert re.search(rf"^codec +{jpeg.CODEC}$", facts, re.MULTILINE)

    def test_is_jpeg(self) -> None:
        assert jpeg.is_jpeg(pillow_jpeg(8, 8))
        assert jpeg.is_jpeg(memoryview(b"\xff\xd8\xff"))
        for other in (b"", b"\xff", b"\xff\xd8", b"\x89PNG\r\n", b"\xff\xd8\x00\x00"):
            assert not jpeg.is_jpeg(other)
        assert not jpeg.is_jpeg(np.zeros((0, 3), np.uint8))
        assert jpeg.is_jpeg(np.frombuffer(b"\xff\xd8\xff\0", np.uint16))


class TestOrientation:
    @pytest.mark.parametrize("byte_order", [">", "<"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_pixels_are_turned_as_pillow_turns_them(self, orientation: int, byte_order: str) -> None:
        data = after_soi(pillow_jpeg(35, 22), exif_segment(orientation, byte_order))
        stored = jpeg.read(data, pixels=True)
        shown = jpeg.read(data, pixels=True, apply_orientation=True)
        assert stored.orientation == shown.orientation == jpeg.read_header(data).orientation == orientation
        np.testing.assert_array_equal(stored.pixels, pillow_rgb(data))
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(shown.pixels, np.asarray(upright))
        np.testing.assert_array_equal(shown.components[0].coefficients, stored.components[0].coefficients)

    @pytest.mark.parametrize("value", [0, 9, 65535])
    def test_values_outside_the_standard_mean_upright(self, value: int) -> None:
        assert jpeg.read_header(after_soi(pillow_jpeg(8, 8), exif_segment(value))).orientation == 1

    def test_damaged_exif_means_upright(self) -> None:
        plain = pillow_jpeg(8, 8)
        payload = exif_segment(6)[4:]
        for length in range(len(payload) - 6):
            assert jpeg.read_header(after_soi(plain, segment(0xE1, payload[:length]))).orientation == 1
        far = payload[:10] + b"\xff\xff\xff\xf0" + payload[14:]
        assert jpeg.read_header(after_soi(plain, segment(0xE1, far))).orientation == 1

    @pytest.mark.parametrize("byte_order", "<>")
    @pytest.mark.parametrize(("kind", "count", "orientation"), [(3, 2, 6), (4, 1, 6), (3, 0, 1), (4, 0, 1), (2, 1, 1)])
    def test_orientations_are_shorts_or_longs(self, byte_order: str, kind: int, count: int, orientation: int) -> None:
        data = after_soi(pillow_jpeg(8, 8), exif_segment(6, byte_order, kind=kind, count=count))
        assert jpeg.read_header(data).orientation == orientation

    def test_a_long_that_is_no_orientation(self) -> None:
        for value in (0, 9, 0x60000, 0x10006):
            data = after_soi(pillow_jpeg(8, 8), exif_segment(value, kind=4))
            assert jpeg.read_header(data).orientation == 1

    def test_the_first_exif_segment_counts(self) -> None:
        data = after_soi(pillow_jpeg(8, 8), segment(0xE1, b"http://ns.adobe.com/"), exif_segment(3), exif_segment(6))
        assert jpeg.read_header(data).orientation == 3


class TestSources:
    def test_every_buffer_and_path_gives_the_same(self, tmp_path: Path) -> None:
        data = pillow_jpeg(20, 12)
        path = tmp_path / "picture.jpg"
        path.write_bytes(data)
        expected = jpeg.read(data).components[0].coefficients
        array = np.frombuffer(data, np.uint8)
        buffers = [bytearray(data), memoryview(data), array, memoryview(b"xx" + data)[2:]]
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            buffers.append(mapped)
            for source in [*buffers, path, str(path)]:
                np.testing.assert_array_equal(jpeg.read(source).components[0].coefficients, expected)

    def test_what_is_no_contiguous_buffer_is_refused(self) -> None:
        for wrong in (None, 3, ["x"], io.BytesIO(b"x")):
            with pytest.raises(TypeError):
                jpeg.read(wrong)  # type: ignore[arg-type]
        data = pillow_jpeg(8, 8)
        for wrong in (memoryview(data)[::2], np.frombuffer(data, np.uint8)[::2]):
            for read in (jpeg.read, jpeg.read_header, lambda source: jpeg.read_batch([source])):
                with pytest.raises(TypeError, match="contiguous"):
                    read(wrong)

    def test_the_message_of_a_wrong_argument_does_not_hold_the_picture(self) -> None:
        data = pillow_jpeg(640, 480)
        wrong: list[dict[str, Any]] = [{"scale": 2.5}, {"scale": 2**70}, {"scale": "8"}, {"scale": 0}]
        for arguments in wrong:
            with pytest.raises((TypeError, ValueError)) as refused:
                jpeg.read(data, **arguments)
            assert len(str(refused.value)) < 100
        for arguments in [*wrong, {"threads": -1}, {"threads": 2**70}, {"threads": 1.5}]:
            with pytest.raises((TypeError, ValueError)) as refused:
                jpeg.read_batch([data], **arguments)
            assert len(str(refused.value)) < 100

    def test_a_missing_path_is_an_os_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            jpeg.read(tmp_path / "none.jpg")

    def test_a_large_file_is_refused_unread(self, tmp_path: Path) -> None:
        path = tmp_path / "large.jpg"
        with path.open("wb") as file:
            os.truncate(file.fileno(), 1 << 40)
        with pytest.raises(JpegTooLargeError, match="max_bytes"):
            jpeg.read(path)

    def test_a_mutable_source_is_free_again_afterwards(self) -> None:
        data = bytearray(pillow_jpeg(8, 8))
        jpeg.read(data)
        with pytest.raises(CorruptJpegError):
            jpeg.read(bytearray(b"nothing"))
        data.extend(b"more")

    @pytest.mark.parametrize("scale", [-1, 0, 9])
    def test_scale_is_checked(self, scale: int) -> None:
        with pytest.raises(ValueError, match="scale"):
            jpeg.read(pillow_jpeg(8, 8), scale=scale)


SEEDS = [
    pillow_jpeg(24, 20),
    pillow_jpeg(24, 20, progressive=True),
    pillow_jpeg(24, 20, "CMYK", restart_marker_blocks=1),
    make_jpeg(20, 20, SAMPLINGS["mixed"], process="progressive", interleaved=False, wide_tables=True).data,
    after_soi(pillow_jpeg(9, 9, "L"), exif_segment(5)),
    *((DATA / name).read_bytes() for name in ARITHMETIC),
]
SMALL_LIMITS = jpeg.JpegLimits(max_pixels=1 << 18, max_memory_bytes=8 << 20, max_scans=20)


def read_or_typed_error(data: bytes) -> None:
    """Any bytes give a whole result or an InputError, in every mode."""
    modes: list[dict[str, Any]] = [{}, {"tolerant": True}, {"tolerant": True, "pixels": True, "scale": 3}]
    modes.append({"pixels": True, "apply_orientation": True})
    for options in modes:
        try:
            image = jpeg.read(data, limits=SMALL_LIMITS, **options)
        except InputError:
            continue
        for component in image.components:
            assert component.coefficients.shape[2:] == (8, 8)
            assert component.quant_table.shape == (8, 8)
            assert component.tensor.sum() == component.coefficients.sum(dtype=np.int64)
        assert (image.pixels is not None) == options.get("pixels", False)


class TestProperties:
    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8", SEEDS[0][:300], SEEDS[1][:400]]))
    def test_any_bytes(self, tail: bytes, head: bytes) -> None:
        read_or_typed_error(head + tail)

    @settings(max_examples=500, deadline=None)
    @given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6))
    def test_changed_bytes(self, seed: bytes, changes: list[tuple[int, int]]) -> None:
        data = bytearray(seed)
        for position, value in changes:
            data[position % len(data)] = value
        read_or_typed_error(bytes(data))

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(SEEDS), st.integers(0, 4000), st.integers(0, 4000), st.binary(max_size=20))
    def test_cut_and_filled(self, seed: bytes, start: int, length: int, filling: bytes) -> None:
        start %= len(seed)
        read_or_typed_error(seed[:start] + filling + seed[start + length % 100 :])

    @settings(max_examples=150, deadline=None)
    @given(
        st.integers(1, 70),
        st.integers(1, 70),
        st.sampled_from(sorted(SAMPLINGS)),
        st.sampled_from(PROCESSES),
        st.booleans(),
        st.integers(0, 5),
        st.integers(0, 1000),
    )
    def test_written_is_read(
        self, width: int, height: int, name: str, process: Any, interleaved: bool, restart_interval: int, seed: int
    ) -> None:
        made = make_jpeg(
            width,
            height,
            SAMPLINGS[name],
            process=process,
            interleaved=interleaved,
            restart_interval=restart_interval,
            seed=seed,
        )
        image = jpeg.read(made.data, pixels=True)
        for component, blocks in zip(image.components, made.coefficients, strict=True):
            np.testing.assert_array_equal(component.coefficients, blocks)
        np.testing.assert_array_equal(image.pixels, pillow_rgb(made.data))
