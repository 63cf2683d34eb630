"""Writers of JPEG files for tests: a small encoder of known coefficients, and Pillow's.

The encoder writes what Pillow cannot: every sampling, any component ids, 16-bit tables, scans of single components,
progressive scripts of our own, Adobe markers. Its Huffman tables hold every symbol, so that nothing is optimised.
"""

import io
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Sampling = tuple[int, int]
Process = Literal["baseline", "extended", "progressive"]

SOI, EOI, SOS, DQT, DHT, DRI, DNL, COM = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xDC, 0xFE
APP0, APP1, APP14 = 0xE0, 0xE1, 0xEE
SOF = {"baseline": 0xC0, "extended": 0xC1, "progressive": 0xC2}

DATA = Path(__file__).parent / "data" / "jpeg"
YCC_420 = [(2, 2), (1, 1), (1, 1)]
SAMPLINGS = {
    "grayscale": [(1, 1)],
    "grayscale-2x2": [(2, 2)],
    "444": [(1, 1), (1, 1), (1, 1)],
    "422": [(2, 1), (1, 1), (1, 1)],
    "420": YCC_420,
    "440": [(1, 2), (1, 1), (1, 1)],
    "411": [(4, 1), (1, 1), (1, 1)],
    "410": [(4, 2), (1, 1), (1, 1)],
    "441": [(1, 4), (1, 1), (1, 1)],
    "three-wide": [(3, 1), (1, 1), (1, 1)],
    "mixed": [(2, 1), (1, 2), (1, 1)],
    "large-chroma": [(1, 1), (2, 2), (1, 1)],
    "four": [(1, 1)] * 4,
    "four-420": [(2, 2), (1, 1), (1, 1), (2, 2)],
}
PROCESSES: tuple[Process, ...] = ("baseline", "extended", "progressive")
ODD_SIZES = ((1, 1), (7, 9), (37, 29), (64, 48))


def pillow_rgb(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def truncated_at(data: bytes, offset: int) -> bytes:
    return data[: len(data) - offset]


def _zigzag_order() -> NDArray[np.intp]:
    """Natural index of each position in zigzag order (T.81, figure 5)."""
    diagonals = sorted(
        ((i, j) for i in range(8) for j in range(8)),
        key=lambda p: (p[0] + p[1], p[0] if (p[0] + p[1]) % 2 else p[1]),
    )
    return np.array([8 * i + j for i, j in diagonals])


ZIGZAG = _zigzag_order()


@dataclass(frozen=True)
class GeneratedJpeg:
    """A file and what a reader must find in it."""

    data: bytes
    coefficients: list[NDArray[np.int16]]  # [height_in_blocks, width_in_blocks, 8, 8], natural order
    quant_tables: list[NDArray[np.uint16]]  # [8, 8], natural order
    sampling: list[Sampling]  # (h, v)


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def after_soi(data: bytes, *segments: bytes) -> bytes:
    """The file with more segments right behind its SOI."""
    return data[:2] + b"".join(segments) + data[2:]


def exif_segment(orientation: int, byte_order: str = ">", *, kind: int = 3, count: int = 1) -> bytes:
    """Its orientation is of TIFF's type ``kind``: 3 for a SHORT, 4 for a LONG."""
    value = struct.pack(f"{byte_order}I" if kind in (4, 9) else f"{byte_order}Hxx", orientation)
    entry = struct.pack(f"{byte_order}HHI", 0x0112, kind, count) + value
    tiff = (b"MM" if byte_order == ">" else b"II") + struct.pack(f"{byte_order}HIH", 42, 8, 1) + entry + bytes(4)
    return segment(APP1, b"Exif\0\0" + tiff)


def empty_exif_segment() -> bytes:
    """Its directory claims 65,535 entries and ends there."""
    return segment(APP1, b"Exif\0\0MM" + struct.pack(">HIH", 42, 8, 0xFFFF))


def adobe_segment(transform: int) -> bytes:
    return segment(APP14, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))


JFIF_SEGMENT = segment(APP0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0")


class BitWriter:
    def __init__(self) -> None:
        self.bits: list[str] = []

    def write(self, value: int, count: int) -> None:
        if count:
            self.bits.append(format(value & ((1 << count) - 1), f"0{count}b"))

    def flush(self) -> bytes:
        text = "".join(self.bits)
        self.bits = []
        text += "1" * (-len(text) % 8)
        return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)).replace(b"\xff", b"\xff\0")


def _huffman_code(symbol: int, *, dc: bool) -> tuple[int, int]:
    """(code, length): 4 bits for each of 12 DC symbols; 8 bits for an AC symbol, 9 for the last two."""
    if dc:
        return symbol, 4
    return (symbol, 8) if symbol < 254 else (254 * 2 + symbol - 254, 9)


def _huffman_tables() -> bytes:
    dc = bytes([0x00, *(12 if n == 4 else 0 for n in range(1, 17)), *range(12)])
    ac = bytes([0x10, *({8: 254, 9: 2}.get(n, 0) for n in range(1, 17)), *range(256)])
    return segment(DHT, dc + ac)


def _magnitude(value: int) -> tuple[int, int]:
    """(category, value bits) of T.81 F.1.2.1."""
    size = abs(value).bit_length()
    return size, value if value >= 0 else value + (1 << size) - 1


@dataclass
class _Scan:
    """One scan of a sequential or progressive file."""

    components: list[int]
    start: int = 0
    end: int = 63
    high: int = 0
    low: int = 0
    writer: BitWriter = field(default_factory=BitWriter)
    predictions: dict[int, int] = field(default_factory=dict)

    def header(self, ids: Sequence[int]) -> bytes:
        selectors = b"".join(bytes([ids[c], 0]) for c in self.components)
        parameters = bytes([self.start, self.end, self.high << 4 | self.low])
        return segment(SOS, bytes([len(self.components)]) + selectors + parameters)

    def write_block(self, component: int, block: list[int], *, progressive: bool) -> None:
        if self.start == 0:
            self._write_dc(component, block[0])
        first, last = max(self.start, 1), self.end
        if last == 0:
            return
        if progressive and self.high:
            self._refine_ac(block[first : last + 1])
        else:
            self._write_ac([int(v / (1 << self.low)) for v in block[first : last + 1]])

    def _symbol(self, symbol: int, *, dc: bool = False) -> None:
        self.writer.write(*_huffman_code(symbol, dc=dc))

    def _write_dc(self, component: int, value: int) -> None:
        if self.high:
            self.writer.write(value >> self.low, 1)
            return
        value >>= self.low
        size, bits = _magnitude(value - self.predictions.get(component, 0))
        self.predictions[component] = value
        self._symbol(size, dc=True)
        self.writer.write(bits, size)

    def _write_ac(self, values: list[int]) -> None:
        run = 0
        for value in values:
            if value == 0:
                run += 1
                continue
            while run > 15:
                self._symbol(0xF0)
                run -= 16
            size, bits = _magnitude(value)
            self._symbol(run << 4 | size)
            self.writer.write(bits, size)
            run = 0
        if run:
            self._symbol(0x00)

    def _refine_ac(self, values: list[int]) -> None:
        """T.81 G.1.2.3, with an end-of-block per block instead of runs of them."""
        shifted = [abs(v) >> self.low for v in values]
        last_new = max((k for k, v in enumerate(shifted) if v == 1), default=-1)
        run, corrections = 0, ""
        for k, magnitude in enumerate(shifted):
            if k > last_new:
                break
            if magnitude == 0:
                run += 1
                if run == 16:
                    self._symbol(0xF0)
                    self._corrections(corrections)
                    run, corrections = 0, ""
            elif magnitude > 1:
                corrections += str(magnitude & 1)
            else:
                self._symbol(run << 4 | 1)
                self.writer.write(int(values[k] > 0), 1)
                self._corrections(corrections)
                run, corrections = 0, ""
        if last_new < len(values) - 1:
            self._symbol(0x00)
            rest = shifted[last_new + 1 :]
            self._corrections(corrections + "".join(str(v & 1) for v in rest if v > 1))

    def _corrections(self, bits: str) -> None:
        for bit in bits:
            self.writer.write(int(bit), 1)


PROGRESSIVE_SCRIPT = [
    (0, 0, 0, 2),
    (1, 5, 0, 2),
    (6, 63, 0, 2),
    (1, 63, 2, 1),
    (0, 0, 2, 1),
    (0, 0, 1, 0),
    (1, 9, 1, 0),
    (10, 63, 1, 0),
]


def _scans(count: int, process: Process, *, interleaved: bool) -> Iterable[_Scan]:
    together = [list(range(count))] if interleaved else [[c] for c in range(count)]
    if process != "progressive":
        yield from (_Scan(group) for group in together)
        return
    for start, end, high, low in PROGRESSIVE_SCRIPT:
        groups = together if start == 0 else [[c] for c in range(count)]  # AC scans hold one component
        yield from (_Scan(group, start, end, high, low) for group in groups)


def random_coefficients(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int16]:
    """Sparse blocks that decode to mid-range samples: [H, W, 8, 8]."""
    blocks = rng.integers(-3, 4, (*shape, 64)) * (rng.random((*shape, 64)) < 0.12)
    blocks[..., 0] = rng.integers(-60, 61, shape)
    blocks[rng.random(shape) < 0.1, 63] = 5  # a run of more than 15 zeros, and a block without an end
    return blocks.astype(np.int16).reshape(*shape, 8, 8)


def make_jpeg(
    width: int,
    height: int,
    sampling: Sequence[Sampling],
    *,
    process: Process = "baseline",
    interleaved: bool = True,
    restart_interval: int = 0,
    wide_tables: bool = False,
    ids: Sequence[int] | None = None,
    prefix: bytes = JFIF_SEGMENT,
    seed: int = 0,
) -> GeneratedJpeg:
    """Writes random coefficients.

    Args:
        width: Pixels.
        height: Pixels.
        sampling: (h, v) of each component.
        process: The SOF to write.
        interleaved: Whether scans hold all components where the process allows it.
        restart_interval: MCUs; 0 for none.
        wide_tables: Whether quantization tables have 16-bit entries.
        ids: Component ids; 1, 2, ... by default.
        prefix: Segments behind SOI.
        seed: Of coefficients and tables.
    """
    rng = np.random.default_rng(seed)
    count = len(sampling)
    ids = list(ids or range(1, count + 1))
    h_max, v_max = max(h for h, _ in sampling), max(v for _, v in sampling)
    mcus = -(-height // (8 * v_max)), -(-width // (8 * h_max))
    sizes = [(-(-height * v // (8 * v_max)), -(-width * h // (8 * h_max))) for h, v in sampling]
    planes = [random_coefficients((mcus[0] * v, mcus[1] * h), rng) for h, v in sampling]
    tables = [rng.integers(1, 30, (8, 8)).astype(np.uint16) for _ in range(min(count, 2))]
    if wide_tables:
        tables[0][7, 7] = 300
    selected = [min(c, len(tables) - 1) for c in range(count)]

    out = bytearray(b"\xff\xd8" + prefix)
    for number, table in enumerate(tables):
        entries = table.reshape(64)[ZIGZAG].astype(">u2" if wide_tables else "u1").tobytes()
        out += segment(DQT, bytes([wide_tables << 4 | number]) + entries)
    frame = b"".join(bytes([ids[c], sampling[c][0] << 4 | sampling[c][1], selected[c]]) for c in range(count))
    out += segment(SOF[process], struct.pack(">BHHB", 8, height, width, count) + frame)
    out += _huffman_tables()
    if restart_interval:
        out += segment(DRI, struct.pack(">H", restart_interval))
    blocks = [plane.reshape(*plane.shape[:2], 64)[..., ZIGZAG].tolist() for plane in planes]
    for scan in _scans(count, process, interleaved=interleaved):
        out += scan.header(ids)
        out += _scan_data(scan, blocks, sampling, sizes, mcus, restart_interval, process == "progressive")
    out += b"\xff\xd9"
    return GeneratedJpeg(
        bytes(out),
        [plane[: size[0], : size[1]] for plane, size in zip(planes, sizes, strict=True)],
        [tables[s] for s in selected],
        list(sampling),
    )


def _mcu_blocks(
    scan: _Scan, sampling: Sequence[Sampling], sizes: Sequence[tuple[int, int]], mcus: tuple[int, int]
) -> Iterable[list[tuple[int, int, int]]]:
    """(component, row, column) of the blocks of each MCU (T.81, A.2): a scan of one component has no padding."""
    if len(scan.components) == 1:
        c = scan.components[0]
        yield from ([(c, y, x)] for y in range(sizes[c][0]) for x in range(sizes[c][1]))
        return
    for my in range(mcus[0]):
        for mx in range(mcus[1]):
            yield [
                (c, my * v + y, mx * h + x)
                for c, (h, v) in ((c, sampling[c]) for c in scan.components)
                for y in range(v)
                for x in range(h)
            ]


def _scan_data(
    scan: _Scan,
    blocks: Sequence[Any],
    sampling: Sequence[Sampling],
    sizes: Sequence[tuple[int, int]],
    mcus: tuple[int, int],
    restart_interval: int,
    progressive: bool,
) -> bytes:
    data = bytearray()
    for number, mcu in enumerate(_mcu_blocks(scan, sampling, sizes, mcus)):
        if restart_interval and number and number % restart_interval == 0:
            data += scan.writer.flush() + bytes([0xFF, 0xD0 + (number // restart_interval - 1) % 8])
            scan.predictions.clear()
        for c, y, x in mcu:
            scan.write_block(c, blocks[c][y][x], progressive=progressive)
    return bytes(data + scan.writer.flush())


def random_picture(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, so that every quality keeps some coefficients."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 90 * np.sin(x / (5 + c) + c) * np.cos(y / (9 - c)) for c in range(len(mode))]
    noisy = np.stack(channels, -1) + rng.normal(0, 12, (height, width, len(mode)))
    samples = noisy.clip(0, 255).astype(np.uint8)
    return Image.frombytes(mode, (width, height), samples.tobytes())


def pillow_jpeg(width: int, height: int, mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    out = io.BytesIO()
    random_picture(width, height, mode, seed).save(out, "JPEG", **options)
    return out.getvalue()


def patched_size(data: bytes, width: int, height: int) -> bytes:
    """The file with other dimensions in its SOF."""
    position = find_segment(data, lambda marker: 0xC0 <= marker <= 0xCF and marker not in (DHT, 0xC8, 0xCC))
    return data[: position + 5] + struct.pack(">HH", height, width) + data[position + 9 :]


def find_segment(data: bytes, wanted: Callable[[int], bool]) -> int:
    """Position of the first header segment whose marker is wanted."""
    position = 2
    while not wanted(data[position + 1]):
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


# Files in tests/data/jpeg that jpegtran transcoded from these (see make_arithmetic.py there).
ARITHMETIC: dict[str, Callable[[], GeneratedJpeg]] = {
    "arithmetic-420.jpg": lambda: make_jpeg(37, 29, [(2, 2), (1, 1), (1, 1)], seed=1),
    "arithmetic-grayscale.jpg": lambda: make_jpeg(20, 17, [(1, 1)], seed=2),
    "arithmetic-progressive-444.jpg": lambda: make_jpeg(24, 16, [(1, 1)] * 3, seed=3),
    "arithmetic-restarts-422.jpg": lambda: make_jpeg(33, 24, [(2, 1), (1, 1), (1, 1)], restart_interval=2, seed=4),
}
