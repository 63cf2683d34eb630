"""Types of the C++ extension; see csrc/module.cpp."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from afd_serve.errors import InputError, OutputTooSmallError
from afd_serve.jpeg_types import ColorSpace, JpegComponent, JpegImage

Decoder = Literal["fastest", "portable", "libjpeg"]
Instructions = Literal["fastest", "avx2", "portable"]
Interpolation = Literal["bicubic", "bilinear"]
_Box = tuple[float, float, float, float]

codec: str
compiler: str
build_flags: str
vector_decoder: bool

class Limits:
    def __init__(
        self,
        *,
        max_pixels: int,
        max_bytes: int,
        max_scans: int,
        max_memory_bytes: int,
        max_blocks_per_byte: float,
        max_scan_blocks: int,
        max_arithmetic_blocks: int,
    ) -> None: ...

class Component:
    @property
    def id(self) -> int: ...
    @property
    def h(self) -> int: ...
    @property
    def v(self) -> int: ...
    @property
    def width_in_blocks(self) -> int: ...
    @property
    def height_in_blocks(self) -> int: ...
    @property
    def quant_table(self) -> NDArray[np.uint16] | None: ...

class Header:
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def precision(self) -> int: ...
    @property
    def color_space(self) -> ColorSpace: ...
    @property
    def progressive(self) -> bool: ...
    @property
    def arithmetic(self) -> bool: ...
    @property
    def restart_interval(self) -> int: ...
    @property
    def orientation(self) -> int: ...
    @property
    def adobe_transform(self) -> int | None: ...
    @property
    def components(self) -> list[Component]: ...

class DecodedJpeg:
    @property
    def header(self) -> Header: ...
    @property
    def coefficients(self) -> list[NDArray[np.int16]]: ...
    @property
    def pixels(self) -> NDArray[np.uint8] | None: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def warning_count(self) -> int: ...
    @property
    def buffer_address(self) -> int: ...
    @property
    def buffer_bytes(self) -> int: ...
    @property
    def own_scans(self) -> int: ...
    def image(self) -> JpegImage: ...

def read_header(source: Any, limits: Limits) -> Header: ...
def read(
    source: Any,
    limits: Limits,
    *,
    pixels: bool,
    scale: int,
    tolerant: bool,
    apply_orientation: bool,
    decoder: Decoder = "fastest",
    output: tuple[Any, Any] = ...,
) -> DecodedJpeg: ...
def read_batch(
    sources: list[Any],
    limits: Limits,
    *,
    threads: int,
    pixels: bool,
    scale: int,
    tolerant: bool,
    apply_orientation: bool,
    decoder: Decoder = "fastest",
    outputs: list[tuple[Any, Any]] = ...,
) -> list[DecodedJpeg | InputError | OutputTooSmallError | MemoryError]: ...
def set_result_types(image: type[JpegImage], component: type[JpegComponent]) -> None: ...
def live_buffers() -> int: ...

class BlockFeatures:
    @property
    def dequantized(self) -> NDArray[np.int16]: ...  # [G, G, 192]
    @property
    def quant_tables(self) -> NDArray[np.int32]: ...  # [3, 64]
    @property
    def quality(self) -> int: ...
    @property
    def resaved(self) -> bool: ...

class PreparedJpeg:
    @property
    def rgb(self) -> NDArray[np.uint8]: ...  # [S, S, 3]
    @property
    def features(self) -> BlockFeatures: ...
    @property
    def box(self) -> _Box: ...
    @property
    def subsampling(self) -> tuple[float, float]: ...

def prepare(
    source: Any,
    limits: Limits,
    *,
    size: int,
    crop_fraction: float | None,
    interpolation: Interpolation,
    instructions: Instructions = "fastest",
) -> PreparedJpeg | None: ...
def resample(
    pixels: NDArray[np.uint8],
    box: _Box,
    size: int,
    interpolation: Interpolation,
    *,
    orientation: int = 1,
    instructions: Instructions = "fastest",
) -> NDArray[np.uint8]: ...
def block_features(blocks: NDArray[np.int16], quant_tables: NDArray[np.uint16], orientation: int) -> BlockFeatures: ...
def mean_magnitudes(dequantized: NDArray[np.int16]) -> NDArray[np.float32]: ...  # [N, 192] of [N, G, G, 192]
def block_grid(
    box: _Box,
    size: int,
    width_in_blocks: int,
    height_in_blocks: int,
    block_width_px: float,
    block_height_px: float,
    orientation: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def crop_box(width: int, height: int, crop_fraction: float, orientation: int) -> tuple[int, int, int, int]: ...
def decoding_scale(box: _Box, size: int) -> int: ...
def scaled_table(quality: int, chroma: bool) -> NDArray[np.uint16]: ...
def estimate_quality(quant_table: NDArray[np.uint16]) -> int: ...
def earlier_quality(
    dequantized: NDArray[np.int16], quant_table: NDArray[np.uint16], *, instructions: Instructions = "fastest"
) -> int | None: ...
