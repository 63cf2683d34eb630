"""Pictures for the benchmarks that were given none."""

import io

import numpy as np
from PIL import Image

__all__ = ["made_jpegs", "made_pictures"]


def made_pictures(count: int) -> list[Image.Image]:
    """Noise with the spectrum of photographs, 500x375."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.fftfreq(500)[None]) + 1e-3
    pictures = []
    for _ in range(count):
        spectrum = np.fft.fft2(random.normal(size=(375, 500, 3)), axes=(0, 1)) / frequency[..., None]
        noise = np.fft.ifft2(spectrum, axes=(0, 1)).real
        pictures.append(Image.fromarray((128 + 50 * noise / noise.std()).clip(0, 255).astype(np.uint8)))
    return pictures


def made_jpegs(count: int) -> list[bytes]:
    """Made pictures as files, quality 10 to 90."""
    files = []
    for index, picture in enumerate(made_pictures(count)):
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=10 + 80 * index // count)
        files.append(out.getvalue())
    return files
