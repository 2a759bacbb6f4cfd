"""A surface to draw pictures on, twice as large as the picture, and the patches that the model is shown.

Sizes are those that the image processor leaves alone: multiples of 32 pixels, at most 256 patches.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from headrace.bench.demo.draw import Draw

Colour = tuple[int, int, int]
PATCH = 16
MERGE = 2
CELL = PATCH * MERGE  # pixels of one token's side
MOST_PATCHES = 256
MOST_PIXELS = MOST_PATCHES * PATCH * PATCH
FEWEST_PIXELS = MOST_PIXELS // 4
SCALE = 2

PALETTE: dict[str, Colour] = {
    "red": (220, 30, 35), "green": (35, 160, 60), "blue": (35, 80, 220), "yellow": (250, 220, 40), "orange": (250, 140, 20),
    "purple": (130, 45, 170), "pink": (250, 140, 190), "brown": (125, 75, 35), "black": (15, 15, 15), "white": (250, 250, 250),
    "gray": (130, 130, 130),
}  # fmt: skip
# What people call by the same name.
SHADES: dict[str, tuple[Colour, ...]] = {
    "red": ((255, 0, 0), (200, 0, 0), (231, 76, 60)), "green": ((0, 128, 0), (0, 200, 0), (46, 204, 113), (0, 255, 0)),
    "blue": ((0, 0, 255), (30, 60, 180), (52, 120, 219)), "yellow": ((255, 255, 0), (241, 210, 15)),
    "orange": ((255, 165, 0), (255, 127, 14), (230, 126, 34)), "purple": ((128, 0, 128), (142, 68, 173), (110, 40, 200)),
    "pink": ((255, 192, 203), (255, 105, 180)), "brown": ((139, 69, 19), (101, 67, 33)), "black": ((0, 0, 0), (30, 30, 30)),
    "white": ((255, 255, 255), (243, 243, 243)), "gray": ((128, 128, 128), (150, 150, 150), (105, 105, 105)),
}  # fmt: skip
GRIDS = tuple(
    (height, width)
    for height in range(2, 17)
    for width in range(2, 17)
    if 16 <= height * width <= MOST_PATCHES // MERGE**2 and max(height, width) <= 2 * min(height, width)
)


def shade(draw: Draw, name: str) -> Colour:
    """A colour that goes by `name`."""
    base = PALETTE[name] if draw.chance(0.4) else draw.pick(SHADES[name])
    red, green, blue = (max(0, min(255, each + draw.between(-9, 9))) for each in base)
    return red, green, blue


def luminance(colour: Colour) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own typeface, which lies inside the library."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return found


class Canvas:
    """Drawing in units of the final picture; `finish` gives the picture."""

    def __init__(self, draw: Draw, background: Colour, square: bool = False) -> None:
        shape = draw.pick(GRIDS[len(GRIDS) // 3 :]) if draw.chance(0.7) else draw.pick(GRIDS)
        if square or draw.chance(0.3):
            side = draw.pick((4, 5, 6, 7, 8, 8, 8))
            shape = side, side
        self.height, self.width = shape[0] * CELL, shape[1] * CELL
        self.image = Image.new("RGB", (self.width * SCALE, self.height * SCALE), background)
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, points: list[tuple[float, float]], fill: Colour, outline: Colour | None = None) -> None:
        self.pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill, outline, SCALE if outline else 1)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        fill: Colour | None,
        outline: Colour | None = None,
    ) -> None:
        self.pen.rectangle((left * SCALE, top * SCALE, right * SCALE, bottom * SCALE), fill, outline, SCALE)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: Colour | None,
        outline: Colour | None = None,
        width: float = 1,
    ) -> None:
        self.pen.ellipse(
            ((x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE),
            fill,
            outline,
            max(1, round(width * SCALE)),
        )

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float = 1) -> None:
        self.pen.line(
            [(x * SCALE, y * SCALE) for x, y in points], fill, max(1, round(width * SCALE)), joint="curve"
        )

    def text(self, x: float, y: float, text: str, size: float, fill: Colour, bold: float = 0) -> None:
        """`text` around the point (x, y)."""
        self.pen.text(
            (x * SCALE, y * SCALE),
            text,
            fill,
            font(max(8, round(size * SCALE))),
            anchor="mm",
            stroke_width=round(bold * SCALE),
            stroke_fill=fill,
        )

    def finish(self, draw: Draw) -> Image.Image:
        """The picture in its final size, sometimes with the marks of a camera or a careless encoder."""
        image = self.image.resize(
            (self.width, self.height), draw.pick((Image.Resampling.BOX, Image.Resampling.BICUBIC))
        )
        if draw.chance(0.1):  # a small picture, made larger
            share = 0.5 + 0.4 * draw.random()
            small = image.resize(
                (round(self.width * share), round(self.height * share)), Image.Resampling.BICUBIC
            )
            image = small.resize((self.width, self.height), Image.Resampling.BICUBIC)
        if draw.chance(0.15):
            noise = np.random.default_rng(draw.between(0, 1 << 30)).normal(
                0, draw.between(2, 9), (self.height, self.width, 1)
            )
            image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        if draw.chance(0.1):
            kept = io.BytesIO()
            image.save(kept, "JPEG", quality=draw.between(40, 90))
            image = Image.open(kept).convert("RGB")
        return image


def regular(
    x: float, y: float, radius: float, corners: int, turn: float, inner: float = 1.0
) -> list[tuple[float, float]]:
    """Corners of a regular polygon; with `inner` below 1, of a star of twice as many."""
    count = corners if inner == 1.0 else 2 * corners
    points = []
    for k in range(count):
        angle = turn + 2 * math.pi * k / count - math.pi / 2
        length = radius if k % 2 == 0 or inner == 1.0 else radius * inner
        points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
    return points


def patches(image: Image.Image) -> tuple[NDArray[np.uint8], int, int]:
    """[patches, 3 * 16 * 16] in the order of the model, and the height and width of the grid in patches.

    Two by two patches that become one token follow each other; within a patch, channel by channel."""
    pixels = np.asarray(image)
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    split = pixels.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    return split.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3 * PATCH * PATCH), rows, columns
