"""Small files in other formats than JPEG that would cost a decoder much: for tests, and for benchmarks/bombs.py."""

import struct
import zlib

__all__ = [
    "bmp_rle",
    "gif_of_comments",
    "png_of",
    "png_of_chunks",
    "ppm",
    "tiff_of_jpeg_rows",
    "tiff_of_pieces",
    "tiff_with_a_tile",
]


def bmp_rle(width: int, height: int) -> bytes:
    """A run-length BMP of rows that end after one pixel."""
    rows = b"\x01\x07\0\0" * height + b"\0\x01"
    palette = b"".join(bytes([shade, shade, shade, 0]) for shade in range(256))
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + palette + rows


def ppm(kind: str, width: int, height: int, most: int) -> bytes:
    """A PPM whose samples are all 1: of bytes (P6), or of text (P3)."""
    sample = b"1 " if kind == "P3" else b"\x01"
    return f"{kind} {width} {height} {most}\n".encode() + sample * (3 * width * height)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A black PNG with one bit per pixel, and chunks before and after its data."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = _chunk(b"IDAT", zlib.compress(bytes((1 + -(-width // 8)) * height), 9))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + after + _chunk(b"IEND", b"")


def png_of_chunks(count: int, *, where: str) -> bytes:
    """A PNG with this many empty chunks ``before`` or ``after`` its data."""
    return png_of(16, 16, **{where: _chunk(b"abCd", b"") * count})


def gif_of_comments(count: int) -> bytes:
    """A GIF with comments of one letter before its pixels, which it has none of."""
    return b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x80, 0, 0) + bytes(6) + b"!\xfe\x01a\0" * count


def _tiff(entries: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A little-endian TIFF of directory entries (tag, type, count, value or place of the value) and what follows it."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + data


_SHORT, _LONG = 3, 4


def _grey(side: int, compression: int) -> list[tuple[int, int, int, int]]:
    kinds = {256: side, 257: side, 258: 8, 259: compression, 262: 1, 277: 1}
    return [(tag, _LONG, 1, value) for tag, value in kinds.items()]


def tiff_of_pieces(count: int, tag: int = 324) -> bytes:
    """An uncompressed TIFF of this many tiles (or strips, by the tag) of one pixel each, all at one place."""
    sides = [(322, _LONG, 1, 1), (323, _LONG, 1, 1)] if tag == 324 else [(278, _LONG, 1, 1)]
    entries = _grey(64, 1) + sides
    place = 8 + 2 + 12 * (len(entries) + 1) + 4
    return _tiff([*entries, (tag, _LONG, count, place)], struct.pack("<I", 8) * count)


def tiff_with_a_tile(width: int, length: int, kind: int = _LONG) -> bytes:
    """A deflated TIFF of one pixel, within a tile of this size."""
    sides = [(322, kind, 1, width), (323, kind, 1, length)]
    return _tiff([*_grey(1, 8), *sides, (324, _LONG, 1, 200), (325, _LONG, 1, 100)], bytes(400))


def tiff_of_jpeg_rows(row: bytes, side: int) -> bytes:
    """A colour TIFF, as high as wide, each row of which is a strip; all strips are this one JPEG of a row."""
    entries = {256: side, 257: side, 259: 7, 262: 6, 277: 3, 278: 1}
    ends = 8 + 2 + 12 * (len(entries) + 3) + 4
    lists = ends + 6, ends + 6 + 4 * side, ends + 6 + 8 * side
    directory = [(tag, _LONG, 1, value) for tag, value in entries.items()]
    directory += [(258, _SHORT, 3, ends), (273, _LONG, side, lists[0]), (279, _LONG, side, lists[1])]
    places, lengths = (struct.pack("<I", value) * side for value in (lists[2], len(row)))
    return _tiff(sorted(directory), struct.pack("<HHH", 8, 8, 8) + places + lengths + row)
