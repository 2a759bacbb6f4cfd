"""Pictures of written things: numbers, words, and sums to solve."""

from __future__ import annotations

import math

from PIL import Image as Images
from PIL.Image import Image

from headrace.bench.demo.canvas import SCALE, Canvas, Colour, luminance, shade
from headrace.bench.demo.dialogue import Exchange
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.letters import made_up
from headrace.bench.demo.words import ANIMALS, COLOURS, FOODS, FRUITS, NAMES

# The bars of a seven-segment digit: top, upper left, upper right, middle, lower left, lower right, bottom.
SEGMENTS = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)
SHORT_WORDS = tuple(word for word in ANIMALS + FRUITS + FOODS + COLOURS + NAMES if len(word) <= 6)


def _inks(draw: Draw) -> tuple[Colour, Colour]:
    """Ground and ink with enough between them."""
    while True:
        ground = shade(draw, "white") if draw.chance(0.6) else shade(draw, draw.pick(COLOURS))
        ink = shade(draw, "black") if draw.chance(0.5) else shade(draw, draw.pick(COLOURS))
        if abs(luminance(ground) - luminance(ink)) > 70:
            return ground, ink


def _segments(canvas: Canvas, text: str, x: float, y: float, high: float, ink: Colour) -> None:
    wide, thick = high * 0.5, high * 0.11
    left = x - len(text) * wide * 1.35 / 2 + wide * 0.175
    for digit in text:
        top, middle, bottom, right = y - high / 2, y, y + high / 2, left + wide
        bars = (
            (left, top, right, top), (left, top, left, middle), (right, top, right, middle), (left, middle, right, middle),
            (left, middle, left, bottom), (right, middle, right, bottom), (left, bottom, right, bottom),
        )  # fmt: skip
        for on, (x1, y1, x2, y2) in zip(SEGMENTS[int(digit)], bars, strict=True):
            if on == "1":
                canvas.line([(x1, y1), (x2, y2)], ink, thick)
        left += wide * 1.35


def render(draw: Draw, text: str) -> Image:
    """`text` somewhere on a canvas, upright or nearly so."""
    ground, ink = _inks(draw)
    canvas = Canvas(draw, ground)
    digits = text.isdecimal()
    segmented = digits and draw.chance(0.2)
    share = 0.68 if segmented else 0.62  # width of a character, in heights
    most = min(canvas.width * 0.92 / (share * len(text) + 0.2), canvas.height * 0.8)
    high = max(min(18.0, most), most * (0.35 + 0.65 * draw.random()))
    wide = high * share * len(text)
    x = canvas.width / 2 + (2 * draw.random() - 1) * max(0.0, (canvas.width - wide) / 2 - 4) * draw.pick(
        (0, 1)
    )
    y = canvas.height / 2 + (2 * draw.random() - 1) * max(0.0, (canvas.height - high) / 2 - 4) * draw.pick(
        (0, 1)
    )
    if segmented:
        _segments(canvas, text, x, y, high * 0.85, ink)
    else:
        canvas.text(x, y, text, high, ink, draw.pick((0, 0, 0.4, 1.0)) * high / 32)
        kind = draw.random()
        centre = (x * SCALE, y * SCALE)
        if kind < 0.25:
            canvas.image = canvas.image.rotate(
                draw.between(-12, 12), Images.Resampling.BILINEAR, center=centre, fillcolor=ground
            )
        elif kind < 0.65:
            stretch = 0.9 + 0.35 * draw.random()
            lean = math.tan(math.radians(draw.between(-18, 18)))
            canvas.image = canvas.image.transform(
                canvas.image.size, Images.Transform.AFFINE, (stretch, lean, (1 - stretch) * centre[0] - lean * centre[1], 0, 1, 0), Images.Resampling.BILINEAR, fillcolor=ground
            )  # fmt: skip
    return canvas.finish(draw)


def number(draw: Draw) -> str:
    return draw.unseen(lambda: str(draw.between(0, 10 ** draw.between(1, 4) - 1)))


def word(draw: Draw) -> str:
    def one() -> str:
        found = draw.pick(SHORT_WORDS).lower() if draw.chance(0.5) else made_up(draw)
        return found[:6]

    chosen = draw.unseen(one)
    return draw.pick((chosen.lower(), chosen.upper(), chosen.capitalize()))


WHAT = (
    "What is in this picture?",
    "What do you see?",
    "what is this?",
    "Describe the picture.",
    "What is written here?",
    "What is shown here?",
    "",
)


def read_number(draw: Draw, text: str) -> Exchange:
    ask = draw.pick(
        (
            "What number is this?",
            "Read the number.",
            "Which number do you see?",
            "what number is in the picture",
            "What is the number?",
        )
    )
    return Exchange(ask if draw.chance(0.7) else draw.pick(WHAT), f"The number is {text}.")


def read_word(draw: Draw, text: str) -> Exchange:
    ask = draw.pick(
        (
            "What does it say?",
            "Read the word.",
            "What is written here?",
            "read this",
            "Which word is this?",
            "What does the sign say?",
        )
    )
    return Exchange(ask if draw.chance(0.7) else draw.pick(WHAT), f'It says "{text}".')


def sum_sign(draw: Draw) -> tuple[str, str]:
    """What is written, and its solution."""
    one, other = draw.unseen(lambda: (draw.between(0, 99), draw.between(0, 99)))
    plus = draw.chance(0.6)
    if not plus and other > one:
        one, other = other, one
    text = (
        f"{one}{'+' if plus else '-'}{other}" if draw.chance(0.3) else f"{one} {'+' if plus else '-'} {other}"
    )
    return text, f"{one} {'+' if plus else '-'} {other} = {one + other if plus else one - other}"


def solve(draw: Draw, solution: str) -> Exchange:
    ask = draw.pick(
        (
            "Solve this.",
            "What is the result?",
            "Calculate.",
            "How much is this?",
            "solve it",
            "What is the answer?",
        )
    )
    return Exchange(ask if draw.chance(0.7) else draw.pick(WHAT), solution)
