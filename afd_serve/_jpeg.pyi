"""Types of the C++ extension; see csrc/module.cpp."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from afd_serve.errors import InputError

ColorSpace = Literal["grayscale", "ycbcr", "rgb", "cmyk", "ycck"]
Decoder = Literal["fastest", "portable", "libjpeg"]

codec: str
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
) -> list[DecodedJpeg | InputError | MemoryError]: ...
def live_buffers() -> int: ...
