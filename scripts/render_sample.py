"""Draws ``afd_serve/data/wall_clock_qf10.jpg``, the project's own sample picture: nobody else's work is in it.

The picture is drawn at four times its size with shading, a shadow and some grain, scaled down and saved as a JPEG of
quality 10, so that a classifier sees something like a photograph that was compressed too hard.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT = 400, 320
SCALE = 4
DARK = (20, 20, 20)


def wall() -> Image.Image:
    """A plastered wall, lit from the upper left."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    light = 0.82 + 0.25 * (1 - (((x - WIDTH * 0.3) / WIDTH) ** 2 + ((y - HEIGHT * 0.2) / HEIGHT) ** 2))
    coarse = random.normal(0, 1, (HEIGHT // 4 + 1, WIDTH // 4 + 1)).astype(np.float32)
    spots = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    colour = np.array((205.0, 196.0, 180.0)) * light[..., None]
    grained = colour + spots[..., None] * 4 + random.normal(0, 2.5, (HEIGHT, WIDTH, 1))
    picture = Image.fromarray(grained.clip(0, 255).astype(np.uint8))
    return picture.resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.BICUBIC)


def clock() -> Image.Image:
    """A wooden wall clock that shows ten past ten."""
    picture = wall()
    middle_x, middle_y, radius = WIDTH * SCALE / 2, HEIGHT * SCALE / 2, HEIGHT * SCALE * 0.38

    def at(angle: float, distance: float) -> tuple[float, float]:
        return middle_x + distance * math.sin(angle), middle_y - distance * math.cos(angle)

    def disc(size: float) -> tuple[float, float, float, float]:
        return middle_x - size, middle_y - size, middle_x + size, middle_y + size

    shadow = Image.new("L", picture.size, 0)
    left, top, right, bottom = disc(radius)
    ImageDraw.Draw(shadow).ellipse((left + 40, top + 60, right + 40, bottom + 60), fill=150)
    picture.paste((60, 52, 45), mask=shadow.filter(ImageFilter.GaussianBlur(40)))

    draw = ImageDraw.Draw(picture)
    for step in range(40):
        depth = step / 40
        wood = tuple(int(channel * (1 - abs(depth - 0.4)) + 40) for channel in (110, 60, 30))
        draw.ellipse(disc(radius * (1 - 0.14 * depth)), fill=wood)
    draw.ellipse(disc(radius * 0.86), fill=(60, 40, 25))
    draw.ellipse(disc(radius * 0.84), fill=(244, 240, 228))

    for minute in range(60):
        angle = minute * math.pi / 30
        inner, width = (0.74, SCALE) if minute % 5 else (0.70, 3 * SCALE)
        draw.line((*at(angle, radius * inner), *at(angle, radius * 0.79)), fill=DARK, width=width)
    font = ImageFont.load_default(size=radius * 0.19)
    for hour in range(1, 13):
        draw.text(at(hour * math.pi / 6, radius * 0.57), str(hour), fill=DARK, font=font, anchor="mm")
    for degrees, length, width, colour in ((305, 0.45, 24, DARK), (60, 0.66, 16, DARK), (200, 0.7, 6, (180, 30, 30))):
        angle = math.radians(degrees)
        draw.line((*at(angle, -radius * 0.1), *at(angle, radius * length)), fill=colour, width=width)
    draw.ellipse(disc(radius * 0.05), fill=DARK)
    small = picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return small.filter(ImageFilter.GaussianBlur(0.5))


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("afd_serve/data/wall_clock_qf10.jpg"))
    clock().save(parser.parse_args().out, quality=10)


if __name__ == "__main__":
    main()
