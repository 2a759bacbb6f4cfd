"""A picture ready for the model, and where it stands in a prompt. Knows numbers only: no file format, no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.runtime.image_shape import Tiling


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """Checked pixels at the size that the tower wants.

    key: a negative number of 256 bits, made of everything that decides its rows and of its tenant's salt; equal
    keys are equal pictures, and no token has such an id. rows: tokens it takes in a prompt, `height` lines of
    `width`. pixels: RGB, one byte a colour, line by line, `size` (height, width) pixels. tiling: what they are
    where they are a column of tiles.
    """

    key: int
    height: int
    width: int
    size: tuple[int, int]
    pixels: bytes = field(repr=False)
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        assert self.key < 0, "a picture's key is no token id"
        assert self.height >= 1 and self.width >= 1
        assert len(self.pixels) == 3 * self.size[0] * self.size[1]

    @property
    def rows(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Tokens [start, end) of a prompt stand for `image`."""

    start: int
    image: Image

    @property
    def end(self) -> int:
        return self.start + self.image.rows
