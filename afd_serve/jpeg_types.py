"""What goes into reading a JPEG and what comes out: limits, headers, components, pictures."""

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "ColorSpace",
    "JpegComponent",
    "JpegComponentHeader",
    "JpegHeader",
    "JpegImage",
    "JpegLimits",
    "JpegOutput",
]

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
        max_scan_blocks: 8x8 blocks of all scans together. A progressive file has each block in several scans, of which
            those that change nothing take hardly any bytes. The default holds 100 megapixels in 4:4:4 with the scans
            that encoders write, about five times each block.
        max_arithmetic_blocks: 8x8 blocks of all components of an arithmetic-coded file. Such a block can take 10
            microseconds and next to no bytes, so that the default bounds a decode to about one second. It holds 4.2
            megapixels in 4:2:0. Blocks that come again in a later scan count again, unless it only refines them.
        max_other_pixels: Width times height of a picture that is no JPEG, besides ``max_pixels``; only
            `afd_serve.preprocess.prepare` reads such pictures. They are decoded whole, whatever the model's size, and
            in most formats a few kilobytes fill any number of pixels. 25 million hold a camera's 24 megapixels and a
            screen of 6016x3384.
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 64 << 20
    max_scans: int = 64
    max_memory_bytes: int = 1 << 30
    max_blocks_per_byte: float = 8.0
    max_scan_blocks: int = 40_000_000
    max_arithmetic_blocks: int = 100_000
    max_other_pixels: int = 25_000_000

    def __post_init__(self) -> None:
        """Refuses values that cannot be limits.

        Raises:
            ValueError: A limit is not positive, or a whole number larger than any size in memory.
        """
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"JpegLimits.{name} must be positive, not {value}")
            if isinstance(value, int) and value > sys.maxsize:
                raise ValueError(f"JpegLimits.{name} must be {sys.maxsize} at most, not {value}")


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
