"""Where tokens stand on the three axes (time, row, column) of a prompt with pictures. Plain numpy, no tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.image import ImageSpan


def advance(span: ImageSpan) -> int:
    """How far the axes move over a picture: its longer side. Its tokens are mostly more than that."""
    return max(span.image.height, span.image.width)


def shift_after(spans: Sequence[ImageSpan]) -> int:
    """What to add to the index of a token behind all of `spans` to find its place, the same on every axis."""
    return sum(advance(span) - span.image.rows for span in spans)


def places(spans: Sequence[ImageSpan], start: int, count: int) -> NDArray[np.int64]:
    """[3, count]: time, row and column of tokens [start, start + count) of a prompt that holds `spans`.

    Text moves all three by one. A picture stands still in time; its rows and columns count from where it begins,
    and the text behind it goes on after the larger of the two."""
    found = np.empty((3, count), dtype=np.int64)
    end = start + count
    shift = done = 0
    for span in spans:
        if span.start >= end:
            break
        first, last = max(start, done), min(span.start, end)
        if first < last:
            found[:, first - start : last - start] = np.arange(first, last) + shift
        first, last = max(start, span.start), min(span.end, end)
        if first < last:
            inside = np.arange(first, last) - span.start
            begin = span.start + shift
            part = found[:, first - start : last - start]
            part[0] = begin
            part[1] = begin + inside // span.image.width
            part[2] = begin + inside % span.image.width
        shift += advance(span) - span.image.rows
        done = span.end
    first = max(start, done)
    if first < end:
        found[:, first - start :] = np.arange(first, end) + shift
    return found
