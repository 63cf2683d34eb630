"""JPEG bytes to quantized DCT coefficients, quantization tables and RGB pixels, from one entropy decode.

``python -m afd_serve.jpeg`` says how the extension was built and which decoder it chooses here.

This module is the public face of the C++ extension's reader. Coefficients are views of the decoder's own memory:
nothing is copied, and a view keeps that memory alive. Of the memory that results have given back, the process keeps up
to 32 MiB for the next ones.
"""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch

from afd_serve import __version__, _jpeg
from afd_serve.errors import InputError, JpegTooLargeError, OutputTooSmallError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    JpegSource: TypeAlias = Buffer | str | os.PathLike[str]

__all__ = [
    "CODEC",
    "ColorSpace",
    "JpegComponent",
    "JpegComponentHeader",
    "JpegHeader",
    "JpegImage",
    "JpegLimits",
    "JpegOutput",
    "is_jpeg",
    "native_limits",
    "read",
    "read_batch",
    "read_header",
]

CODEC: Final = _jpeg.codec
"""Name and version of the library that the extension was built with."""

ColorSpace = Literal["grayscale", "ycbcr", "rgb", "cmyk", "ycck"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegLimits:
    """What one picture may cost; all limits are checked before the memory or the time is spent.

    Attributes:
        max_pixels: Width times height. 100 million holds what cameras and phones write (the largest common sensors but
            one give 50 and 100 megapixels) and keeps a decode near one second.
        max_bytes: Size of the file.
        max_scans: Scans of a progressive or multi-scan file. Encoders write about 10; the standard allows any number,
            each of which can cost as much as a picture.
        max_memory_bytes: Coefficients (two bytes each, padded to whole MCUs) and pixels together. The default holds
            a 4:4:4 picture of ``max_pixels`` with its pixels. Work space comes on top: the size of the file, and a
            sixteenth of the coefficients for progressive ones.
        max_blocks_per_byte: 8x8 blocks of all components per byte of the file. A Huffman-coded block takes one bit at
            least, so that 8 refuses no complete one. Pictures of up to 65,536 blocks are exempt.
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 64 << 20
    max_scans: int = 64
    max_memory_bytes: int = 1 << 30
    max_blocks_per_byte: float = 8.0

    def __post_init__(self) -> None:
        """Refuses values that cannot be limits.

        Raises:
            ValueError: A limit is not positive.
        """
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"JpegLimits.{name} must be positive, not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegComponentHeader:
    """What the header says of one component.

    Attributes:
        component_id: The identifier in the file (1, 2, 3 for the Y, Cb, Cr of JFIF).
        h: Horizontal sampling factor, 1 to 4.
        v: Vertical sampling factor, 1 to 4.
        width_in_blocks: Blocks per row, without the padding to whole MCUs.
        height_in_blocks: Rows of blocks, without the padding to whole MCUs.
        quant_table: uint16 ``[8, 8]``, natural order; None if it is defined only after the first scan begins.
    """

    component_id: int
    h: int
    v: int
    width_in_blocks: int
    height_in_blocks: int
    quant_table: "NDArray[np.uint16] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegHeader:
    """Everything known before the first scan.

    Attributes:
        width: Width in pixels, as stored.
        height: Height in pixels, as stored.
        color_space: What the components mean, from their number and ids and the JFIF and Adobe markers.
        components: The components, in the file's order.
        precision: Bits per sample; 8.
        progressive: Whether the process is progressive.
        arithmetic: Whether the entropy coding is arithmetic.
        restart_interval: MCUs between restart markers; 0 for none.
        orientation: EXIF orientation, 1 to 8; 1 (upright) if the file does not say.
        adobe_transform: Transform byte of the Adobe marker (0 none, 1 YCbCr, 2 YCCK); None without the marker.
    """

    width: int
    height: int
    color_space: ColorSpace
    components: tuple[JpegComponentHeader, ...]
    precision: int
    progressive: bool
    arithmetic: bool
    restart_interval: int
    orientation: int
    adobe_transform: int | None

    @property
    def coefficient_count(self) -> int:
        """Coefficients of all components with their padding to whole MCUs: what a :class:`JpegOutput` has to hold."""
        return sum(
            64 * (-(-c.height_in_blocks // c.v) * c.v) * (-(-c.width_in_blocks // c.h) * c.h) for c in self.components
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JpegComponent:
    """One component of a decoded picture.

    Attributes:
        component_id: The identifier in the file (1, 2, 3 for the Y, Cb, Cr of JFIF).
        coefficients: Quantized, int16 ``[height_in_blocks, width_in_blocks, 8, 8]``, natural order (rows are vertical
            frequencies). A writable view of the decoder's buffer. Its rows are strided where the buffer is padded to
            whole MCUs. All components of a picture share one buffer, which lives as long as any view of it.
        quant_table: uint16 ``[8, 8]``, natural order: the table that was in force at the component's first scan.
        h: Horizontal sampling factor, 1 to 4.
        v: Vertical sampling factor, 1 to 4.
    """

    component_id: int
    coefficients: "NDArray[np.int16]"
    quant_table: "NDArray[np.uint16]"
    h: int
    v: int

    @property
    def height_in_blocks(self) -> int:
        """Rows of blocks."""
        return int(self.coefficients.shape[0])

    @property
    def width_in_blocks(self) -> int:
        """Blocks per row."""
        return int(self.coefficients.shape[1])

    @property
    def tensor(self) -> torch.Tensor:
        """The coefficients as an int16 tensor over the same memory."""
        return torch.from_numpy(self.coefficients)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JpegImage:
    """A decoded picture.

    Attributes:
        width: Width in pixels, as stored: ``scale`` and ``apply_orientation`` do not change it.
        height: Height in pixels, as stored.
        color_space: What the components mean.
        components: The components, in the file's order, always as stored, whatever the orientation.
        pixels: RGB, uint8 ``[H, W, 3]``, scaled and oriented as asked; None if not asked for.
        orientation: EXIF orientation in the file, 1 to 8; 1 if the file does not say.
        progressive: Whether the process is progressive.
        arithmetic: Whether the entropy coding is arithmetic.
        restart_interval: MCUs between restart markers; 0 for none.
        warnings: The codec's warnings, in its own words: the first 16.
        warning_count: The number of all warnings.
    """

    width: int
    height: int
    color_space: ColorSpace
    components: tuple[JpegComponent, ...]
    pixels: "NDArray[np.uint8] | None"
    orientation: int
    progressive: bool
    arithmetic: bool
    restart_interval: int
    warnings: tuple[str, ...]
    warning_count: int


_jpeg.set_result_types(JpegImage, JpegComponent)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JpegOutput:
    """Memory that a picture is decoded into, in place of fresh memory: used again for the next one, or pinned.

    Each array may have any shape; a picture takes its beginning, and the :class:`JpegImage` has views of it. They show
    something else once the memory is used again. Where :func:`read` raises, the memory holds anything.

    Attributes:
        coefficients: int16, writable, C-contiguous, aligned to 16 bytes, as NumPy's and torch's allocations are. It
            takes all components, one after the other, padded to whole MCUs: ``JpegHeader.coefficient_count`` values.
            None for fresh memory.
        pixels: uint8, likewise; it takes ``height * width * 3`` values, as scaled. None for fresh memory.
    """

    coefficients: "NDArray[np.int16] | torch.Tensor | None" = None
    pixels: "NDArray[np.uint8] | torch.Tensor | None" = None


DEFAULT_LIMITS = JpegLimits()


def is_jpeg(data: "Buffer") -> bool:
    """Returns whether the bytes begin as a JPEG does: SOI and the first byte of another marker.

    Source: ITU-T T.81, B.2.1.
    """
    return bytes(memoryview(data)[:3]) == b"\xff\xd8\xff"


def read_header(source: "JpegSource", *, limits: JpegLimits = DEFAULT_LIMITS) -> JpegHeader:
    """Reads what comes before the first scan.

    Nothing is allocated in proportion to the picture, so that only ``limits.max_bytes`` applies.

    Args:
        source: The file's bytes in any contiguous buffer (bytes, bytearray, memoryview, mmap, ...), or its path.
        limits: Limits on the file.

    Returns:
        The header.

    Raises:
        EmptyInputError: There are no bytes.
        CorruptJpegError: Not a JPEG, or its header violates the standard.
        TruncatedJpegError: The bytes end inside the header.
        UnsupportedJpegError: A process that this build cannot decode.
        JpegTooLargeError: The file passes ``max_bytes``.
        OSError: The path cannot be read.
    """
    header = _jpeg.read_header(_bytes_of(source, limits), native_limits(limits))
    return JpegHeader(
        width=header.width,
        height=header.height,
        color_space=header.color_space,
        components=tuple(
            JpegComponentHeader(
                component_id=component.id,
                h=component.h,
                v=component.v,
                width_in_blocks=component.width_in_blocks,
                height_in_blocks=component.height_in_blocks,
                quant_table=component.quant_table,
            )
            for component in header.components
        ),
        precision=header.precision,
        progressive=header.progressive,
        arithmetic=header.arithmetic,
        restart_interval=header.restart_interval,
        orientation=header.orientation,
        adobe_transform=header.adobe_transform,
    )


def read(
    source: "JpegSource",
    *,
    pixels: bool = False,
    scale: int = 8,
    tolerant: bool = False,
    apply_orientation: bool = False,
    limits: JpegLimits = DEFAULT_LIMITS,
    out: JpegOutput | None = None,
) -> JpegImage:
    """Decodes a picture: coefficients and tables always, pixels on request, from one entropy decode.

    The GIL is released while decoding. Do not change a mutable buffer meanwhile.

    Args:
        source: The file's bytes in any contiguous buffer (bytes, bytearray, memoryview, mmap, ...), or its path.
        pixels: Whether to also make RGB pixels: accurate integer IDCT, smooth chroma upsampling.
        scale: Size of the pixels in eighths, 1 to 8, made by a smaller IDCT; each side is rounded up.
        tolerant: Whether damaged and truncated files give what could be decoded, with warnings. What was not decoded
            is zero. Faults in front of the first scan, a second frame, unsupported processes and limits are raised
            all the same.
        apply_orientation: Whether the pixels are turned upright as EXIF says. The coefficients stay as stored.
        limits: Limits on the file and on what decoding it may cost.
        out: Memory for the result; fresh memory by default. Do not touch it meanwhile.

    Returns:
        The picture. A file whose only fault is a missing end marker is complete; it has a warning.

    Raises:
        EmptyInputError: There are no bytes.
        CorruptJpegError: Not a JPEG, or it violates the standard.
        TruncatedJpegError: The bytes end before the picture does.
        UnsupportedJpegError: A process that this build cannot decode (lossless, 12-bit, hierarchical, ...).
        JpegTooLargeError: A limit is passed; the message names it.
        MemoryError: The system refused memory that the limits allow.
        OSError: The path cannot be read.
        OutputTooSmallError: ``out`` cannot hold the picture.
        TypeError: ``out`` holds something else than contiguous int16 and uint8 arrays in the processor's memory.
        ValueError: ``scale`` is not in 1 to 8; or ``out`` is read-only, not aligned, or overlaps itself.

    Source: ITU-T T.81; the pixels are those of libjpeg-turbo's ``JDCT_ISLOW`` with fancy upsampling.
    """
    return _jpeg.read(
        _bytes_of(source, limits),
        native_limits(limits),
        pixels=pixels,
        scale=scale,
        tolerant=tolerant,
        apply_orientation=apply_orientation,
        output=_native_output(out),
    ).image()


def read_batch(
    sources: "Iterable[JpegSource]",
    *,
    threads: int | None = None,
    pixels: bool = False,
    scale: int = 8,
    tolerant: bool = False,
    apply_orientation: bool = False,
    limits: JpegLimits = DEFAULT_LIMITS,
    out: "Sequence[JpegOutput] | None" = None,
) -> "list[JpegImage | InputError | OutputTooSmallError | MemoryError | OSError]":
    """Decodes pictures as :func:`read` does, in threads without the GIL; one bad picture does not harm the others.

    Args:
        sources: Each is one picture, as for :func:`read`.
        threads: Pictures decoded at the same time; as many as this process may use cores by default.
        pixels: As for :func:`read`.
        scale: As for :func:`read`.
        tolerant: As for :func:`read`.
        apply_orientation: As for :func:`read`.
        limits: Limits on each picture. Up to ``threads`` of them are decoded at a time, and the results of all of them
            are in memory in the end.
        out: Memory for each result, none of which overlap; fresh memory by default. Do not touch it meanwhile.

    Returns:
        For each source, in order, the picture or the exception that :func:`read` would raise.

    Raises:
        TypeError: A source is no contiguous buffer and no path, or as for :func:`read`.
        ValueError: ``scale`` is not in 1 to 8, ``threads`` is not positive, there are more or fewer members of ``out``
            than sources, or as for :func:`read`.
    """
    opened = [_bytes_or_failure(source, limits) for source in sources]
    if out is not None and len(out) != len(opened):
        raise ValueError(f"{len(out)} outputs for {len(opened)} sources")
    readable = [i for i, source in enumerate(opened) if not isinstance(source, Exception)]
    decoded = iter(
        _jpeg.read_batch(
            [opened[i] for i in readable],
            native_limits(limits),
            threads=_usable_cores() if threads is None else threads,
            pixels=pixels,
            scale=scale,
            tolerant=tolerant,
            apply_orientation=apply_orientation,
            outputs=[] if out is None else [_native_output(out[i]) for i in readable],
        )
    )
    results = [source if isinstance(source, Exception) else next(decoded) for source in opened]
    return [result.image() if isinstance(result, _jpeg.DecodedJpeg) else result for result in results]


def _bytes_or_failure(source: "JpegSource", limits: JpegLimits) -> "Buffer | OSError | JpegTooLargeError":
    try:
        return _bytes_of(source, limits)
    except (OSError, JpegTooLargeError) as failure:
        return failure


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _native_output(out: JpegOutput | None) -> tuple[Any, Any]:
    return (None, None) if out is None else (_array_over(out.coefficients), _array_over(out.pixels))


def _array_over(memory: "NDArray[Any] | torch.Tensor | None") -> "NDArray[Any] | None":
    """Returns a NumPy array over the memory."""
    return memory.detach().numpy() if isinstance(memory, torch.Tensor) else memory


def native_limits(limits: JpegLimits) -> _jpeg.Limits:
    """Returns the limits as the extension takes them."""
    return _NATIVE_DEFAULT_LIMITS if limits is DEFAULT_LIMITS else _made_native(limits)


def _made_native(limits: JpegLimits) -> _jpeg.Limits:
    return _jpeg.Limits(
        max_pixels=limits.max_pixels,
        max_bytes=limits.max_bytes,
        max_scans=limits.max_scans,
        max_memory_bytes=limits.max_memory_bytes,
        max_blocks_per_byte=limits.max_blocks_per_byte,
    )


_NATIVE_DEFAULT_LIMITS: Final = _made_native(DEFAULT_LIMITS)


def _bytes_of(source: "JpegSource", limits: JpegLimits) -> "Buffer":
    """Returns the source's bytes; a file that passes the limit is refused unread."""
    if not isinstance(source, str | os.PathLike):
        return source
    with Path(source).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limits.max_bytes:
            raise JpegTooLargeError(
                f"{size} bytes exceed the limit of {limits.max_bytes}; pass JpegLimits(max_bytes=...) to allow more"
            )
        return file.read()


def _build_facts() -> str:
    """Returns what a bug report should say of the extension."""
    chosen = "AVX2 and BMI2" if _jpeg.vector_decoder else "portable, for want of AVX2 and BMI2"
    facts = {
        "afd-serve": __version__,
        "codec": CODEC,
        "decoder": chosen,
        "compiler": _jpeg.compiler,
        "flags": _jpeg.build_flags or "none",
        "extension": _jpeg.__file__,
    }
    return "\n".join(f"{name:<10} {fact}" for name, fact in facts.items())


if __name__ == "__main__":
    sys.stdout.write(_build_facts() + "\n")
