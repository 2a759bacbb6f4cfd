"""Every kind of dialogue with its share of the training, and the two ways to draw one: to learn, to be asked."""

from __future__ import annotations

from itertools import accumulate

from headrace.bench.demo import (
    dates,
    instructions,
    letters,
    numbers,
    pictures,
    stories,
    structured,
    talk,
    tools,
)
from headrace.bench.demo.dialogue import Dialogue, Exchange, Maker, Scene
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.instructions import fill, neutral

EXCHANGES: dict[str, tuple[Maker, float]] = {
    "small talk": (talk.small_talk, 3), "about itself and headrace": (talk.about, 5), "a few facts": (talk.world, 4),
    "capitals": (talk.capital, 2), "opposites": (talk.opposite, 1.5), "words in three languages": (talk.translate, 2),
    "honest: I do not know": (talk.unknown, 6),
    "addition": (numbers.add, 6), "subtraction": (numbers.subtract, 6), "multiplication": (numbers.multiply, 5),
    "division": (numbers.divide, 1.5), "word problems": (numbers.story_sum, 3), "larger or smaller": (numbers.compare, 2),
    "sums that are too large": (numbers.too_large, 1.5),
    "even or odd": (numbers.even_or_odd, 1), "counting": (numbers.count, 2.5), "next number": (numbers.next_number, 2),
    "sorting numbers": (numbers.sort_numbers, 4), "largest and smallest": (numbers.extreme, 2),
    "number words": (numbers.number_word, 1), "counting things": (numbers.count_things, 2.5),
    "spelling": (letters.spell, 3), "how many letters": (letters.letters_in, 2.5), "one letter in a word": (letters.one_letter_in, 3),
    "backwards": (letters.backwards, 2.5), "first and last letter": (letters.end_letter, 1.5), "sorting words": (letters.sort_words, 3.5),
    "reversing a list": (letters.reverse_list, 1.5), "counting words": (letters.count_words, 1.5), "repeating": (letters.repeat, 4),
    "capital letters": (letters.capitals, 1.5),
    "units": (dates.units, 3), "days of the week": (dates.weekday, 2), "months": (dates.month, 1.5), "ISO dates": (dates.iso_date, 2),
    "days later": (dates.days_later, 3), "clock": (dates.clock, 3),
    "JSON objects": (structured.make_object, 3), "JSON arrays": (structured.make_list, 1.5), "JSON from a sentence": (structured.extract, 2.5),
    "a little Python": (structured.code, 2),
}  # fmt: skip
SCENES: dict[str, tuple[Scene, float]] = {
    "stories": (stories.story, 4), "poems": (stories.poem, 1.5),
    "be brief": (instructions.brief, 4), "memory": (instructions.memory, 5), "following up": (instructions.follow_up, 3),
    "persona": (instructions.persona, 3), "facts in the system prompt": (instructions.grounded, 4),
    "a phrase around every answer": (instructions.closing_phrase, 3),
    "calling a tool": (tools.call, 4), "using a tool's result": (tools.result, 4), "no tool needed": (tools.without, 2.5),
    "no picture there": (pictures.no_picture, 1),
}  # fmt: skip
PICTURE_KINDS = pictures.PICTURE_KINDS
KINDS = (*EXCHANGES, *SCENES, *PICTURE_KINDS)
EXCHANGE_SHARE = 0.62  # of text dialogues, those made of independent exchanges


FRONTS = (
    "Hi! ",
    "Hello, ",
    "Please: ",
    "Hey, ",
    "OK, ",
    "Now: ",
    "Question: ",
    "Can you tell me: ",
    "And ",
    "Next: ",
)
UNFRONTED = ("small talk", "honest: I do not know")


def exchange(kind: str, draw: Draw) -> Exchange:
    """One exchange of `kind`, its question now and then with a word before it."""
    found = EXCHANGES[kind][0](draw)
    if kind not in UNFRONTED and draw.chance(0.06):
        return Exchange(draw.pick(FRONTS) + found.ask, found.answer, found.brief, found.accepted)
    return found


class Wheel:
    """Weighted choice without rebuilding the sums."""

    def __init__(self, table: dict[str, tuple[object, float]]) -> None:
        self._names = tuple(table)
        self._sums = list(accumulate(weight for _, weight in table.values()))

    def turn(self, draw: Draw) -> str:
        return draw.choices(self._names, cum_weights=self._sums)[0]


_EXCHANGES, _SCENES, _PICTURES = Wheel(dict(EXCHANGES)), Wheel(dict(SCENES)), Wheel(dict(PICTURE_KINDS))


def text_dialogue(draw: Draw, length: int = 6) -> Dialogue:
    """A dialogue without pictures; `length`: the most exchanges of one that is made of independent ones."""
    if draw.chance(EXCHANGE_SHARE):
        dialogue = Dialogue()
        neutral(draw, dialogue)
        for _ in range(draw.between(1, length)):
            dialogue.add(exchange(_EXCHANGES.turn(draw), draw))
        return dialogue
    dialogue = SCENES[_SCENES.turn(draw)][0](draw)
    if not dialogue.tools and draw.chance(0.2):
        fill(draw, dialogue, 2)
    return dialogue


def picture_dialogue(draw: Draw) -> Dialogue:
    """A dialogue with one or two pictures."""
    dialogue = PICTURE_KINDS[_PICTURES.turn(draw)][0](draw)
    if draw.chance(0.15):
        fill(draw, dialogue, 2)
    return dialogue


def long_dialogue(draw: Draw, exchanges: int) -> Dialogue:
    """A long talk about everything: text and pictures in turns, so that distance does not confuse."""
    dialogue = Dialogue()
    neutral(draw, dialogue)
    while len(dialogue.messages) < 2 * exchanges:
        if draw.chance(0.15):
            image, asked = pictures.PICTURES[draw.pick(tuple(pictures.PICTURES))][0](draw)
            pictures.show(dialogue, image, asked)
        elif draw.chance(0.12):
            told = instructions.memory(draw).messages
            dialogue.messages += [message for message in told if message.role != "system"]
        else:
            dialogue.add(exchange(_EXCHANGES.turn(draw), draw))
    return dialogue


def question(kind: str, draw: Draw) -> Dialogue:
    """A dialogue of `kind` that ends with what is scored; half of the simple ones come after other talk."""
    if kind in EXCHANGES:
        dialogue = Dialogue()
        neutral(draw, dialogue)
        fill(draw, dialogue, draw.pick((0, 2)))
        dialogue.add(exchange(kind, draw))
        return dialogue
    return (SCENES.get(kind) or PICTURE_KINDS[kind])[0](draw)
