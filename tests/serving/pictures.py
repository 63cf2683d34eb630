"""Good and bad uploads, made on the spot."""

import io
from typing import Any

import numpy as np
from PIL import Image

from afd_serve.sample import sample_picture


def drawing(seed: int, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """Smooth blobs of colour: different for every seed, and easy for every codec."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((300, 260), Image.Resampling.BICUBIC).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The same file, but its frame header claims another size."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[start + 4 :]


GOOD = {
    "sample": sample_picture(),
    "good jpeg": drawing(1, quality=10),
    "progressive": drawing(2, quality=30, progressive=True),
    "gray": drawing(3, mode="L", quality=15),
    "fine": drawing(4, quality=95),
    "png": drawing(5, kind="PNG"),
}

BAD = {
    "truncated": sample_picture()[:2000],
    "random": np.random.default_rng(6).bytes(5000),
    "zero bytes": b"",
    "zeros": bytes(1000),
    "huge": with_size(sample_picture(), 65500, 65500),
    "not an image": b"%PDF-1.7 this is no picture",
    "truncated png": drawing(7, kind="PNG")[:500],
    "only a header": sample_picture()[:20],
}
