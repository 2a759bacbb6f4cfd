"""The example pictures of the chat page: drawn as the model has learned them, from scenes that are written here.

python -P -m headrace.bench.demo.examples clients/web
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from PIL.Image import Image

from headrace.bench.demo import charts, shapes
from headrace.bench.demo.draw import Draw

SCENE = shapes.Shapes(
    (shapes.Piece("star", "yellow", 0), shapes.Piece("circle", "red", 4), shapes.Piece("square", "blue", 8)),
    "white",
)
BARS = charts.Bars((4, 9, 6), ("blue", "orange", "green"))
TREND = charts.Trend((2, 5, 8, 6, 3), "peak")

PICTURES: dict[str, Callable[[Draw], Image]] = {
    "example-shapes.png": lambda draw: shapes.render(draw, SCENE),
    "example-chart.png": lambda draw: charts.render_bars(draw, BARS),
    "example-line.png": lambda draw: charts.render_trend(draw, TREND),
}


def example(name: str) -> Image:
    """The first square drawing of 256 pixels: there the picture is seen best, and nothing is resized."""
    for seed in range(10_000):
        image = PICTURES[name](Draw(seed))
        colours = image.getcolors(400)  # so that no noise lies over it
        if image.size != (256, 256) or colours is None:
            continue
        _, ground = max(colours)
        if isinstance(ground, tuple) and ground > (240, 240, 240):
            return image
    raise AssertionError("a third of all canvases are squares, and an eighth of those are of this size")


def main(out: Path) -> None:
    """Write every example to `out`."""
    for name in PICTURES:
        example(name).save(out / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
