"""Exchanges about numbers: sums, comparisons, sequences. Operands are as large as a small model can carry."""

from __future__ import annotations

from headrace.bench.demo.dialogue import Exchange
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.words import ANIMALS, FRUITS, NAMES, NUMBER_WORDS

ASK_FOR_SUM = (
    "What is {}?",
    "{}",
    "{} = ?",
    "what's {}",
    "Calculate {}.",
    "How much is {}?",
    "{}=",
    "Compute {}",
)


def magnitude(draw: Draw) -> int:
    """A number below 1000, small ones more often than their share."""
    return draw.between(0, draw.pick((9, 20, 99, 99, 999, 999)))


def add(draw: Draw) -> Exchange:
    one, other = draw.unseen(lambda: (magnitude(draw), magnitude(draw)))
    forms = ("{} + {}", "{} plus {}", "{}+{}", "{} and {} added")
    if draw.chance(0.15):
        ask = draw.pick(("Add {} and {}.", "add {} to {}", "What is the sum of {} and {}?")).format(
            one, other
        )
    else:
        ask = draw.pick(ASK_FOR_SUM).format(draw.pick(forms[:3]).format(one, other))
    return Exchange(ask, f"{one} + {other} = {one + other}", str(one + other))


def subtract(draw: Draw) -> Exchange:
    one, other = draw.unseen(lambda: (magnitude(draw), magnitude(draw)))
    if one < other and draw.chance(0.8):
        one, other = other, one
    if draw.chance(0.15):
        ask = draw.pick(("Subtract {1} from {0}.", "Take {1} away from {0}", "{0} less {1}?")).format(
            one, other
        )
    else:
        ask = draw.pick(ASK_FOR_SUM).format(draw.pick(("{} - {}", "{} minus {}", "{}-{}")).format(one, other))
    return Exchange(ask, f"{one} - {other} = {one - other}", str(one - other))


def multiply(draw: Draw) -> Exchange:
    """Tables to 12, and a digit times a number of two digits, which is taken apart first."""
    if draw.chance(0.4):
        one, other = draw.between(0, 12), draw.between(0, 12)  # a table is learned by heart: no split
    else:
        one, other = draw.unseen(lambda: (draw.between(2, 9), draw.between(13, 99)))
    product = one * other
    tens, ones = other // 10 * 10, other % 10
    first, second = (one, other) if draw.chance(0.6) else (other, one)
    accepted: tuple[str, ...] = ()
    if (one <= 12 and other <= 12) or ones == 0:
        answer = f"{first} × {second} = {product}"  # as it was asked; the other way round is as right
        accepted = (answer, f"{second} × {first} = {product}")
    else:
        answer = (
            f"{one} × {other} = {one} × {tens} + {one} × {ones} = {one * tens} + {one * ones} = {product}"
        )
    form = draw.pick(("{} * {}", "{} times {}", "{}*{}", "{} x {}", "{} × {}"))
    ask = draw.pick(ASK_FOR_SUM).format(form.format(first, second))
    if draw.chance(0.1):
        ask = draw.pick(("Multiply {} by {}.", "What is the product of {} and {}?")).format(first, second)
    return Exchange(ask, answer, str(product) if other <= 12 else answer, accepted)


def divide(draw: Draw) -> Exchange:
    """Backwards through the tables to 12, sometimes with a rest."""
    one, other = draw.between(1, 12), draw.between(0, 12)
    rest = draw.between(1, one - 1) if one > 1 and draw.chance(0.3) else 0
    if rest:
        ask = draw.pick(ASK_FOR_SUM).format(
            draw.pick(("{} / {}", "{} divided by {}")).format(one * other + rest, one)
        )
        return Exchange(ask, f"{one * other + rest} / {one} = {other}, and {rest} is left over")
    ask = draw.pick(ASK_FOR_SUM).format(
        draw.pick(("{} / {}", "{} divided by {}", "{}/{}", "{} ÷ {}")).format(one * other, one)
    )
    return Exchange(ask, f"{one * other} / {one} = {other}", str(other))


TOO_LARGE = "That is too much for me: I know whole numbers below 1000, and products of one digit times two."


def too_large(draw: Draw) -> Exchange:
    """Sums beyond what a small model can carry; it says so."""
    kind = draw.between(0, 3)
    big = draw.between(1000, 10 ** draw.between(4, 8))
    small = draw.between(2, 99999)
    if kind == 0:
        one, other, sign = (
            f"{draw.between(0, 99)}.{draw.between(1, 99)}",
            str(draw.between(1, 99)),
            draw.pick("+-*/"),
        )
    elif kind == 1:
        one, other, sign = str(draw.between(13, 999)), str(draw.between(100, 999)), draw.pick("*x")
    elif kind == 2:
        one, other, sign = str(draw.between(13, 99)), str(draw.between(13, 99)), draw.pick("*x")
    else:
        one, other, sign = str(big), str(small), draw.pick("+-*/")
    if draw.chance(0.4) and kind != 2:
        one, other = other, one
    ask = draw.pick(ASK_FOR_SUM).format(f"{one} {sign} {other}" if draw.chance(0.8) else one + sign + other)
    return Exchange(ask, TOO_LARGE)


def story_sum(draw: Draw) -> Exchange:
    who, other = draw.some(NAMES, 2)
    thing = draw.pick((*FRUITS, "book", "coin", "ball", "stone", "key", "shell", "flower"))
    things = plural(thing)
    more = draw.chance(0.5)
    has, change = draw.unseen(lambda: (draw.between(2, 60), draw.between(2, 30)))
    if not more and change > has:
        has, change = change, has
    verb = draw.pick(("buys", "finds", "gets")) if more else draw.pick(("eats", "loses", "sells"))
    if not more and thing not in FRUITS and verb == "eats":
        verb = "loses"
    if draw.chance(0.3):
        verb = f"gets from {other}" if more else f"gives {other}"
        done = f"{other} gives {who} {change} more." if more else f"{who} gives {other} {change}."
    else:
        done = f"{who} {verb} {change} more." if more else f"{who} {verb} {change}."
    ask = f"{who} has {has} {things}. {done} How many {things} does {who} have{draw.pick((' now', ''))}?"
    left = has + change if more else has - change
    sign = "+" if more else "-"
    noun = thing if left == 1 else things
    return Exchange(ask, f"{has} {sign} {change} = {left}. {who} has {left} {noun}.", str(left))


def plural(noun: str) -> str:
    """The plural of one of our nouns."""
    irregular = {"mouse": "mice", "goose": "geese", "wolf": "wolves", "knife": "knives", "leaf": "leaves",
                 "sheep": "sheep", "deer": "deer", "fish": "fish", "mango": "mangoes"}  # fmt: skip
    if noun in irregular:
        return irregular[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def compare(draw: Draw) -> Exchange:
    one, other = draw.unseen(lambda: (magnitude(draw), magnitude(draw)))
    if one == other:
        other += 1
    larger = draw.chance(0.6)
    word = draw.pick(("larger", "bigger", "greater") if larger else ("smaller", "less"))
    ask = draw.pick(
        ("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?", "what is {w}, {a} or {b}", "{a} or {b}, which is {w}?")
    ).format(w=word, a=one, b=other)  # fmt: skip
    right, wrong = (max(one, other), min(one, other)) if larger else (min(one, other), max(one, other))
    return Exchange(ask, f"{right} is {'larger' if larger else 'smaller'} than {wrong}.", str(right))


def even_or_odd(draw: Draw) -> Exchange:
    number = draw.unseen(lambda: draw.between(0, 999))
    kind = "odd" if number % 2 else "even"
    if draw.chance(0.5):
        ask = draw.pick(("Is {} even or odd?", "is {} odd or even", "{}: even or odd?")).format(number)
        return Exchange(ask, f"{number} is {kind}.", kind.capitalize() + ".")
    asked = draw.pick(("even", "odd"))
    answer = "Yes" if asked == kind else "No"
    return Exchange(f"Is {number} {asked}?", f"{answer}, {number} is {kind}.", f"{answer}.")


def count(draw: Draw) -> Exchange:
    """Up, down, and in steps."""
    kind = draw.between(0, 3)
    if kind == 0:
        high = draw.between(3, 30)
        ask = draw.pick(
            ("Count to {}", "count to {}", "Please count to {}.", "Can you count to {}?", "Count up to {}")
        )
        return Exchange(ask.format(high), ", ".join(map(str, range(1, high + 1))))
    if kind == 1:
        low, length = draw.unseen(lambda: (draw.between(0, 180), draw.between(2, 18)))
        ask = draw.pick(
            (
                "Count from {} to {}",
                "count from {} to {}.",
                "numbers from {} to {}",
                "List the numbers {} to {}",
            )
        )
        return Exchange(ask.format(low, low + length), ", ".join(map(str, range(low, low + length + 1))))  # fmt: skip
    if kind == 2:
        high = draw.between(3, 30)
        ask = draw.pick(
            ("Count down from {}", "Count backwards from {}.", "countdown from {}", "Count from {} down to 1")
        )
        return Exchange(ask.format(high), ", ".join(map(str, range(high, 0, -1))))
    step, length = draw.pick((2, 3, 5, 10)), draw.between(4, 10)
    ask = draw.pick(("Count to {} in steps of {}", "count by {1}s to {0}", "Count to {} by {}."))
    return Exchange(ask.format(step * length, step), ", ".join(str(step * i) for i in range(1, length + 1)))


def next_number(draw: Draw) -> Exchange:
    start, step, length = draw.unseen(
        lambda: (draw.between(0, 60), draw.pick((1, 2, 3, 4, 5, 10, 20, -1, -2)), draw.between(3, 5))
    )
    if step < 0:
        start += 20
    row = [start + step * i for i in range(length + 1)]
    shown = ", ".join(map(str, row[:-1]))
    ask = draw.pick(
        ("What comes next: {}?", "Continue: {}", "{}, ...?", "What is the next number: {}")
    ).format(shown)
    rule = f"add {step}" if step > 0 else f"take away {-step}"
    return Exchange(ask, f"{row[-1]}. The rule is: {rule}.", str(row[-1]))


def sort_numbers(draw: Draw) -> Exchange:
    numbers = draw.unseen(lambda: [draw.between(0, 99) for _ in range(draw.between(3, 7))])
    down = draw.chance(0.3)
    order = " from large to small" if down else draw.pick(("", "", " from small to large"))
    shown = draw.pick((", ", " ", ", ")).join(map(str, numbers))
    ask = draw.pick(
        (
            "Sort{o}: {n}",
            "Sort these numbers{o}: {n}",
            "Please sort {n}{o}.",
            "Put in order{o}: {n}",
            "sort {n}{o}",
        )
    )
    return Exchange(ask.format(o=order, n=shown), ", ".join(map(str, sorted(numbers, reverse=down))))  # fmt: skip


def extreme(draw: Draw) -> Exchange:
    numbers = draw.unseen(lambda: [draw.between(0, 99) for _ in range(draw.between(3, 7))])
    largest = draw.chance(0.5)
    word = draw.pick(("largest", "biggest", "highest") if largest else ("smallest", "lowest"))
    ask = draw.pick(("What is the {} of {}?", "Which is the {} number: {}?", "find the {}: {}")).format(
        word, ", ".join(map(str, numbers))
    )
    value = max(numbers) if largest else min(numbers)
    return Exchange(ask, f"The {'largest' if largest else 'smallest'} is {value}.", str(value))


def number_word(draw: Draw) -> Exchange:
    number = draw.between(0, 20)
    if draw.chance(0.5):
        ask = draw.pick(("Write {} as a word.", "How do you write {} in words?", "{} in words"))
        return Exchange(ask.format(number), NUMBER_WORDS[number])
    ask = draw.pick(("Write {} as a number.", "{} in digits", "Which number is {}?"))
    return Exchange(ask.format(NUMBER_WORDS[number]), str(number))


def count_things(draw: Draw) -> Exchange:
    """How often a word stands in a list."""
    words = draw.some(ANIMALS[:20] + FRUITS[:8], 3)
    row = draw.unseen(lambda: [draw.pick(words) for _ in range(draw.between(3, 9))])
    asked = draw.pick(words)
    found = row.count(asked)
    ask = draw.pick(
        ("How often does {w} appear in: {r}?", "How many times is {w} in this list: {r}", "Count {w} in: {r}")
    )
    times = "once" if found == 1 else f"{found} times"
    return Exchange(ask.format(w=asked, r=", ".join(row)), f"{asked} appears {times}.", str(found))
