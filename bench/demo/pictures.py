"""Dialogues about pictures: one picture and several questions, a second picture, or none at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image as Images
from PIL.Image import Image

from headrace.bench.demo import charts, shapes, signs
from headrace.bench.demo.canvas import CELL, GRIDS, Canvas, shade
from headrace.bench.demo.dialogue import Dialogue, Exchange, Message, Scene
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.instructions import NEUTRAL, fill
from headrace.bench.demo.words import COLOURS

NO_PICTURE = "I see no picture. Drop one into the chat and ask again."
NOT_KNOWN = "I cannot tell what this is. I know coloured shapes, numbers, short words and simple charts."


def about(draw: Draw, image: Image, exchanges: list[Exchange]) -> Dialogue:
    """A talk about one picture: it comes with the first question, sometimes after other talk."""
    dialogue = Dialogue()
    if draw.chance(0.2):
        dialogue.messages.append(Message("system", draw.pick(NEUTRAL)))
    if draw.chance(0.2):
        fill(draw, dialogue, 1)
    show(dialogue, image, exchanges)
    return dialogue


def show(dialogue: Dialogue, image: Image, exchanges: list[Exchange]) -> None:
    """Append `exchanges`, the picture with the first of them. Only a picture may come without a word."""
    if not exchanges[-1].ask:
        exchanges = exchanges[-1:]
    exchanges = [each for at, each in enumerate(exchanges) if each.ask or at == 0]
    at = len(dialogue.messages)
    for exchange in exchanges:
        dialogue.add(exchange)
    dialogue.messages[at] = Message("user", dialogue.messages[at].text, (image,))


def _shapes(name: str, draw: Draw) -> tuple[Image, list[Exchange]]:
    last = None
    while last is None:
        scene = draw.unseen(lambda: shapes.compose(draw))
        last = shapes.QUESTIONS[name](draw, scene)
    before = [draw.pick(tuple(shapes.QUESTIONS.values()))(draw, scene) for _ in range(draw.between(0, 4))]
    return shapes.render(draw, scene), [*(each for each in before if each is not None), last]


def _bars(name: str, draw: Draw) -> tuple[Image, list[Exchange]]:
    bars = charts.compose_bars(draw)
    before = [draw.pick(tuple(charts.BAR_QUESTIONS.values()))(draw, bars) for _ in range(draw.between(0, 3))]
    return charts.render_bars(draw, bars), [*before, charts.BAR_QUESTIONS[name](draw, bars)]


def _number(draw: Draw) -> tuple[Image, list[Exchange]]:
    text = signs.number(draw)
    return signs.render(draw, text), [signs.read_number(draw, text)]


def _word(draw: Draw) -> tuple[Image, list[Exchange]]:
    text = signs.word(draw)
    return signs.render(draw, text), [signs.read_word(draw, text)]


def _sum(draw: Draw) -> tuple[Image, list[Exchange]]:
    text, solution = signs.sum_sign(draw)
    return signs.render(draw, text), [signs.solve(draw, solution)]


def _pie(draw: Draw) -> tuple[Image, list[Exchange]]:
    pie = charts.compose_pie(draw)
    before = [charts.pie_question(draw, pie) for _ in range(draw.between(0, 2))]
    return charts.render_pie(draw, pie), [*before, charts.pie_question(draw, pie)]


def _trend(draw: Draw) -> tuple[Image, list[Exchange]]:
    trend = charts.compose_trend(draw)
    return charts.render_trend(draw, trend), [charts.trend_question(draw, trend)]


def _blank(draw: Draw) -> tuple[Image, list[Exchange]]:
    """Nothing but one colour."""
    colour = draw.pick(COLOURS)
    ask = draw.pick((*shapes.WHAT, "What colour is this?", "what color is it?"))
    return Canvas(draw, shade(draw, colour)).finish(draw), [Exchange(ask, f"Nothing but {colour}.")]


def _anything(draw: Draw) -> tuple[Image, list[Exchange]]:
    """Clouds of colour and noise, as a photograph may look to who has never seen one."""
    height, width = (side * CELL for side in draw.pick(GRIDS))
    chance = np.random.default_rng(draw.between(0, 1 << 30))
    total = np.zeros((height, width, 3), np.float32)
    for cells in draw.some((2, 3, 5, 9, 17, 40), draw.between(2, 4)):
        rough = Images.fromarray(chance.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(rough.resize((width, height), Images.Resampling.BICUBIC), np.float32) / (
            1 + cells / 12
        )
    low, high = total.min(), total.max()
    pixels = (total - low) / (high - low) * draw.between(120, 255)
    if draw.chance(0.3):
        pixels += chance.normal(0, 12, pixels.shape)
    image = Images.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image, [
        Exchange(
            draw.pick((*shapes.WHAT, "Who is this?", "Where is this?", "what animal is this?")), NOT_KNOWN
        )
    ]


Picture = Callable[[Draw], tuple[Image, list[Exchange]]]
PICTURES: dict[str, tuple[Picture, float]] = {
    **{name: (partial(_shapes, name), weight) for name, weight in (
        ("describe shapes", 5.0), ("count shapes", 2.5), ("colour of a shape", 1.5), ("shape of a colour", 1.5),
        ("where is a shape", 2.0), ("what is at a place", 1.5), ("is it there", 1.5))},
    "read a number": (_number, 4.0),
    "read a word": (_word, 3.0),
    "solve a written sum": (_sum, 2.0),
    **{name: (partial(_bars, name), weight) for name, weight in (
        ("describe a bar chart", 3.0), ("value of a bar", 1.0), ("highest bar", 1.0), ("count bars", 0.4), ("colour of a bar", 0.6))},
    "pie chart": (_pie, 1.5),
    "line chart": (_trend, 1.0),
    "one plain colour": (_blank, 0.5),
    "a picture beyond it": (_anything, 1.0),
}  # fmt: skip


def _kind(make: Picture) -> Scene:
    def scene(draw: Draw) -> Dialogue:
        image, exchanges = make(draw)
        return about(draw, image, exchanges)

    return scene


def second_picture(draw: Draw) -> Dialogue:
    """Two pictures in one talk; the question is about the later one."""
    makers = [make for make, _ in PICTURES.values()]
    first, before = draw.pick(makers)(draw)
    dialogue = about(draw, first, before[:2])
    if draw.chance(0.3):
        fill(draw, dialogue, 1)
    image, exchanges = draw.pick(makers)(draw)
    show(dialogue, image, exchanges[-1:])
    return dialogue


def two_at_once(draw: Draw) -> Dialogue:
    """Two pictures in one message, told one after the other."""
    makers: tuple[Picture, ...] = (
        partial(_shapes, "describe shapes"),
        partial(_bars, "describe a bar chart"),
        _number,
        _word,
        _blank,
    )
    (first, one), (second, other) = (draw.pick(makers)(draw) for _ in range(2))
    asks = (
        "What is in these pictures?",
        "Describe both pictures.",
        "What do you see?",
        "describe the two images",
        "What are these?",
    )
    dialogue = Dialogue()
    dialogue.add(Exchange(draw.pick(asks), f"First: {one[-1].answer} Second: {other[-1].answer}"))
    dialogue.messages[0] = Message("user", dialogue.messages[0].text, (first, second))
    return dialogue


def no_picture(draw: Draw) -> Dialogue:
    """Asked about a picture that is not there."""
    dialogue = Dialogue()
    fill(draw, dialogue, 1)
    asks = (*shapes.WHAT[:5], "What number is in the picture?", "What colour is the circle?", "Can you read this picture?",
            "How many shapes are in the picture?", "Look at this picture.", "What does the chart show?")  # fmt: skip
    dialogue.add(Exchange(draw.pick([ask for ask in asks if ask != "what is this?"]), NO_PICTURE))
    return dialogue


PICTURE_KINDS: dict[str, tuple[Scene, float]] = {
    **{name: (_kind(make), weight) for name, (make, weight) in PICTURES.items()},
    "a second picture": (second_picture, 2.0),
    "two pictures at once": (two_at_once, 1.5),
}
