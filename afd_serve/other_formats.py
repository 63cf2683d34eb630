"""Pictures in other formats than JPEG, as Pillow reads them: their pixels, at a cost that is known before.

Note [Bounds on Pillow]
    A file of a few kilobytes can claim any number of pixels, and Pillow has work for more than them. So

    - pixels are counted before any is decoded, against a limit below that of JPEGs: a JPEG is decoded at a scale that
      suits the model, all else whole;
    - what Pillow decodes in Python (run-length BMP, plain PPM, PPM of other than 8 bits per sample and PGM of other
      than 8 or 16; up to a microsecond for each sample) is refused, as are formats whose decoder has no bound of its
      own, see `FORMATS`;
    - a file is read in so many steps at most, because Pillow walks through a PNG's chunks and a GIF's blocks in Python;
    - a TIFF has so many strips or tiles at most, for each of which Pillow makes an object, and no tile is larger than a
      picture may be, because libtiff makes room for the whole tile.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import (  # the readers register themselves; else the first picture would import those of all formats
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from afd_serve import jpeg
from afd_serve.errors import InputError, NotAnImageError, PictureTooLargeError
from afd_serve.forks import lock_across_forks
from afd_serve.jpeg_types import JpegLimits

__all__ = ["FORMATS", "PICTURE_SUFFIXES", "UNREADABLE", "Buffer", "as_rgb", "decode", "pixels_to_decode"]

Buffer = bytes | bytearray | memoryview

UNREADABLE: Final = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, NotAnImageError)
"""What Pillow raises on bad files, and `as_rgb` on pictures whose samples it cannot interpret."""

FORMATS: Final = ("PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""What Pillow may open: no format that starts another program (EPS) or that nobody uploads, and no JPEG 2000, of which
OpenJPEG decodes as many layers of as many tiles as the header claims: 300 kB can take minutes."""

PICTURE_SUFFIXES: Final = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif"),
        *(".png", ".apng", ".webp", ".avif", ".avifs", ".gif", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
"""Suffixes, in lower case, of the files that `prepare` reads: JPEGs and `FORMATS`, without PFM, whose samples are
floating-point numbers. What takes pictures from folders goes by these."""

_PILLOW: Final = lock_across_forks()
"""Filters of warnings are the whole process's: threads that set them in turns would leave each other's behind."""

_MAX_SIDE: Final = 65500
"""As of a JPEG (libjpeg's JPEG_MAX_DIMENSION): reducing a longer side would take more memory than its pixels."""

_STEPS: Final = 20_000
"""Reads from any file, however small; a chunk of a PNG takes two to four, a block of a GIF two."""

_BYTES_PER_STEP: Final = 256
"""Of a file that needs more steps than that, on average. Encoders write chunks of kilobytes."""

_STRIP: Final = 2**20
"""Pixels that are converted at a time, so that no copy in another mode needs as much memory as the picture."""


def decode(data: Buffer, limits: JpegLimits) -> NDArray[np.uint8]:
    """The upright pixels [H, W, 3] of a picture that is no JPEG.

    Raises:
        PictureTooLargeError: A limit is passed.
        NotAnImageError: It cannot be read.
        MemoryError: The system refused memory that the limits allow.
    """
    with _opened(data, limits) as picture:
        picture.load()
        return _rgb_pixels(_upright(picture))


def pixels_to_decode(data: Buffer, limits: JpegLimits) -> int:
    """How many pixels `decode` would make of these bytes, as their header says.

    None for JPEGs, and for what it would refuse before it decodes any.
    """
    if jpeg.is_jpeg(data):
        return 0
    try:
        with _opened(data, limits) as picture:
            return picture.width * picture.height
    except InputError:
        return 0


@contextmanager
def _opened(data: Buffer, limits: JpegLimits) -> Iterator[Image.Image]:
    """A picture of which nothing is decoded yet, and everything is known that bounds what decoding it costs.

    What goes wrong with it while the context lasts leaves it as `decode` says.
    """
    if len(data) > limits.max_bytes:
        raise PictureTooLargeError(f"the picture has {len(data)} bytes; the limit is {limits.max_bytes}")
    _check_tiff(data, limits)
    try:
        # Remarks, on metadata and on pictures that are large, concern nobody who classifies.
        with (
            _PILLOW,
            warnings.catch_warnings(action="ignore"),
            Image.open(_Steps(data), formats=FORMATS) as picture,
        ):
            _check_size(picture.width, picture.height, limits)
            _check_decoder(picture)
            yield picture
    except (PictureTooLargeError, NotAnImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise PictureTooLargeError(
            f"Pillow refuses the picture, whatever the limits here: {error}; send it as a JPEG, or smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise NotAnImageError(f"the bytes are no JPEG, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    except Exception as error:  # Pillow's readers raise whatever their parsing stumbles on
        raise NotAnImageError(f"the picture cannot be decoded: {error}") from error


class _Steps(io.BytesIO):
    """A file that is read in so many steps at most."""

    def __init__(self, data: Buffer) -> None:
        super().__init__(data)
        self._left = _STEPS + len(data) // _BYTES_PER_STEP

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise PictureTooLargeError("the file has too many parts for its size; save the picture anew")
        return super().read(size)


def _check_size(width: int, height: int, limits: JpegLimits) -> None:
    most = min(limits.max_pixels, limits.max_other_pixels)
    if width * height > most:
        raise PictureTooLargeError(
            f"the picture has {width}x{height} pixels; the limit of pictures that are no JPEGs is {most}: "
            f"send it as a JPEG, or smaller"
        )
    if max(width, height) > _MAX_SIDE:
        raise PictureTooLargeError(f"the picture has {width}x{height} pixels; no side may have more than {_MAX_SIDE}")


def _check_decoder(picture: Image.Image) -> None:
    """Refuses what Pillow decodes in Python: it lists such decoders, by name, where a picture's tiles name theirs."""
    if any(tile[0] in Image.DECODERS for tile in getattr(picture, "tile", ())):
        raise NotAnImageError(
            f"this kind of {picture.format} is not read (run-length BMP, plain PPM, PPM of other than 8 bits per "
            "sample and PGM of other than 8 or 16 are such): save it as a JPEG or PNG"
        )


_TIFF: Final = {b"II": "<", b"MM": ">"}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_STRIPS, _TILES = 273, 324
_WHOLE: Final = {3: "H", 4: "L"}
"""The types SHORT and LONG."""

_MAX_PIECES: Final = 100_000
"""Strips or tiles of a TIFF: more than rows of pixels, and than tiles of 16x16 that hold 25 megapixels."""


def _check_tiff(data: Buffer, limits: JpegLimits) -> None:
    """Refuses a TIFF whose pieces are too many or too large, before Pillow makes a list of them.

    Of a tag that comes twice each reader takes the one that it likes, so every one counts. Other files are left alone.

    Sources: TIFF 6.0, section 2 (directories) and section 15 (tiles).
    """
    order = _TIFF.get(bytes(data[:2]))
    if order is None or len(data) < 8:
        return
    if 43 in data[2:4]:
        raise NotAnImageError("BigTIFF is not read: save it as a JPEG or PNG")
    (start,) = struct.unpack_from(f"{order}L", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start) if start + 2 <= len(data) else (0,)
    longest = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    for position in range(start + 2, min(start + 2 + 12 * entries, len(data) - 11), 12):
        tag, kind, count = struct.unpack_from(f"{order}HHL", data, position)
        if tag in (_STRIPS, _TILES) and count > _MAX_PIECES:
            raise PictureTooLargeError(f"the TIFF has {count} strips or tiles; the limit is {_MAX_PIECES}")
        if tag in longest:
            if kind not in _WHOLE or count != 1:
                raise NotAnImageError("the sides of the TIFF's tiles are not told as TIFF 6.0 has it")
            (side,) = struct.unpack_from(f"{order}{_WHOLE[kind]}", data, position + 8)
            longest[tag] = max(longest[tag], side)
    if longest[_TILE_WIDTH] * longest[_TILE_LENGTH] > limits.max_other_pixels:
        raise PictureTooLargeError(f"a tile of the TIFF has more than {limits.max_other_pixels} pixels")


def _upright(picture: Image.Image) -> Image.Image:
    """A loaded picture as its EXIF data would have it; where they are damaged, as it is stored, as with a JPEG."""
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise whatever their parsing stumbles on
        pass
    return picture


def _rgb_pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """The pixels [H, W, 3] of a loaded picture of any mode, converted a few rows at a time."""
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    rows = max(1, _STRIP // picture.width)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        pixels[top:bottom] = np.asarray(as_rgb(picture.crop((0, top, picture.width, bottom))))
    return pixels


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode with 8 bits per sample, red, green and blue.

    Raises:
        NotAnImageError: Its samples are floating-point numbers.
    """
    if picture.mode == "F":  # 0 to 1, 0 to 255, metres: taken for what they are not, all would be black or white
        raise NotAnImageError(
            "the picture's samples are floating-point numbers, whose range is not known: send 8 or 16 bits per sample"
        )
    if picture.mode.startswith("I"):  # 16 bits per sample, which Pillow would clip to 255 instead of scaling
        picture = Image.fromarray((np.asarray(picture) // 257).clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")
