"""What becomes of a picture of some size. Plain numbers."""

from __future__ import annotations

from typing import NamedTuple

COUNT_LIMIT = 8  # pictures of one request
ASPECT_LIMIT = 200  # of the longer side to the shorter one


class TooNarrow(Exception):
    """No size fits this picture; the text says why."""


class Shape(NamedTuple):
    """All as (height, width). resized: pixels that the whole picture is scaled to; kept: pixels in the middle of it
    that the tower is given; grid: rows that it makes of them."""

    resized: tuple[int, int]
    kept: tuple[int, int]
    grid: tuple[int, int]


def check_aspect(height: int, width: int) -> None:
    """Raise TooNarrow for a picture that is hardly more than a line."""
    if max(height, width) > ASPECT_LIMIT * min(height, width):
        raise TooNarrow(f"is {width} x {height}: one side is more than {ASPECT_LIMIT} times the other")
