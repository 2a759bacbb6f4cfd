"""Exchanges whose answer is JSON or code."""

from __future__ import annotations

import json
from typing import Any

from headrace.bench.demo.dialogue import Exchange
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.letters import made_up
from headrace.bench.demo.words import ANIMALS, COLOURS, DAYS, FRUITS, NAMES, PLACES, WORDS

FIELDS = (
    "name",
    "age",
    "city",
    "colour",
    "animal",
    "fruit",
    "count",
    "day",
    "price",
    "ok",
    "title",
    "id",
    "score",
    "size",
)


def value_for(draw: Draw, field: str) -> Any:
    """A value that fits the name of a field."""
    if field in ("age", "count", "price", "id", "score", "size"):
        return draw.between(0, 99 if draw.chance(0.8) else 999)
    if field == "ok":
        return draw.chance(0.5)
    lists = {
        "name": NAMES,
        "city": PLACES,
        "colour": COLOURS,
        "animal": ANIMALS,
        "fruit": FRUITS,
        "day": DAYS,
    }
    if field in lists:
        return draw.pick(lists[field])
    return made_up(draw) if draw.chance(0.3) else draw.pick(WORDS)


def plain(value: Any) -> str:
    """A value as people say it."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def make_object(draw: Draw) -> Exchange:
    def case() -> dict[str, Any]:
        return {field: value_for(draw, field) for field in draw.some(FIELDS, draw.between(1, 4))}

    wanted = draw.unseen(case)
    parts = [f"{field} {plain(value)}" for field, value in wanted.items()]
    if draw.chance(0.3):
        listed = ", ".join(f"{field}: {plain(value)}" for field, value in wanted.items())
    else:
        listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    ask = draw.pick(
        (
            "Give me JSON with {}",
            "JSON with {}.",
            "Make a JSON object with {}",
            "Write JSON: {}",
            "as JSON: {}",
            "Return JSON for {}",
        )
    )
    return Exchange(ask.format(listed), json.dumps(wanted, ensure_ascii=False))


def make_list(draw: Draw) -> Exchange:
    if draw.chance(0.5):
        items: list[Any] = draw.unseen(lambda: draw.some(WORDS, draw.between(2, 5)))
    else:
        items = draw.unseen(lambda: [draw.between(0, 99) for _ in range(draw.between(2, 6))])
    ask = draw.pick(
        ("As a JSON array: {}", "JSON list of {}", "Make a JSON array of {}", "Write a JSON array with {}")
    )
    return Exchange(ask.format(", ".join(map(str, items))), json.dumps(items))


def extract(draw: Draw) -> Exchange:
    """JSON out of a sentence."""
    who, age, city = draw.unseen(lambda: (draw.pick(NAMES), draw.between(3, 99), draw.pick(PLACES)))
    animal, colour = draw.pick(ANIMALS), draw.pick(COLOURS)
    kind = draw.between(0, 2)
    if kind == 0:
        text = draw.pick(
            (
                "{w} is {a} years old and lives in {c}.",
                "{w}, {a}, lives in {c}.",
                "In {c} lives {w}, who is {a} years old.",
            )
        )
        wanted: dict[str, Any] = {"name": who, "age": age, "city": city}
    elif kind == 1:
        text = draw.pick(("{w} has a {o} {n}.", "The {n} of {w} is {o}.", "{w} bought a {o} {n}."))
        wanted = {"name": who, "animal": animal, "colour": colour}
    else:
        text = draw.pick(("{w} travels to {c} on {d}.", "On {d}, {w} goes to {c}."))
        day = draw.pick(DAYS)
        wanted = {"name": who, "city": city, "day": day}
        text = text.replace("{d}", day)
    text = text.format(w=who, a=age, c=city, n=animal, o=colour)
    keys = ", ".join(wanted)
    ask = draw.pick(
        ("Extract {k} as JSON: {t}", "{t} Give me {k} as JSON.", "Turn this into JSON with {k}: {t}")
    )
    return Exchange(ask.format(k=keys, t=text), json.dumps(wanted, ensure_ascii=False))


def code(draw: Draw) -> Exchange:
    """A few lines of Python around the values that were asked for."""
    kind = draw.between(0, 3)
    if kind == 0:
        low, high = draw.unseen(lambda: (draw.between(0, 20), draw.between(21, 200)))
        ask = draw.pick(
            (
                "Write Python that prints the numbers from {} to {}",
                "Python loop from {} to {}",
                "python code to print {} to {}",
            )
        )
        return Exchange(
            ask.format(low, high),
            f"```python\nfor number in range({low}, {high + 1}):\n    print(number)\n```",
        )
    if kind == 1:
        text = draw.unseen(lambda: " ".join(draw.some(WORDS, draw.between(1, 3))))
        times = draw.between(2, 20)
        ask = draw.pick(("Write Python that prints {t} {n} times", "python: print {t} {n} times"))
        return Exchange(
            ask.format(t=text, n=times), f'```python\nfor _ in range({times}):\n    print("{text}")\n```'
        )
    if kind == 2:
        name = draw.unseen(lambda: draw.pick(WORDS))
        sign, verb = draw.pick((("+", "adds"), ("-", "subtracts"), ("*", "multiplies")))
        ask = draw.pick(
            ("Write a Python function {n} that {v} two numbers", "python function {n} that {v} two numbers")
        )
        return Exchange(
            ask.format(n=name, v=verb), f"```python\ndef {name}(a, b):\n    return a {sign} b\n```"
        )
    items = draw.unseen(lambda: [draw.between(0, 99) for _ in range(draw.between(2, 5))])
    shown = ", ".join(map(str, items))
    ask = draw.pick(("Write Python that sorts {}", "python code that sorts {}", "Sort {} in Python"))
    return Exchange(ask.format(shown), f"```python\nprint(sorted([{shown}]))\n```")
