"""JPEG bytes to quantized DCT coefficients, quantization tables and RGB pixels, from one entropy decode.

``python -m afd_serve.jpeg`` says how the extension was built and which decoder it chooses here.

This module is the public face of the C++ extension's reader; its types lie in `jpeg_types`. Coefficients are views of
the decoder's own memory: nothing is copied, and a view keeps that memory alive. Of the memory that results have given
back, the process keeps up to 32 MiB for the next ones.
"""

import errno
import operator
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias

import torch

from afd_serve import __version__, _jpeg
from afd_serve.cores import usable_cores
from afd_serve.errors import InputError, JpegTooLargeError, OutputTooSmallError
from afd_serve.jpeg_types import (
    ColorSpace,
    JpegComponent,
    JpegComponentHeader,
    JpegHeader,
    JpegImage,
    JpegLimits,
    JpegOutput,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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

_jpeg.set_result_types(JpegImage, JpegComponent)

DEFAULT_LIMITS = JpegLimits()


def is_jpeg(data: "Buffer") -> bool:
    """Returns whether the bytes begin as a JPEG does: SOI and the first byte of another marker.

    Source: ITU-T T.81, B.2.1.
    """
    view = memoryview(data)
    return view.nbytes > 0 and bytes(view.cast("B")[:3]) == b"\xff\xd8\xff"  # what is empty cannot always be cast


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
        TypeError: The source is no contiguous buffer and no path.
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
        The picture. A Huffman-coded file whose only fault is a missing end marker is complete; it has a warning.

    Raises:
        EmptyInputError: There are no bytes.
        CorruptJpegError: Not a JPEG, or it violates the standard.
        TruncatedJpegError: The bytes end before the picture does.
        UnsupportedJpegError: A process that this build cannot decode (lossless, 12-bit, hierarchical, ...).
        JpegTooLargeError: A limit is passed; the message names it.
        MemoryError: The system refused memory that the limits allow.
        OSError: The path cannot be read.
        OutputTooSmallError: ``out`` cannot hold the picture.
        TypeError: The source is no contiguous buffer and no path, ``scale`` is no whole number, or ``out`` holds
            something else than contiguous int16 and uint8 arrays in the processor's memory.
        ValueError: ``scale`` is not in 1 to 8; or ``out`` is read-only, not aligned, or overlaps itself or the source.

    Source: ITU-T T.81; the pixels are those of libjpeg-turbo's ``JDCT_ISLOW`` with fancy upsampling.
    """
    return _jpeg.read(
        _bytes_of(source, limits),
        native_limits(limits),
        pixels=pixels,
        scale=_within(scale, "scale", 8),
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
        out: Memory for each result, none of which overlap each other or a source; fresh memory by default. Do not touch
            it meanwhile.

    Returns:
        For each source, in order, the picture or the exception that :func:`read` would raise.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and this is the main thread: no further picture is begun. The same goes
            for whatever a signal's handler raises.
        TypeError: As for :func:`read`.
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
            threads=usable_cores() if threads is None else _within(threads, "threads"),
            pixels=pixels,
            scale=_within(scale, "scale", 8),
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


def _within(value: int, name: str, most: int = sys.maxsize) -> int:
    """Returns the number; the extension would write the whole picture into the message of its own refusal."""
    number = operator.index(value)
    if not 1 <= number <= most:
        raise ValueError(f"{name} must be 1 to {most}, not {number}")
    return number


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
        max_scan_blocks=limits.max_scan_blocks,
        max_arithmetic_blocks=limits.max_arithmetic_blocks,
    )


_NATIVE_DEFAULT_LIMITS: Final = _made_native(DEFAULT_LIMITS)


_READ_AT_ONCE: Final = 2**16
"""Bytes, where a file does not say how many it has."""


def _bytes_of(source: "JpegSource", limits: JpegLimits) -> "Buffer":
    """Returns the source's bytes; a file that passes the limit is refused unread, and a pipe once it does."""
    if not isinstance(source, str | os.PathLike):
        if not memoryview(source).c_contiguous:
            raise TypeError("the bytes do not lie one behind the other; pass a contiguous copy of them")
        return source
    with _opened(source) as file:
        expected, count, parts = os.fstat(file.fileno()).st_size, 0, []
        _check_bytes(expected, limits)
        while part := file.read(max(expected - count, _READ_AT_ONCE)):
            parts.append(part)
            count += len(part)
            _check_bytes(count, limits)
        return b"".join(parts)


def _check_bytes(count: int, limits: JpegLimits) -> None:
    if count > limits.max_bytes:
        raise JpegTooLargeError(
            f"{count} bytes exceed the limit of {limits.max_bytes}; pass JpegLimits(max_bytes=...) to allow more"
        )


def _opened(path: "str | os.PathLike[str]") -> BinaryIO:
    try:
        return Path(path).open("rb")
    except ValueError as error:  # a name that no file can have: with a NUL in it, or half of a character
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error


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
