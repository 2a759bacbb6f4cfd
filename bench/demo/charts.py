"""Pictures of simple charts: bars with or without figures, pies, lines."""

from __future__ import annotations

from dataclasses import dataclass

from PIL.Image import Image

from headrace.bench.demo.canvas import SCALE, Canvas, Colour, shade
from headrace.bench.demo.dialogue import Exchange
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.shapes import joined
from headrace.bench.demo.words import NUMBER_WORDS

BAR_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "gray")
INK: Colour = (25, 25, 25)
TOP = 10  # of the scale
WHAT = (
    "What is in this picture?",
    "What do you see?",
    "Describe the picture.",
    "what is this?",
    "Describe the chart.",
    "What does the chart show?",
    "",
)


@dataclass(frozen=True)
class Bars:
    values: tuple[int, ...]
    colours: tuple[str, ...]

    def label(self, at: int) -> str:
        return chr(ord("A") + at)


def compose_bars(draw: Draw) -> Bars:
    def values() -> tuple[int, ...]:
        return tuple(draw.some(range(1, TOP + 1), draw.between(2, 5)))

    heights = draw.unseen(values)
    if draw.chance(0.4):
        colours = [draw.pick(BAR_COLOURS)] * len(heights)
    else:
        colours = draw.some(BAR_COLOURS, len(heights))
    return Bars(heights, tuple(colours))


def render_bars(draw: Draw, bars: Bars) -> Image:
    """Every bar has its letter below it, and its figure above it or a scale at the side."""
    canvas = Canvas(draw, shade(draw, "white"), square=True)
    side = canvas.width
    size = max(13.0, side * 0.08)
    figures = draw.chance(0.6)
    left = size * (0.8 if figures else 1.9)
    top, bottom, right = size * 1.6, side - size * 1.5, side - size * 0.4
    step = (bottom - top) / TOP
    if not figures:
        for value in range(0, TOP + 1, draw.pick((1, 2))):
            y = bottom - value * step
            canvas.line([(left, y), (right, y)], (205, 205, 205), 0.7)
            if value % 2 == 0:
                canvas.text(left - size * 0.8, y, str(value), size * 0.85, INK)
    pitch = (right - left) / len(bars.values)
    width = pitch * (0.5 + 0.3 * draw.random())
    for at, (value, colour) in enumerate(zip(bars.values, bars.colours, strict=True)):
        x = left + pitch * (at + 0.5)
        canvas.box(x - width / 2, bottom - value * step, x + width / 2, bottom, shade(draw, colour))
        canvas.text(x, bottom + size * 0.75, bars.label(at), size, INK)
        if figures:
            canvas.text(x, bottom - value * step - size * 0.7, str(value), size, INK)
    canvas.line([(left, bottom), (right, bottom)], INK, 1)
    if not figures or draw.chance(0.5):
        canvas.line([(left, top - size * 0.3), (left, bottom)], INK, 1)
    return canvas.finish(draw)


def describe_bars(draw: Draw, bars: Bars) -> Exchange:
    told = joined([f"{bars.label(at)} is {value}" for at, value in enumerate(bars.values)])
    return Exchange(draw.pick(WHAT), f"A bar chart with {NUMBER_WORDS[len(bars.values)]} bars: {told}.")


def value_of(draw: Draw, bars: Bars) -> Exchange:
    at = draw.between(0, len(bars.values) - 1)
    ask = draw.pick(
        ("What is the value of {}?", "How high is {}?", "value of {}?", "How much is {}?", "Read the bar {}.")
    )
    return Exchange(ask.format(bars.label(at)), f"{bars.label(at)} is {bars.values[at]}.")


def extreme_bar(draw: Draw, bars: Bars) -> Exchange:
    highest = draw.chance(0.6)
    value = max(bars.values) if highest else min(bars.values)
    label = bars.label(bars.values.index(value))
    if highest:
        ask = draw.pick(
            (
                "Which bar is the highest?",
                "Which is the tallest bar?",
                "What is the largest value?",
                "which one is the biggest",
            )
        )
        return Exchange(ask, f"{label} is the highest, with {value}.")
    ask = draw.pick(
        (
            "Which bar is the lowest?",
            "Which is the shortest bar?",
            "What is the smallest value?",
            "which one is the smallest",
        )
    )
    return Exchange(ask, f"{label} is the lowest, with {value}.")


def count_bars(draw: Draw, bars: Bars) -> Exchange:
    ask = draw.pick(("How many bars are there?", "how many bars", "Count the bars."))
    return Exchange(ask, f"There are {NUMBER_WORDS[len(bars.values)]} bars.")


def colour_of_bar(draw: Draw, bars: Bars) -> Exchange:
    at = draw.between(0, len(bars.values) - 1)
    ask = draw.pick(("What colour is {}?", "Which colour does bar {} have?", "what color is bar {}")).format(
        bars.label(at)
    )
    return Exchange(ask, f"{bars.label(at)} is {bars.colours[at]}.")


BAR_QUESTIONS = {
    "describe a bar chart": describe_bars, "value of a bar": value_of, "highest bar": extreme_bar, "count bars": count_bars,
    "colour of a bar": colour_of_bar,
}  # fmt: skip


@dataclass(frozen=True)
class Pie:
    shares: tuple[int, ...]  # of sixteen
    colours: tuple[str, ...]


def compose_pie(draw: Draw) -> Pie:
    def cut() -> tuple[int, ...]:
        while True:
            shares = [draw.between(1, 9) for _ in range(draw.between(2, 4))]
            top = sorted(shares)
            if sum(shares) == 16 and top[-1] - top[-2] >= 2 and (len(top) == 2 or top[1] - top[0] >= 2):
                return tuple(shares)

    shares = cut()
    colours = draw.unseen(lambda: tuple(draw.some(BAR_COLOURS, len(shares))))
    return Pie(shares, colours)


def render_pie(draw: Draw, pie: Pie) -> Image:
    canvas = Canvas(draw, shade(draw, "white"))
    radius = min(canvas.width, canvas.height) * (0.3 + 0.15 * draw.random())
    x, y = canvas.width / 2, canvas.height / 2
    start = draw.random() * 360
    box = tuple(each * SCALE for each in (x - radius, y - radius, x + radius, y + radius))
    edge = draw.pick((None, (255, 255, 255), INK))
    for share, colour in zip(pie.shares, pie.colours, strict=True):
        end = start + share * 360 / 16
        canvas.pen.pieslice(box, start, end, shade(draw, colour), edge, SCALE)
        start = end
    return canvas.finish(draw)


def pie_question(draw: Draw, pie: Pie) -> Exchange:
    kind = draw.between(0, 3)
    if kind == 0:
        return Exchange(
            draw.pick(("How many parts does the pie have?", "How many slices?", "Count the slices.")),
            f"There are {NUMBER_WORDS[len(pie.shares)]} slices.",
        )
    largest = pie.colours[pie.shares.index(max(pie.shares))]
    if kind == 1 or (len(pie.shares) == 2 and kind == 2):
        return Exchange(
            draw.pick(
                ("Which slice is the largest?", "What is the biggest part?", "Which colour has the most?")
            ),
            f"The {largest} slice is the largest.",
        )
    if kind == 2:
        least = pie.colours[pie.shares.index(min(pie.shares))]
        return Exchange(
            draw.pick(
                ("Which slice is the smallest?", "What is the smallest part?", "Which colour has the least?")
            ),
            f"The {least} slice is the smallest.",
        )
    return Exchange(
        draw.pick(WHAT), f"A pie chart with {NUMBER_WORDS[len(pie.shares)]} slices; the largest is {largest}."
    )


@dataclass(frozen=True)
class Trend:
    values: tuple[int, ...]
    kind: str


TREND_ANSWERS = {
    "up": "The line goes up.", "down": "The line goes down.", "peak": "The line goes up and then down.",
    "valley": "The line goes down and then up.", "flat": "The line stays level.",
}  # fmt: skip


def compose_trend(draw: Draw) -> Trend:
    def case() -> Trend:
        kind = draw.pick(tuple(TREND_ANSWERS))
        count = draw.between(5, 8)
        if kind == "flat":
            return Trend((draw.between(2, 8),) * count, kind)
        steps = [draw.between(1, 3) for _ in range(count - 1)]
        turn = draw.between(2, count - 3) if kind in ("peak", "valley") else count
        sign = -1 if kind in ("down", "valley") else 1
        values = [0]
        for at, step in enumerate(steps):
            values.append(values[-1] + (sign if at < turn else -sign) * step)
        return Trend(tuple(values), kind)

    return draw.unseen(case)


def render_trend(draw: Draw, trend: Trend) -> Image:
    canvas = Canvas(draw, shade(draw, "white"))
    margin = min(canvas.width, canvas.height) * 0.12
    low, high = min(trend.values), max(trend.values)
    if low == high:
        low, high = 0, 10
    wide, tall = canvas.width - 2 * margin, canvas.height - 2 * margin
    points = [
        (
            margin + wide * at / (len(trend.values) - 1),
            canvas.height - margin - tall * (value - low) / (high - low),
        )
        for at, value in enumerate(trend.values)
    ]
    if draw.chance(0.5):
        for k in range(5):
            y = margin + tall * k / 4
            canvas.line([(margin, y), (margin + wide, y)], (215, 215, 215), 0.7)
    canvas.line(
        [
            (margin, margin * 0.7),
            (margin, canvas.height - margin),
            (canvas.width - margin * 0.7, canvas.height - margin),
        ],
        INK,
        1,
    )
    colour = shade(draw, draw.pick(("red", "blue", "green", "black", "purple", "orange")))
    canvas.line(points, colour, draw.pick((1.5, 2, 3)))
    if draw.chance(0.4):
        for x, y in points:
            canvas.ellipse(x, y, 3, 3, colour)
    return canvas.finish(draw)


def trend_question(draw: Draw, trend: Trend) -> Exchange:
    if draw.chance(0.3):
        return Exchange(draw.pick(WHAT), "A line chart. " + TREND_ANSWERS[trend.kind])
    ask = draw.pick(
        (
            "Does the line go up or down?",
            "How does the line run?",
            "What is the trend?",
            "Describe the line.",
            "up or down?",
        )
    )
    return Exchange(ask, TREND_ANSWERS[trend.kind])
