"""Which decoder runs makes no difference but speed."""

import itertools
import re
from typing import Any, ClassVar

import numpy as np
import pytest

from afd_serve import _jpeg, jpeg
from afd_serve.errors import (
    JpegError,
)
from tests.jpeg_files import (
    PROCESSES,
    SAMPLINGS,
    YCC_420,
    make_jpeg,
    pillow_jpeg,
)


class TestDecoders:
    """Ours and libjpeg's do the same to every file; csrc/tests and csrc/fuzz go deeper."""

    OPTIONS: ClassVar[dict[str, Any]] = {"pixels": True, "scale": 8, "apply_orientation": False}

    def outcome(self, data: bytes, decoder: Any, tolerant: bool) -> tuple[Any, ...]:
        limits = jpeg.native_limits(jpeg.DEFAULT_LIMITS)
        try:
            decoded = _jpeg.read(data, limits, tolerant=tolerant, decoder=decoder, **self.OPTIONS)
        except JpegError as error:
            return type(error), str(error)
        arrays = [*decoded.coefficients, decoded.pixels]
        tables = [component.quant_table for component in decoded.header.components]
        return [a.tobytes() for a in [*arrays, *tables]], decoded.warnings, decoded.warning_count

    def assert_equal(self, data: bytes) -> None:
        for tolerant in (False, True):
            expected = self.outcome(data, "libjpeg", tolerant)
            for decoder in ("fastest", "portable"):
                assert self.outcome(data, decoder, tolerant) == expected

    @pytest.mark.parametrize("name", SAMPLINGS)
    def test_on_sound_and_damaged_files(self, name: str) -> None:
        rng = np.random.default_rng(0)
        for process, interleaved, restart_interval in itertools.product(PROCESSES, (True, False), (0, 2)):
            made = make_jpeg(
                37,
                29,
                SAMPLINGS[name],
                process=process,  # type: ignore[arg-type]
                interleaved=interleaved,
                restart_interval=restart_interval,
            )
            self.assert_equal(made.data)
            for _ in range(20):
                damaged = bytearray(made.data)
                damaged[rng.integers(300, len(damaged))] = rng.choice([0, 0xFF, 0xD1, 0xD9, rng.integers(256)])
                self.assert_equal(bytes(damaged))
                self.assert_equal(bytes(damaged[: rng.integers(300, len(damaged))]) + b"\xff\xd9")

    @pytest.mark.parametrize("interleaved", [True, False])
    @pytest.mark.parametrize("name", SAMPLINGS)
    def test_ours_takes_every_sequential_scan(self, name: str, interleaved: bool) -> None:
        sampling = SAMPLINGS[name]
        for restart_interval in (0, 3):
            data = make_jpeg(37, 29, sampling, interleaved=interleaved, restart_interval=restart_interval).data
            for decoder in ("fastest", "portable"):
                limits = jpeg.native_limits(jpeg.DEFAULT_LIMITS)
                decoded = _jpeg.read(data, limits, tolerant=False, decoder=decoder, **self.OPTIONS)  # type: ignore[arg-type]
                assert decoded.own_scans == (1 if interleaved else len(sampling))

    @pytest.mark.parametrize("name", SAMPLINGS)
    def test_ours_takes_every_progressive_scan(self, name: str) -> None:
        for restart_interval in (0, 3):
            data = make_jpeg(37, 29, SAMPLINGS[name], process="progressive", restart_interval=restart_interval).data
            for decoder in ("fastest", "portable"):
                limits = jpeg.native_limits(jpeg.DEFAULT_LIMITS)
                decoded = _jpeg.read(data, limits, tolerant=False, decoder=decoder, **self.OPTIONS)  # type: ignore[arg-type]
                assert decoded.own_scans == len(re.findall(rb"\xff\xda", data))

    def test_a_progressive_file_that_ends_between_scans(self) -> None:
        data = make_jpeg(37, 29, YCC_420, process="progressive").data
        for match in re.finditer(rb"\xff\xda", data):
            self.assert_equal(data[: match.start()] + b"\xff\xd9")
            self.assert_equal(data[: match.start()])
            self.assert_equal(data[: match.start() + 40] + b"\xff\xd9")

    def test_a_component_that_comes_twice(self) -> None:
        made, other = (make_jpeg(30, 20, SAMPLINGS["444"], interleaved=False, seed=seed).data for seed in (0, 1))
        _, second, _, end = (match.start() for match in re.finditer(rb"\xff[\xda\xd9]", made))
        again = other[other.index(b"\xff\xda") :]
        again = again[: again.index(b"\xff\xda", 2)]
        self.assert_equal(made[:second] + again + made[second:])
        self.assert_equal(made[:end] + again + made[end:])
        self.assert_equal(made[:end] + again[:-40] + made[end:])

    def test_names_are_checked(self) -> None:
        with pytest.raises(ValueError, match="fastest, portable or libjpeg"):
            self.outcome(pillow_jpeg(8, 8), "none", False)
