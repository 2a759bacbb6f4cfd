"""Plots as inline SVG: axes, lines, steps and dots with hover titles. Colours come from the page's style sheet.

Classes used: `s0`, `s1`, ... for series, `grid`, `axis`, `note`; the page gives each a colour for light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

Point = tuple[float, float]


class Tick(NamedTuple):
    """A place on an axis and what is written there; without text only a grid line."""

    value: float
    text: str


class Axis(NamedTuple):
    """One direction of a plot: its title, its ends, where its ticks are, and the scale that spaces values."""

    title: str
    low: float
    high: float
    ticks: list[Tick]
    scale: Callable[[float], float] = float

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end; values beyond an end stay on it."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(min(max(value, self.low), self.high)) - low) / (high - low)


def plain(value: float) -> str:
    """A tick's number without trailing zeros: 0.05, 2, 1500, 15000 as 15k."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def linear(title: str, low: float, high: float) -> Axis:
    """From low to high (widened to round numbers) with about five ticks at 1, 2 or 5 times a power of ten."""
    if high - low <= 1e-9 * max(1.0, abs(low)):
        high = low + 1.0
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    values = [round(number * step, 10) for number in range(first, last + 1)]
    thousands = max(map(abs, values)) >= 10000
    ticks = [Tick(value, f"{value / 1000:g}k" if thousands and value else plain(value)) for value in values]
    return Axis(title, ticks[0].value, ticks[-1].value, ticks)


def logarithmic(title: str, low: float, high: float) -> Axis:
    """From low to high (above 0, widened to 1, 2 or 5 times a power of ten), equal ratios equally far apart."""
    assert 0 < low <= high
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 3 else (1,)
    steps = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for factor in factors
    ]
    below = max(step for step in steps if step <= low * 1.0001)
    above = min(step for step in steps if step >= high * 0.9999 and step > below)
    ticks = [Tick(step, plain(float(f"{step:.3g}"))) for step in steps if below <= step <= above]
    return Axis(title, below, above, ticks, math.log10)


def logarithmic_over(title: str, values: Iterable[float]) -> Axis:
    """A log axis that holds these values; zeros, which it cannot, are drawn at its low end."""
    above = [value for value in values if value > 0]
    return logarithmic(title, min(above), max(above)) if above else logarithmic(title, 1.0, 1.0)


def nines(title: str, greatest: float) -> Axis:
    """Shares of a whole, spaced so that each further nine (90, 99, 99.9 %) takes as much room as the one before.

    greatest: the last share shown, below 1.
    """
    shown = [
        Tick(share, text)
        for share, text in (
            (0.0, "min" if greatest < 0.9999 else ""),
            (0.5, "50%"),
            (0.9, "90%"),
            (0.99, "99%"),
            (0.999, "99.9%"),
            (0.9999, "99.99%"),
            (0.99999, "99.999%"),
        )
        if share <= greatest
    ]
    return Axis(title, 0.0, max(greatest, 0.5), shown, lambda share: -math.log10(1 - share))


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


class Plot:
    """One picture: draw on it, then take `svg()`. Data outside of the axes is drawn at their ends."""

    LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 42

    def __init__(self, label: str, x: Axis, y: Axis, width: int = 480, height: int = 300) -> None:
        self.label = label
        self.x, self.y = x, y
        self.width, self.height = width, height
        self.marks: list[str] = []

    def at(self, point: Point) -> Point:
        """Data to pixels of the picture."""
        wide, high = self.width - self.LEFT - self.RIGHT, self.height - self.TOP - self.BOTTOM
        return self.LEFT + self.x.place(point[0]) * wide, self.TOP + (1 - self.y.place(point[1])) * high

    def line(self, points: Sequence[Point], series: str, title: str) -> None:
        """Straight from point to point."""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(self.at, points))
        self.mark(f'<path class="line {series}" d="M{path}"', title)

    def area(self, points: Sequence[Point], series: str, title: str) -> None:
        """Filled from the low end of y up to the points."""
        base = self.height - self.BOTTOM
        placed = [self.at(point) for point in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        shape = f"M{placed[0][0]:.1f} {base}L{path}L{placed[-1][0]:.1f} {base}Z"
        self.mark(f'<path class="area {series}" d="{shape}"', title)

    def dot(self, point: Point, series: str, title: str, size: float = 3.5) -> None:
        x, y = self.at(point)
        self.mark(f'<circle class="dot {series}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"', title)

    def dots(self, points: Sequence[Point], series: str, title: str, size: str = "speck") -> None:
        """Many dots as one mark with one title; `size` is the class that says how large."""
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in map(self.at, points))
        self.mark(f'<path class="{size} {series}" d="{path}"', title)

    def stroke(self, begin: Point, end: Point, kind: str, title: str) -> None:
        """A straight stroke whose look is the class `kind`."""
        (left, top), (right, bottom) = self.at(begin), self.at(end)
        self.mark(f'<path class="{kind}" d="M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}"', title)

    def level(self, value: float, text: str) -> None:
        """A horizontal line across, with its meaning written on it."""
        (left, y), right = self.at((self.x.low, value)), self.width - self.RIGHT
        self.marks.append(f'<path class="level" d="M{left} {y:.1f}H{right}"/>')
        self.text((right - 4, y - 5), text, "end")

    def text(self, pixel: Point, text: str, anchor: str = "start", kind: str = "note") -> None:
        x, y = pixel
        self.marks.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def mark(self, begin: str, title: str) -> None:
        self.marks.append(f"{begin}><title>{escape(title)}</title></{begin[1:].split(' ')[0]}>")

    def svg(self) -> str:
        """The picture with its axes, as an element for an HTML page."""
        right, base = self.width - self.RIGHT, self.height - self.BOTTOM
        parts = [
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.label)}">'
        ]
        for value, text in self.x.ticks:
            x = self.at((value, self.y.low))[0]
            parts.append(f'<path class="grid" d="M{x:.1f} {self.TOP}V{base}"/>')
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{base + 17}" text-anchor="middle">{escape(text)}</text>'
            )
        for value, text in self.y.ticks:
            y = self.at((self.x.low, value))[1]
            parts.append(f'<path class="grid" d="M{self.LEFT} {y:.1f}H{right}"/>')
            parts.append(
                f'<text class="tick" x="{self.LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
            )
        middle, foot = (self.LEFT + right) / 2, self.height - 6
        parts.append(
            f'<text class="title" x="{middle}" y="{foot}" text-anchor="middle">{escape(self.x.title)}</text>'
        )
        center = (self.TOP + base) / 2
        parts.append(
            f'<text class="title" transform="translate(13 {center}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.title)}</text>"
        )
        return "".join((*parts, *self.marks, "</svg>"))
