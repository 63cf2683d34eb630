"""Pictures for the benchmarks that were given none."""

import io

import numpy as np
from PIL import Image

__all__ = ["made_pictures"]


def made_pictures(count: int, width: int = 500, height: int = 375) -> list[bytes]:
    """JPEGs of noise with the spectrum of photographs, quality 10 to 90."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1e-3
    files = []
    for index in range(count):
        noise = np.fft.ifft2(
            np.fft.fft2(random.normal(size=(height, width, 3)), axes=(0, 1)) / frequency[..., None], axes=(0, 1)
        )
        samples = (128 + 50 * noise.real / noise.real.std()).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(samples).save(out, "JPEG", quality=10 + 80 * index // count)
        files.append(out.getvalue())
    return files
