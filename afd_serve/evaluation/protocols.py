"""The ways in which a labelled picture is compressed before it is classified.

- **clean**: the file as it is.
- **A**: the model's crop, saved as JPEG (as ImageNet-C does).
- **B**: the whole picture at its own size, saved as JPEG, then cropped.
- **C**: protocol A, 2, 3, 4 and 5 times over, with qualities drawn from the list.
- **resave**: protocol A at quality 10, then again at 95: the last table lies.
- **webp**, **avif**: the model's crop, saved as WebP or AVIF at low qualities.

Every variant is a file in memory, so that what is evaluated is what a client would send. All JPEGs are written by
Pillow with its default 4:2:0 sampling, the other formats with its defaults too.

Note [Qualities of other codecs]
    Each codec has a scale of its own. The three qualities were chosen so that EfficientNet-Lite0 alone loses about as
    much as to JPEG at QF 25 to 7, measured on 60 development pictures (clean 83% top-1; JPEG 25, 18, 15, 10, 7: 78, 78,
    78, 63, 48): WebP 30, 10, 1 leaves 75, 70, 60 (its worst, 0, leaves 52), AVIF 40, 25, 10 leaves 77, 65, 50.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, features
from PIL import __version__ as pillow_version

from afd_serve.errors import ConfigError
from afd_serve.preprocess import as_rgb
from afd_serve.transforms import Preprocessing, crop_box, resize_crop

__all__ = [
    "PROTOCOLS",
    "QUALITIES",
    "RESAVED",
    "SAVED_ONCE",
    "TITLES",
    "Condition",
    "compress",
    "conditions",
    "encode",
    "model_crop",
    "parse_protocols",
]

PROTOCOLS = ("clean", "A", "B", "C", "resave", "webp", "avif")
QUALITIES = (25, 18, 15, 10, 7)
TITLES = {
    "clean": "Clean pictures",
    "A": "Protocol A: the model's crop, compressed",
    "B": "Protocol B: compressed at native size",
    "C": "Protocol C: compressed several times",
    "resave": "Compressed hard, then re-saved at high quality",
    "webp": "The model's crop, saved as WebP",
    "avif": "The model's crop, saved as AVIF",
}

_REPEATS = (2, 3, 4, 5)
_RESAVE = (10, 95)
_OTHER_CODECS = {"webp": (30, 10, 1), "avif": (40, 25, 10)}
"""The qualities of each; see Note [Qualities of other codecs]."""


@dataclass(frozen=True)
class Condition:
    """One column of the evaluation: a protocol and its parameter.

    Attributes:
        protocol: one of ``PROTOCOLS``.
        level: what varies in the protocol: the quality (A, B, webp, avif), how often (C), 0 where nothing does.
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
        if self.protocol in _OTHER_CODECS:
            return f"quality {self.level}"
        return f"QF {self.level}" if self.level else "as it is"


RESAVED = Condition("resave")
SAVED_ONCE = Condition("A", _RESAVE[0])
"""What `RESAVED` is before it is saved again: its answers should be as good as these."""


def parse_protocols(text: str) -> tuple[str, ...]:
    """Read a list such as ``"A,B"``; ``clean`` comes first whether named or not, as all shares are relative to it.

    Raises:
        ConfigError: a name is no protocol, or Pillow lacks its codec.
    """
    known = {name.casefold(): name for name in PROTOCOLS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name.casefold() not in known]
    if unknown or not names:
        raise ConfigError(f"unknown protocol {', '.join(unknown) or text!r}; known are {', '.join(PROTOCOLS)}")
    chosen = tuple(dict.fromkeys(["clean", *(known[name.casefold()] for name in names)]))
    for name in chosen:
        if name in _OTHER_CODECS and name not in features.get_supported_modules():
            raise ConfigError(
                f"protocol {name} needs a Pillow that writes {name.upper()} (its wheels do, for AVIF from 11.3 on); "
                f"this is {pillow_version} without it"
            )
    return chosen


def conditions(protocols: Sequence[str]) -> tuple[Condition, ...]:
    """Spell out the conditions of some protocols, in order."""
    levels = {"A": QUALITIES, "B": QUALITIES, "C": _REPEATS, **_OTHER_CODECS}
    return tuple(Condition(name, level) for name in protocols for level in levels.get(name, (0,)))


def encode(picture: Image.Image, quality: int, codec: str = "JPEG") -> bytes:
    """Save a picture (mode ``L`` or ``RGB``) in one of Pillow's lossy formats and return the file."""
    buffer = io.BytesIO()
    picture.save(buffer, codec, quality=quality)
    return buffer.getvalue()


def model_crop(data: bytes, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Decode a picture with Pillow and return the model's crop, uint8 RGB ``[S, S, 3]``."""
    pixels = np.asarray(as_rgb(_upright(data)))
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
        return encode(picture if picture.mode == "L" else as_rgb(picture), condition.level)
    picture = Image.fromarray(model_crop(data, preprocessing))
    if condition.protocol in _OTHER_CODECS:
        return encode(picture, condition.level, condition.protocol.upper())
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
    drawn_for = f"{seed}\n{condition.key}\n{picture_id}"
    digest = hashlib.sha256(drawn_for.encode(errors="surrogateescape")).digest()  # a file's name may be no UTF-8
    drawn = np.random.default_rng(int.from_bytes(digest[:8], "big")).choice(QUALITIES, size=condition.level)
    return tuple(int(quality) for quality in drawn)
