"""Pictures of coloured shapes, and questions about them: what, where, how many, which colour."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL.Image import Image

from headrace.bench.demo.canvas import Canvas, Colour, luminance, regular, shade
from headrace.bench.demo.dialogue import Exchange
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.words import COLOURS, NUMBER_WORDS

SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "rectangle",
    "ring",
    "diamond",
    "hexagon",
    "cross",
    "heart",
)
PLACES = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the middle", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip


@dataclass(frozen=True)
class Piece:
    shape: str
    colour: str
    cell: int  # of a grid of three by three, in reading order

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def told(self) -> str:
        return ("an " if self.colour[0] in "aeiou" else "a ") + self.name


@dataclass(frozen=True)
class Shapes:
    """A scene: what is drawn, in reading order, and on what."""

    pieces: tuple[Piece, ...]
    background: str


def apart(one: Colour, other: Colour) -> bool:
    """True if two colours cannot be mistaken for one surface."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 110


def compose(draw: Draw) -> Shapes:
    count = draw.pick((1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 9))
    background = draw.pick(("white",) * 6 + COLOURS)
    colours = [each for each in COLOURS if each != background]
    shapes = SHAPES
    if count > 3 or draw.chance(0.3):  # alike ones, so that counting some of them means something
        colours = draw.some(colours, draw.between(2, 4))
        shapes = tuple(draw.some(SHAPES, draw.between(1, 3)))
    pieces = [
        Piece(draw.pick(shapes), draw.pick(colours), cell) for cell in sorted(draw.some(range(9), count))
    ]
    return Shapes(tuple(pieces), background)


def _outline(
    draw: Draw, canvas: Canvas, piece: Piece, x: float, y: float, radius: float, fill: Colour, ground: Colour
) -> None:
    edge = (20, 20, 20) if draw.chance(0.2) and luminance(fill) > 60 else None
    turn = draw.pick((0.0, 0.0, 0.0, draw.random() - 0.5))
    if piece.shape == "circle":
        canvas.ellipse(x, y, radius, radius, fill, edge)
    elif piece.shape == "ring":
        canvas.ellipse(x, y, radius, radius, fill)
        inner = radius * (0.45 + 0.2 * draw.random())
        canvas.ellipse(x, y, inner, inner, ground)
    elif piece.shape == "square":
        canvas.polygon(regular(x, y, radius * 1.2, 4, math.pi / 4 + turn * 0.35), fill, edge)
    elif piece.shape == "diamond":
        wide = radius * (0.6 + 0.15 * draw.random())
        canvas.polygon([(x, y - radius), (x + wide, y), (x, y + radius), (x - wide, y)], fill, edge)
    elif piece.shape == "rectangle":
        long, short = radius * (1.0 + 0.15 * draw.random()), radius * (0.45 + 0.1 * draw.random())
        wide, high = (long, short) if draw.chance(0.6) else (short, long)
        canvas.box(x - wide, y - high, x + wide, y + high, fill, edge)
    elif piece.shape == "triangle":
        canvas.polygon(
            regular(x, y + radius * 0.15, radius * 1.1, 3, turn + math.pi * draw.chance(0.15)), fill, edge
        )
    elif piece.shape == "hexagon":
        canvas.polygon(regular(x, y, radius, 6, draw.pick((0.0, math.pi / 6))), fill, edge)
    elif piece.shape == "star":
        canvas.polygon(regular(x, y, radius * 1.1, 5, turn, 0.4 + 0.08 * draw.random()), fill, edge)
    elif piece.shape == "cross":
        thin = radius * (0.25 + 0.12 * draw.random())
        canvas.box(x - radius, y - thin, x + radius, y + thin, fill)
        canvas.box(x - thin, y - radius, x + thin, y + radius, fill)
    else:
        assert piece.shape == "heart"
        points = []
        for k in range(40):
            t = 2 * math.pi * k / 40
            points.append(
                (x + radius / 16 * 16 * math.sin(t) ** 3,
                 y - radius / 16 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
            )  # fmt: skip
        canvas.polygon(points, fill, edge)


def render(draw: Draw, scene: Shapes) -> Image:
    ground = shade(draw, scene.background)
    canvas = Canvas(draw, ground)
    wide, high = canvas.width / 3, canvas.height / 3
    reach = min(wide, high) / 2
    alone = len(scene.pieces) == 1
    for piece in scene.pieces:
        row, column = divmod(piece.cell, 3)
        radius = reach * (0.55 + 0.4 * draw.random())
        if alone and draw.chance(0.5):
            radius = reach * (0.8 + 0.9 * draw.random())
        slack = max(0.0, 0.9 * reach - radius * 0.9)
        x = (column + 0.5) * wide + (2 * draw.random() - 1) * slack
        y = (row + 0.5) * high + (2 * draw.random() - 1) * slack
        x = min(max(x, radius * 1.15), canvas.width - radius * 1.15)
        y = min(max(y, radius * 1.15), canvas.height - radius * 1.15)
        fill = shade(draw, piece.colour)
        for _ in range(20):
            if apart(fill, ground):
                break
            fill = shade(draw, piece.colour)
        _outline(draw, canvas, piece, x, y, radius, fill, ground)
    return canvas.finish(draw)


def joined(parts: list[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


WHAT = (
    "What is in this picture?", "What do you see?", "Describe the picture.", "what is this?", "Describe this image.", "What's in the image?",
    "what do you see in this picture", "Tell me what you see.", "What is shown here?", "describe", "What is this a picture of?", "",
)  # fmt: skip


def describe(draw: Draw, scene: Shapes) -> Exchange:
    told = [f"{piece.told} {PLACES[piece.cell]}" for piece in scene.pieces]
    text = (
        joined(told)
        + f", on {'an' if scene.background[0] in 'aeiou' else 'a'} {scene.background} background."
    )
    return Exchange(draw.pick(WHAT), text[0].upper() + text[1:])


def number_of(draw: Draw, scene: Shapes) -> Exchange:
    kind = draw.between(0, 3)
    piece = draw.pick(scene.pieces)
    shape, colour = piece.shape, piece.colour
    if draw.chance(0.15):
        shape = draw.pick(SHAPES)
    if draw.chance(0.15):
        colour = draw.pick([each for each in COLOURS if each != scene.background])
    if kind == 0:
        noun, found = "shape", len(scene.pieces)
    elif kind == 1:
        noun, found = shape, sum(each.shape == shape for each in scene.pieces)
    elif kind == 2:
        noun, found = f"{colour} shape", sum(each.colour == colour for each in scene.pieces)
    else:
        noun = f"{colour} {shape}"
        found = sum(each.name == noun for each in scene.pieces)
    many = noun + ("es" if noun.endswith(("s", "x")) else "s")
    ask = draw.pick(
        (
            "How many {} are there?",
            "how many {} do you see",
            "Count the {}.",
            "How many {}?",
            "How many {} are in the picture?",
        )
    )
    word = NUMBER_WORDS[found] if found else "no"
    verb = "is" if found == 1 else "are"
    return Exchange(ask.format(many), f"There {verb} {word} {noun if found == 1 else many}.")


def colour_of(draw: Draw, scene: Shapes) -> Exchange | None:
    single = [piece for piece in scene.pieces if sum(each.shape == piece.shape for each in scene.pieces) == 1]
    if not single or draw.chance(0.15):
        ask = draw.pick(
            ("What colour is the background?", "what color is the background", "Which colour is behind?")
        )
        return Exchange(ask, f"The background is {scene.background}.")
    piece = draw.pick(single)
    ask = draw.pick(
        (
            "What colour is the {}?",
            "what color is the {}",
            "Which colour does the {} have?",
            "color of the {}?",
        )
    )
    return Exchange(ask.format(piece.shape), f"The {piece.shape} is {piece.colour}.")


def shape_of(draw: Draw, scene: Shapes) -> Exchange | None:
    single = [
        piece for piece in scene.pieces if sum(each.colour == piece.colour for each in scene.pieces) == 1
    ]
    if not single:
        return None
    piece = draw.pick(single)
    if len(scene.pieces) == 1 and draw.chance(0.4):
        return Exchange(
            draw.pick(("Which shape is this?", "What shape is it?", "what shape do you see?")),
            f"It is {piece.told}.",
        )
    ask = draw.pick(("Which shape is {}?", "what shape is {}", "What is the {} shape?", "What is {}?"))
    return Exchange(ask.format(piece.colour), f"The {piece.shape} is {piece.colour}.")


def where(draw: Draw, scene: Shapes) -> Exchange | None:
    single = [piece for piece in scene.pieces if sum(each.shape == piece.shape for each in scene.pieces) == 1]
    if not single:
        return None
    piece = draw.pick(single)
    name = piece.shape if draw.chance(0.6) else piece.name
    ask = draw.pick(
        ("Where is the {}?", "where is the {}", "In which place is the {}?", "position of the {}?")
    )
    return Exchange(ask.format(name), f"The {name} is {PLACES[piece.cell]}.")


def at_place(draw: Draw, scene: Shapes) -> Exchange:
    cell = draw.pick(scene.pieces).cell if draw.chance(0.8) else draw.between(0, 8)
    ask = draw.pick(("What is {}?", "What do you see {}?", "which shape is {}")).format(PLACES[cell])
    found = [piece for piece in scene.pieces if piece.cell == cell]
    told = found[0].told if found else "nothing"
    return Exchange(
        ask,
        f"{told[0].upper()}{told[1:]} is {PLACES[cell]}." if found else f"There is nothing {PLACES[cell]}.",
    )


def is_there(draw: Draw, scene: Shapes) -> Exchange:
    piece = draw.pick(scene.pieces)
    shape, colour = piece.shape, piece.colour
    if draw.chance(0.55):
        if draw.chance(0.5):
            shape = draw.pick(SHAPES)
        else:
            colour = draw.pick([each for each in COLOURS if each != scene.background])
    name = shape if draw.chance(0.4) else f"{colour} {shape}"
    told = ("an " if name[0] in "aeiou" else "a ") + name
    there = any(name in (each.shape, each.name) for each in scene.pieces)
    ask = draw.pick(("Is there {}?", "Do you see {}?", "is there {} in the picture", "Can you see {}?"))
    return Exchange(ask.format(told), f"Yes, there is {told}." if there else f"No, there is no {name}.")


Question = Callable[[Draw, Shapes], Exchange | None]
QUESTIONS: dict[str, Question] = {
    "describe shapes": describe, "count shapes": number_of, "colour of a shape": colour_of, "shape of a colour": shape_of,
    "where is a shape": where, "what is at a place": at_place, "is it there": is_there,
}  # fmt: skip
