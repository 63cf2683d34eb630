"""Draw an explanation: the picture, the drift map over it, a scale, and what is known in words. Pillow alone."""

import functools
import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from afd_serve.explain import Explanation

__all__ = ["heat", "render"]

_HEAT: Final = np.array(
    [(0, 0, 4), (51, 10, 95), (120, 28, 109), (188, 55, 84), (237, 105, 37), (251, 180, 26), (252, 255, 164)],
    np.float32,
)
"""Colours, RGB, from nothing to the most: dark to bright, so that they tell in grey too (like matplotlib's inferno)."""

_OPACITY: Final = 0.65
_SIDE: Final = 384
_GAP: Final = 12
_BAR: Final = 16
_TEXT: Final = 15
_LINE: Final = 20
_INK: Final = (32, 32, 32)
_PAPER: Final = (255, 255, 255)


def heat(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours, uint8 RGB [..., 3], of values from 0 to 1 [...]."""
    places = values.clip(0, 1) * (len(_HEAT) - 1)
    lower = np.minimum(places.astype(np.int64), len(_HEAT) - 2)
    share = (places - lower)[..., None]
    mixed = _HEAT[lower] * (1 - share) + _HEAT[lower + 1] * share
    colours: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return colours


def render(explanation: Explanation, *, top: float | None = None) -> bytes:
    """Draw an explanation as a PNG: the model's crop, beside it the map over the crop in grey, below it the words.

    Args:
        explanation: What to draw.
        top: The map's value from which on cells have the brightest colour, > 0; where left out, one that 1 cell in 100
            reaches. Give the same to compare pictures.
    """
    top = float(np.quantile(explanation.map, 0.99)) if top is None else top
    crop = Image.fromarray(explanation.rgb).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    lines = _lines(explanation)
    canvas = Image.new("RGB", (2 * _SIDE + _BAR + 5 * _GAP + 40, _SIDE + (len(lines) + 1) * _LINE + 2 * _GAP), _PAPER)
    canvas.paste(crop, (_GAP, _GAP))
    draw = ImageDraw.Draw(canvas)
    beside = 2 * _GAP + _SIDE
    if explanation.prediction.protected:
        canvas.paste(_over(crop, explanation.map / max(top, 1e-12)), (beside, _GAP))
        _draw_scale(canvas, draw, beside + _SIDE + _GAP, top)
    else:
        canvas.paste(crop.convert("L").convert("RGB"), (beside, _GAP))
        _draw_banner(draw, beside, "gate closed: no drift to show")
    for index, line in enumerate(lines):
        draw.text((_GAP, _SIDE + 2 * _GAP + index * _LINE), line, _INK, _font())
    return _png(canvas)


def _lines(explanation: Explanation) -> tuple[str, ...]:
    prediction = explanation.prediction
    return f"{prediction.labels[0]}, {prediction.probabilities[0]:.0%}", *explanation.lines()


def _over(crop: Image.Image, shares: NDArray[np.float32]) -> Image.Image:
    """The map in colours, cell by cell, over the picture in grey."""
    colours = Image.fromarray(heat(shares)).resize(crop.size, Image.Resampling.NEAREST)
    return Image.blend(crop.convert("L").convert("RGB"), colours, _OPACITY)


def _draw_scale(canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: float) -> None:
    falling = np.linspace(1, 0, _SIDE, dtype=np.float32)
    grey = Image.new("RGB", (_BAR, _SIDE), (128, 128, 128))
    canvas.paste(_over(grey, falling[:, None]), (left, _GAP))
    for share, sign in ((0.0, ""), (0.5, ""), (1.0, "+")):
        place = _GAP + round((1 - share) * (_SIDE - _TEXT)) - 1
        draw.text((left + _BAR + 4, place), f"{share * top:.0%}{sign}", _INK, _font())


def _draw_banner(draw: ImageDraw.ImageDraw, left: int, text: str) -> None:
    middle = (left + _SIDE // 2, _GAP + _SIDE // 2)
    box = draw.textbbox(middle, text, _font(), anchor="mm")
    draw.rectangle((box[0] - _GAP, box[1] - _GAP, box[2] + _GAP, box[3] + _GAP), fill=_PAPER)
    draw.text(middle, text, _INK, _font(), anchor="mm")


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT)


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
