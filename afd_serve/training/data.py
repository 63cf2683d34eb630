"""Unlabelled pictures in, pairs of compressed and clean crops out.

Batch ``k`` depends on the settings, the seed and ``k`` alone.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor
from torch.utils.data import Dataset

from afd_serve.errors import ConfigError
from afd_serve.preprocess import (
    UNREADABLE,
    ClassifierInputs,
    PreparedPicture,
    as_rgb,
    prepare,
    stack,
)
from afd_serve.transforms import Preprocessing, resize_crop

__all__ = ["CompressedPairs", "Pair", "Recipe"]

_MOST_DRAWS: Final = 200


@dataclass(frozen=True)
class Recipe:
    """How fitting pictures are cropped, varied and compressed; all ``p_*`` are probabilities.

    A small set is soon memorized. Mixing two pictures, turning and recolouring them gives new answers of the teacher,
    at no cost, because they need no labels. With ``only_open`` a compression that would leave the gate closed is drawn
    again: AFD does not affect such a picture.
    """

    least_area: float = 0.1
    p_flip: float = 0.5
    p_turn: float = 0.25
    p_mix: float = 0.5
    p_native: float = 0.35
    p_clean: float = 0.06
    p_mild: float = 0.10
    p_again: float = 0.22
    p_resave: float = 0.08
    p_full_chroma: float = 0.15
    p_other_codec: float = 0.08
    p_colour: float = 0.6
    heavy: tuple[int, int] = (5, 50)
    mild: tuple[int, int] = (50, 95)
    resave: tuple[int, int] = (90, 98)
    other_codec: tuple[int, int] = (1, 50)
    only_open: bool = True


class Pair(NamedTuple):
    """One batch: what the student sees, and the clean pixels (uint8 [N, 3, S, S]) that the teacher sees.

    ``unreadable`` are the indices of pictures that were drawn for it, but cannot be read.
    """

    inputs: ClassifierInputs
    clean: Tensor
    unreadable: frozenset[int] = frozenset()


class CompressedPairs(Dataset[Pair]):
    """Batches of compressed crops with their clean originals, made on the fly.

    Args:
        pictures: Files; for one that cannot be read another is drawn, each time, so that batches depend on no others.
        preprocessing: The backbone's; its size is replaced by each batch's.
        sizes: Crop sizes; each has an equal share of the batches, in this order: small crops first take less time.
        batch_size: Pictures per batch.
        batches: How many batches there are.
        seed: Together with the index, decides what is drawn.
    """

    def __init__(
        self,
        pictures: Sequence[Path],
        preprocessing: Preprocessing,
        *,
        sizes: Sequence[int],
        batch_size: int,
        batches: int,
        seed: int,
        recipe: Recipe | None = None,
    ) -> None:
        self.pictures = list(pictures)
        self.preprocessing = preprocessing
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self.recipe = recipe or Recipe()
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        """Number of batches."""
        return self.batches

    def __getitem__(self, index: int) -> Pair:
        """Make batch ``index``."""
        self._unreadable = set()
        random = np.random.default_rng((self.seed, index))
        preprocessing = replace(self.preprocessing, size=self.sizes[index * len(self.sizes) // self.batches])
        pairs = [self._pair(random, preprocessing) for _ in range(self.batch_size)]
        inputs = stack([picture for picture, _ in pairs], [True] * len(pairs))
        clean = torch.from_numpy(np.stack([pixels for _, pixels in pairs])).permute(0, 3, 1, 2)
        return Pair(inputs, clean, frozenset(self._unreadable))

    def _pair(
        self, random: np.random.Generator, preprocessing: Preprocessing
    ) -> tuple[PreparedPicture, NDArray[np.uint8]]:
        scene = self._scene(random)
        whole = (0, 0, scene.width, scene.height)
        clean = resize_crop(np.asarray(scene), whole, preprocessing.size, preprocessing.interpolation)
        for _ in range(_MOST_DRAWS):
            source = scene if random.random() < self.recipe.p_native else Image.fromarray(clean)
            compressed = prepare(self._compress(random, source), preprocessing, crop=False)
            if not (self.recipe.only_open and compressed.good):
                return compressed, clean
        raise ConfigError(
            f"of {_MOST_DRAWS} compressions none opened the gate; give the recipe lower qualities or only_open=False"
        )

    def _scene(self, random: np.random.Generator) -> Image.Image:
        """A random part of a random picture, near native resolution, or two such parts mixed."""
        scene = self._part(random)
        return _mix(random, scene, self._part(random)) if random.random() < self.recipe.p_mix else scene

    def _part(self, random: np.random.Generator) -> Image.Image:
        """A random part of a random picture, perhaps mirrored, turned and recoloured."""
        rgb = self._picture(random)
        scene = rgb.crop(self._random_box(random, rgb.width, rgb.height))
        if random.random() < self.recipe.p_flip:
            scene = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if random.random() < self.recipe.p_turn:
            scene = scene.transpose(_TURNS[random.integers(len(_TURNS))])
        return _recolour(random, scene) if random.random() < self.recipe.p_colour else scene

    def _picture(self, random: np.random.Generator) -> Image.Image:
        """A random picture, as RGB; another one for one that cannot be read."""
        for _ in range(_MOST_DRAWS):
            index = int(random.integers(len(self.pictures)))
            try:
                with Image.open(self.pictures[index]) as picture:
                    picture.draft("RGB", (1024, 1024))
                    return as_rgb(picture)
            except UNREADABLE:
                self._unreadable.add(index)
        raise ConfigError(f"of {_MOST_DRAWS} fitting pictures, drawn from {len(self.pictures)}, none can be read")

    def _random_box(self, random: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
        area = random.uniform(self.recipe.least_area, 1.0) * width * height
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w = int(np.clip(np.sqrt(area * aspect), min(32, width), width))
        h = int(np.clip(np.sqrt(area / aspect), min(32, height), height))
        left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
        return left, top, left + w, top + h

    def _compress(self, random: np.random.Generator, picture: Image.Image) -> bytes:
        """Compress once or more; the last result is what a client would upload."""
        recipe = self.recipe
        if random.random() < recipe.p_other_codec and _OTHER_CODECS:
            return _encode_otherwise(random, picture, _draw(random, recipe.other_codec))
        kind = random.random()
        if kind < recipe.p_clean:
            return _encode(picture, 100, 0)
        qualities = [_draw(random, recipe.mild if kind < recipe.p_clean + recipe.p_mild else recipe.heavy)]
        if random.random() < recipe.p_again:
            qualities += [_draw(random, recipe.heavy) for _ in range(random.integers(1, 5))]
        if random.random() < recipe.p_resave:
            qualities.append(_draw(random, recipe.resave))
        subsampling = 0 if random.random() < recipe.p_full_chroma else 2
        for quality in qualities[:-1]:
            with Image.open(io.BytesIO(_encode(picture, quality, subsampling))) as decoded:
                picture = decoded.convert("RGB")
        return _encode(picture, qualities[-1], subsampling)


def _draw(random: np.random.Generator, bounds: tuple[int, int]) -> int:
    """A quality factor, uniform in its logarithm."""
    return round(float(np.exp(random.uniform(np.log(bounds[0]), np.log(bounds[1])))))


def _encode(picture: Image.Image, quality: int, subsampling: int) -> bytes:
    """JPEG bytes; subsampling 0 is 4:4:4 and 2 is 4:2:0, as Pillow counts."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, subsampling=subsampling)
    return out.getvalue()


_OTHER_CODECS: Final = tuple(codec for codec in ("WEBP", "AVIF") if features.check(codec.lower()))
"""Lossy codecs besides JPEG that this Pillow writes, which may be none: then all is compressed as JPEG."""


def _encode_otherwise(random: np.random.Generator, picture: Image.Image, quality: int) -> bytes:
    """Bytes of another lossy codec, one of those that this Pillow writes."""
    out = io.BytesIO()
    picture.save(out, _OTHER_CODECS[random.integers(len(_OTHER_CODECS))], quality=quality)
    return out.getvalue()


_TURNS: Final = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def _mix(random: np.random.Generator, first: Image.Image, second: Image.Image) -> Image.Image:
    """Two pictures as one, of the first one's size: side by side, one above the other, or blended."""
    second = second.resize(first.size, Image.Resampling.BICUBIC)
    share, kind = random.uniform(0.3, 0.7), random.integers(4)
    if kind >= 2:
        return Image.blend(first, second, share)
    width, height = first.size
    left, top = (round(share * width), 0) if kind else (0, round(share * height))
    mixed = first.copy()
    mixed.paste(second.crop((left, top, width, height)), (left, top))
    return mixed


def _recolour(random: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Change contrast and brightness per channel, and sometimes exchange channels."""
    if random.random() < 0.3:
        bands = picture.split()
        picture = Image.merge("RGB", [bands[channel] for channel in random.permutation(3)])
    gain = random.uniform(0.7, 1.2) * random.uniform(0.9, 1.1, (3, 1))
    # One row per channel: what becomes of each value. Looking it up is ten times as fast as computing it per pixel.
    table = (np.arange(256) - 128) * gain + 128 + random.uniform(-24, 24)
    return picture.point(np.clip(table, 0, 255).astype(np.uint8).ravel().tolist())
