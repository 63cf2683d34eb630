"""Results own their memory, and threads share nothing."""

import contextlib
import gc
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afd_serve import _jpeg, jpeg
from afd_serve.errors import (
    CorruptJpegError,
    EmptyInputError,
    InputError,
    TruncatedJpegError,
)
from tests.jpeg_files import (
    ARITHMETIC,
    DATA,
    SAMPLINGS,
    YCC_420,
    GeneratedJpeg,
    make_jpeg,
    patched_size,
    pillow_jpeg,
    pillow_rgb,
    truncated_at,
)


class TestMemory:
    """Views over the decoder's buffer: not copied, owned, freed."""

    def test_coefficients_are_the_decoders_buffer(self) -> None:
        made = make_jpeg(40, 24, YCC_420)  # 5x3 blocks of luma, padded to 6x4; 3x2 of chroma, not padded
        decoded = _jpeg.read(
            made.data,
            jpeg.native_limits(jpeg.DEFAULT_LIMITS),
            pixels=False,
            scale=8,
            tolerant=False,
            apply_orientation=False,
        )
        luma, blue, red = decoded.coefficients
        assert luma.ctypes.data == decoded.buffer_address
        assert blue.ctypes.data == decoded.buffer_address + 6 * 4 * 128
        assert red.ctypes.data == blue.ctypes.data + 3 * 2 * 128
        assert decoded.buffer_bytes == (6 * 4 + 2 * 3 * 2) * 128
        assert luma.strides == (6 * 128, 128, 16, 2)  # the padding stays in the buffer
        for view in decoded.coefficients:
            assert type(view.base).__name__ == "PyCapsule"
            assert not view.flags.owndata
            assert view.flags.writeable

    def test_tensor_shares_the_memory(self) -> None:
        component = jpeg.read(make_jpeg(40, 24, YCC_420).data).components[0]
        tensor = component.tensor
        assert tensor.dtype is torch.int16
        assert tensor.data_ptr() == component.coefficients.ctypes.data
        tensor[0, 0, 0, 0] = 123
        assert component.coefficients[0, 0, 0, 0] == 123

    def test_a_view_outlives_everything_else(self) -> None:
        made = make_jpeg(200, 200, YCC_420)
        tensor = jpeg.read(made.data).components[2].tensor
        gc.collect()
        others = [jpeg.read(pillow_jpeg(200, 200, seed=seed)) for seed in range(10)]
        np.testing.assert_array_equal(tensor.numpy(), made.coefficients[2])
        assert others

    def test_the_last_view_frees_the_buffer(self) -> None:
        gc.collect()
        before = _jpeg.live_buffers()
        image = jpeg.read(pillow_jpeg(64, 64), pixels=True)
        view = image.components[1].coefficients[1:, ::2]
        assert _jpeg.live_buffers() == before + 1
        del image
        assert _jpeg.live_buffers() == before + 1
        del view
        assert _jpeg.live_buffers() == before

    def test_errors_free_their_buffers(self) -> None:
        before = _jpeg.live_buffers()
        data = pillow_jpeg(64, 64)
        for offset in range(3, 400, 7):
            with pytest.raises(TruncatedJpegError):
                jpeg.read(truncated_at(data, offset), pixels=True)
        assert _jpeg.live_buffers() == before

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    def test_20000_decodes_do_not_grow_the_process(self) -> None:
        kinds = [pillow_jpeg(40, 30, mode, progressive=p) for mode in ("L", "RGB", "CMYK") for p in (False, True)]
        kinds += [(DATA / name).read_bytes() for name in ARITHMETIC]
        bad = [truncated_at(data, len(data) // 3) for data in kinds]
        bad += [b"", b"nothing", b"\xff\xd8", patched_size(kinds[0], 65500, 65500), kinds[0][:60] + bytes(400)]
        sources = kinds + bad

        def decode(count: int) -> None:
            for i in range(count):
                with contextlib.suppress(InputError):
                    jpeg.read(sources[i % len(sources)], pixels=i % 3 == 0, tolerant=i % 5 == 0)

        def resident_bytes() -> int:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")

        decode(2_000)
        before = resident_bytes()
        decode(20_000)
        assert resident_bytes() - before < 2 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system may hand out the same memory again")
class TestBuffersUsedAgain:
    """The C++ tests run under AddressSanitizer, where no buffer is used again."""

    @pytest.fixture(autouse=True)
    def _no_buffers(self) -> None:
        gc.collect()
        self.decode(512)  # as much as is kept: nothing else is then

    def decode(self, rows: int, columns: int = 512, progressive: bool = False) -> Any:
        """A flat picture of so many blocks; a row of 512 fills the smallest buffer that is used again, 64 KiB."""
        out = io.BytesIO()
        Image.new("L", (8 * columns, 8 * rows), 128).save(out, "JPEG", progressive=progressive)
        limits = jpeg.native_limits(jpeg.DEFAULT_LIMITS)
        return _jpeg.read(out.getvalue(), limits, pixels=False, scale=8, tolerant=False, apply_orientation=False)

    def address(self, rows: int, columns: int = 512) -> int:
        return int(self.decode(rows, columns).buffer_address)

    def test_by_pictures_that_need_them_to_half_at_least_and_no_others(self) -> None:
        first = self.address(4)
        assert self.address(4) == first
        assert self.address(2) == first
        assert self.address(3, columns=683) != first  # one block more than fits
        assert self.address(1) != first

    def test_the_smallest_that_fits(self) -> None:
        held = [self.decode(rows) for rows in (8, 5, 6)]
        smallest = held[1].buffer_address
        held.clear()
        assert self.address(5) == smallest

    def test_by_one_picture_at_a_time(self) -> None:
        for _ in range(3):
            held = [self.decode(1 + i % 3) for i in range(40)]
            assert len({decoded.buffer_address for decoded in held}) == 40
            for i, decoded in enumerate(held):
                decoded.coefficients[0][:] = i
            assert all((decoded.coefficients[0] == i).all() for i, decoded in enumerate(held))
            held.clear()

    def test_zeroed_where_a_decoder_does_not_fill_them(self) -> None:
        decoded = self.decode(1)
        address = decoded.buffer_address
        decoded.coefficients[0][:] = -1
        del decoded
        again = self.decode(1, progressive=True)
        assert again.buffer_address == address
        assert not again.coefficients[0].any()

    def test_as_long_as_they_are_no_more_than_32_mib(self) -> None:
        first, second = (self.decode(300) for _ in range(2))
        kept = second.buffer_address
        del first
        del second
        assert self.address(300) == kept


class TestThreads:
    def test_the_gil_is_released(self) -> None:
        data = pillow_jpeg(3000, 3000, "L", quality=95)
        ticks, seen = 0, []

        def decode() -> None:
            seen.append(ticks)
            jpeg.read(data, pixels=True)
            seen.append(ticks)

        # No thread is made to hand over the GIL in time, so this one runs between the two only where `read` does it.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            for _ in range(10):  # a busy machine may leave this thread out for as long as a picture takes
                thread = threading.Thread(target=decode)
                thread.start()
                while thread.is_alive():
                    ticks += 1
                    time.sleep(0.0005)
        finally:
            sys.setswitchinterval(interval)
        assert any(before < after for before, after in zip(seen[::2], seen[1::2], strict=True))

    def test_threads_share_nothing(self) -> None:
        files = [make_jpeg(90, 70, sampling, seed=seed) for seed, sampling in enumerate(SAMPLINGS.values())]

        def check(made: GeneratedJpeg) -> bool:
            with pytest.raises(TruncatedJpegError):
                jpeg.read(truncated_at(made.data, 40))
            image = jpeg.read(made.data, pixels=True)
            pairs = zip(image.components, made.coefficients, strict=True)
            return all(np.array_equal(component.coefficients, blocks) for component, blocks in pairs)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(check, files * 8))

    def test_threads_that_still_decode_when_the_process_ends_do_not_abort_it(self) -> None:
        program = """
import sys, threading, time
from afd_serve import jpeg
from afd_serve.models.backbones import Preprocessing
from afd_serve.preprocess import prepare
data = sys.stdin.buffer.read()
model = Preprocessing(64, 0.875, "bicubic", (0.0,) * 3, (1.0,) * 3)
for decode in (lambda: jpeg.read(data, pixels=True), lambda: jpeg.read_batch([data] * 2), lambda: prepare(data, model)):
    threading.Thread(target=lambda decode=decode: [decode() for _ in range(100_000)], daemon=True).start()
time.sleep(0.1)
"""
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, input=pillow_jpeg(640, 480), capture_output=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, b"")


class TestBatch:
    def test_results_and_failures_in_order(self, tmp_path: Path) -> None:
        path = tmp_path / "picture.jpg"
        path.write_bytes(pillow_jpeg(40, 30))
        good = [make_jpeg(30 + i, 20, YCC_420, seed=i) for i in range(20)]
        sources = [made.data for made in good]
        sources[3:3] = [b"", path, b"nothing", tmp_path / "none.jpg", truncated_at(sources[0], 40)]
        for threads in (1, 2, 5, None):
            results = jpeg.read_batch(sources, threads=threads, pixels=True)
            failures = [type(result) for result in results[3:8] if not isinstance(result, jpeg.JpegImage)]
            assert failures == [EmptyInputError, CorruptJpegError, FileNotFoundError, TruncatedJpegError]
            assert isinstance(results[4], jpeg.JpegImage)
            assert results[4].width == 40
            for made, image in zip(good, results[:3] + results[8:], strict=True):
                assert isinstance(image, jpeg.JpegImage)
                np.testing.assert_array_equal(image.components[0].coefficients, made.coefficients[0])
                np.testing.assert_array_equal(image.pixels, pillow_rgb(made.data))

    def test_failures_are_those_of_read(self) -> None:
        sources = [
            b"",
            b"nothing",
            patched_size(pillow_jpeg(8, 8), 65500, 65500),
            truncated_at(pillow_jpeg(64, 64), 99),
            "no/such/file.jpg",
            "a name with a \0.jpg",
            "half a character \ud800.jpg",
        ]
        for source, failure in zip(sources, jpeg.read_batch(sources), strict=True):
            with pytest.raises(type(failure), match=re.escape(str(failure))):  # type: ignore[arg-type]
                jpeg.read(source)

    def test_nothing_and_wrong_arguments(self) -> None:
        assert jpeg.read_batch([]) == []
        with pytest.raises(ValueError, match="threads"):
            jpeg.read_batch([b""], threads=0)
        with pytest.raises(ValueError, match="scale"):
            jpeg.read_batch([b""], scale=9)
        with pytest.raises(TypeError):
            jpeg.read_batch([3])  # type: ignore[list-item]

    def test_an_interruption_ends_it(self) -> None:
        data = pillow_jpeg(160, 120, quality=95, progressive=True)
        last = np.full(160 * 120 * 3, 9999, np.int16)
        # So many that none but a thread which sleeps for seconds comes too late to interrupt them.
        outs = [*[jpeg.JpegOutput()] * 9_999, jpeg.JpegOutput(coefficients=last)]
        gc.collect()
        before = _jpeg.live_buffers()
        main_thread = threading.main_thread().ident
        assert main_thread is not None

        def interrupt_once_it_runs() -> None:
            while _jpeg.live_buffers() == before:
                time.sleep(0.001)
            signal.pthread_kill(main_thread, signal.SIGINT)

        # Where a shell has started Python in the background, SIGINT is ignored.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            thread = threading.Thread(target=interrupt_once_it_runs, daemon=True)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                jpeg.read_batch([data] * len(outs), threads=2, out=outs)
            thread.join()
        finally:
            signal.signal(signal.SIGINT, previous)
        assert (last == 9999).all()
        assert _jpeg.live_buffers() == before
        assert len(jpeg.read_batch([data] * 3)) == 3

    def test_a_signal_that_is_handled_does_not_end_it(self) -> None:
        data, before, handled = pillow_jpeg(160, 120), _jpeg.live_buffers(), []
        previous = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))

        def send_once_it_runs() -> None:
            while _jpeg.live_buffers() == before:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGUSR1)

        try:
            thread = threading.Thread(target=send_once_it_runs, daemon=True)
            thread.start()
            results = jpeg.read_batch([data] * 2000, threads=2)
            thread.join()
        finally:
            signal.signal(signal.SIGUSR1, previous)
        assert handled == [signal.SIGUSR1]
        assert all(isinstance(result, jpeg.JpegImage) for result in results)

    def test_other_threads_read_batches_too(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            (result,) = pool.submit(jpeg.read_batch, [pillow_jpeg(64, 64)]).result()
        assert isinstance(result, jpeg.JpegImage)

    def test_views_own_their_memory(self) -> None:
        gc.collect()
        before = _jpeg.live_buffers()
        results = jpeg.read_batch([pillow_jpeg(64, 64)] * 10 + [pillow_jpeg(64, 64)[:-50]] * 10, threads=3)
        assert _jpeg.live_buffers() == before + 10
        del results
        assert _jpeg.live_buffers() == before
