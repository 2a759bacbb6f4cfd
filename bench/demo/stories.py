"""Short stories and poems from a grammar; a story can be checked, so it can be scored."""

from __future__ import annotations

import re

from headrace.bench.demo.dialogue import Dialogue, Exchange
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.words import ANIMALS, COLOURS, NAMES, PLACES

HEROES = (
    *ANIMALS,
    "robot",
    "king",
    "queen",
    "sailor",
    "baker",
    "miller",
    "child",
    "wizard",
    "dragon",
    "princess",
    "pirate",
)
TRAITS = (
    "small",
    "brave",
    "curious",
    "tired",
    "happy",
    "lonely",
    "clever",
    "old",
    "young",
    "hungry",
    "quiet",
)
HOMES = ("by the river", "in a mill", "in a deep forest", "on a small island", "near a castle", "in a quiet village",
         "under a bridge", "in an old lighthouse", "on a mountain", "beside the sea")  # fmt: skip
WISHES = ("wanted to see the sea", "looked for a friend", "lost a {c} {t}", "found a {c} {t}", "heard a strange song",
          "dreamed of a {c} {t}", "wanted to build a boat", "followed a {c} {t}")  # fmt: skip
GOODS = (
    "key",
    "lamp",
    "kite",
    "ball",
    "boat",
    "hat",
    "bell",
    "drum",
    "map",
    "stone",
    "feather",
    "book",
    "ring",
    "coin",
)
MEETINGS = ("On the way it met {n}, who carried a {g}.", "Then {n} came along with a {g}.", "Behind a tree sat {n} with a {g}.",
            "At the bridge stood {n}, holding a {g}.")  # fmt: skip
SPEECHES = ('"Come with me," said {n}, "the water shows the way."', '"I can help you," said {n}.',
            '"Do not be afraid," said {n}, "we are two now."', '"What a day!" said {n}, and they laughed.')  # fmt: skip
WAYS = ("Together they walked until the evening.", "They followed the stream down to the mill.",
        "They crossed seven hills and a wide field.", "All night they talked under the stars.")  # fmt: skip
ENDS = ("In the end they shared the {g}, and nobody was lonely any more.", "The {g} was theirs, and they went home singing.",
        "From that day on they were friends.", "And the {h} was never sad again.")  # fmt: skip
CLOSING = "The end."

RHYMES = (
    ("The {a} went down to the river to play,", "and stayed by the water the whole of the day."),
    ("The moon is a lamp in the dark of the night,", "the {a} looks up and enjoys the light."),
    ("A {c} leaf fell softly down from the tree,", "the {a} said: was it falling for me?"),
    ("The wheel of the mill goes round and around,", "the {a} is sleeping and makes no sound."),
    ("The wind tells a story of mountain and snow,", "the {a} is listening, ready to go."),
    ("A {c} boat sails out on the sea,", "the {a} is waving: come back to me!"),
    ("The morning is bright and the grass is still wet,", "the {a} has not had its breakfast yet."),
    ("The stars are as many as grains of the sand,", "the {a} would hold every one in its hand."),
)


def article(noun: str) -> str:
    """`noun` with a or an."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _tale(draw: Draw, hero: str, friend: str, home: str | None) -> str:
    good, thing, colour = draw.pick(GOODS), draw.pick(GOODS), draw.pick(COLOURS)
    trait = draw.pick(TRAITS)
    wish = draw.pick(WISHES).format(c=colour, t=thing)
    parts = [
        f"Once upon a time there was {article(trait)} {hero} that lived {home or draw.pick(HOMES)}.",
        f"One day the {hero} {wish}.",
        draw.pick(MEETINGS).format(n=friend, g=good),
        draw.pick(SPEECHES).format(n=friend),
        draw.pick(WAYS),
        draw.pick(ENDS).format(g=good, h=hero),
        CLOSING,
    ]
    return " ".join(parts)


_SHAPE = re.compile(
    r"Once upon a time there was an? (\w+) (\w+) that lived (.+?)\. One day the (\w+) .+ The end\."
)


def story(draw: Draw) -> Dialogue:
    """A story about what was asked for; right if it has the form, keeps its hero and names what was asked."""

    def case() -> tuple[str, str, int]:
        return draw.pick(HEROES), draw.pick(NAMES), draw.between(0, 3)

    hero, friend, kind = draw.unseen(case)
    place = f"in {draw.pick(PLACES)}" if kind == 3 else None
    ask = draw.pick(
        (
            "Tell me a story",
            "tell me a story",
            "A story, please",
            "Write a short story",
            "Tell a story",
            "I want to hear a story",
        )
    )
    if kind == 1:
        ask += f" about {article(hero)}"
    elif kind == 2:
        ask += f" about {article(hero)} and {friend}"
    elif kind == 3:
        ask += f" about {article(hero)} {place}"
    ask += draw.pick((".", "", "!"))
    dialogue = Dialogue()
    dialogue.add(Exchange(ask, _tale(draw, hero, friend, place)))

    def right(answer: str) -> bool:
        found = _SHAPE.fullmatch(answer)
        if found is None or found[2] != found[4]:
            return False
        asked = kind == 0 or found[2] == hero
        return asked and (kind != 2 or friend in answer) and (place is None or found[3] == place)

    dialogue.right = right
    return dialogue


def poem(draw: Draw) -> Dialogue:
    """Two couplets about an animal; right if they are couplets of ours and about it."""
    animal = draw.unseen(lambda: (draw.pick(ANIMALS), draw.between(0, 9)))[0]
    ask = draw.pick(
        ("Write a poem about {}", "a poem about {}, please", "Write a short poem about {}.", "poem about {}")
    )
    lines: list[str] = []
    for couplet in draw.some(RHYMES, 2):
        lines += [line.format(a=animal, c=draw.pick(COLOURS)) for line in couplet]
    dialogue = Dialogue()
    dialogue.add(Exchange(ask.format(article(animal)), "\n".join(lines)))

    def right(answer: str) -> bool:
        said = answer.split("\n")
        known = {
            tuple(line.format(a=animal, c=colour) for line in couplet)
            for couplet in RHYMES
            for colour in COLOURS
        }
        return len(said) == 4 and all(pair in known for pair in (tuple(said[:2]), tuple(said[2:])))

    dialogue.right = right
    return dialogue
