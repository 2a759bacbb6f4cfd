"""What becomes of a picture of some size. Plain numbers."""

from __future__ import annotations

from typing import NamedTuple

COUNT_LIMIT = 8  # pictures of one request
ASPECT_LIMIT = 200  # of the longer side to the shorter one


class TooNarrow(Exception):
    """No size fits this picture; the text says why."""


class Tiling(NamedTuple):
    """How a picture that was cut into `high` x `wide` tiles is put together again, in patches: `top` and `left` are
    left out at both ends, for nothing of the picture is there; the rest becomes `lines` x `columns`."""

    high: int
    wide: int
    top: int
    left: int
    lines: int
    columns: int


class Shape(NamedTuple):
    """All as (height, width). resized: pixels that the whole picture is scaled to; kept: pixels in the middle of it
    that the tower is given, black where it has none; grid: rows that it makes of them. tiling: where `kept` is cut
    into tiles; before them, the tower is given the whole picture stretched to one."""

    resized: tuple[int, int]
    kept: tuple[int, int]
    grid: tuple[int, int]
    tiling: Tiling | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Pixels that the tower is given: the whole picture, or a column of tiles."""
        if self.tiling is None:
            return self.kept
        side = self.kept[0] // self.tiling.high
        return (1 + self.tiling.high * self.tiling.wide) * side, side


def check_aspect(height: int, width: int) -> None:
    """Raise TooNarrow for a picture that is hardly more than a line."""
    if max(height, width) > ASPECT_LIMIT * min(height, width):
        raise TooNarrow(f"is {width} x {height}: one side is more than {ASPECT_LIMIT} times the other")
