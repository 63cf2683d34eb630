"""The ways in which a labelled picture is compressed before it is classified.

- **clean**: the file as it is.
- **A**: the model's crop, saved as JPEG (as ImageNet-C does).
- **B**: the whole picture at its own size, saved as JPEG, then cropped.
- **C**: protocol A, 2, 3, 4 and 5 times over, with qualities drawn from the list.
- **resave**: protocol A at quality 10, then again at 95: the last table lies.

Every variant is a file in memory, so that what is evaluated is what a client would send. All JPEGs are written by
Pillow with its default 4:2:0 sampling.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from afd_serve.errors import ConfigError
from afd_serve.models.backbones import Preprocessing
from afd_serve.transforms import crop_box, resize_crop

__all__ = ["PROTOCOLS", "QUALITIES", "Condition", "compress", "conditions", "encode", "model_crop", "parse_protocols"]

PROTOCOLS = ("clean", "A", "B", "C", "resave")
QUALITIES = (25, 18, 15, 10, 7)

_REPEATS = (2, 3, 4, 5)
_RESAVE = (10, 95)


@dataclass(frozen=True)
class Condition:
    """One column of the evaluation: a protocol and its parameter.

    Attributes:
        protocol: one of ``PROTOCOLS``.
        level: what varies in the protocol: the quality (A, B), how often (C), 0 where nothing does.
    """

    protocol: str
    level: int = 0

    @property
    def key(self) -> str:
        """Stable name, e.g. ``"A/10"``."""
        return f"{self.protocol}/{self.level}" if self.level else self.protocol

    @property
    def crop(self) -> bool:
        """Whether the classifier has to crop the file, or it is the model's crop already."""
        return self.protocol in ("clean", "B")

    @property
    def title(self) -> str:
        """For people, e.g. ``"QF 10"``."""
        if self.protocol == "C":
            return f"{self.level} times"
        if self.protocol == "resave":
            return f"{_RESAVE[0]} then {_RESAVE[1]}"
        return f"QF {self.level}" if self.level else "as it is"


def parse_protocols(text: str) -> tuple[str, ...]:
    """Read a list such as ``"A,B"``; ``clean`` comes first whether named or not, as all shares are relative to it.

    Raises:
        ConfigError: a name is no protocol.
    """
    known = {name.casefold(): name for name in PROTOCOLS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name.casefold() not in known]
    if unknown or not names:
        raise ConfigError(f"unknown protocol {', '.join(unknown) or text!r}; known are {', '.join(PROTOCOLS)}")
    return tuple(dict.fromkeys(["clean", *(known[name.casefold()] for name in names)]))


def conditions(protocols: Sequence[str]) -> tuple[Condition, ...]:
    """Spell out the conditions of some protocols, in order."""
    levels = {"A": QUALITIES, "B": QUALITIES, "C": _REPEATS}
    return tuple(Condition(name, level) for name in protocols for level in levels.get(name, (0,)))


def encode(picture: Image.Image, quality: int) -> bytes:
    """Save a picture (mode ``L`` or ``RGB``) as JPEG and return the file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def model_crop(data: bytes, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Decode a picture with Pillow and return the model's crop, uint8 RGB ``[S, S, 3]``."""
    pixels = np.asarray(_upright(data).convert("RGB"))
    box = crop_box(pixels.shape[1], pixels.shape[0], preprocessing)
    return resize_crop(pixels, box, preprocessing.size, preprocessing.interpolation)


def _upright(data: bytes) -> Image.Image:
    """Decode, and turn as the EXIF orientation says, because a file that is saved anew loses it."""
    picture = Image.open(io.BytesIO(data))
    return ImageOps.exif_transpose(picture)


def compress(data: bytes, condition: Condition, preprocessing: Preprocessing, *, picture_id: str, seed: int) -> bytes:
    """Return the file that a client would send under a condition.

    Args:
        data: the labelled picture's file.
        condition: what to do to it.
        preprocessing: gives the model's crop.
        picture_id: with ``seed`` and the condition, fixes the qualities that protocol C draws.
        seed: of the whole evaluation.
    """
    if condition.protocol == "clean":
        return data
    if condition.protocol == "B":
        picture = _upright(data)
        return encode(picture if picture.mode == "L" else picture.convert("RGB"), condition.level)
    picture = Image.fromarray(model_crop(data, preprocessing))
    *earlier, last = _qualities(condition, picture_id, seed)
    for quality in earlier:
        picture = Image.open(io.BytesIO(encode(picture, quality)))
    return encode(picture, last)


def _qualities(condition: Condition, picture_id: str, seed: int) -> tuple[int, ...]:
    """List the qualities of the compressions that the model's crop goes through."""
    if condition.protocol == "A":
        return (condition.level,)
    if condition.protocol == "resave":
        return _RESAVE
    digest = hashlib.sha256(f"{seed}\n{condition.key}\n{picture_id}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(digest[:8], "big")).choice(QUALITIES, size=condition.level)
    return tuple(int(quality) for quality in drawn)
