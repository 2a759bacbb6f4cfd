"""Exchanges about days, dates, clocks and units."""

from __future__ import annotations

from headrace.bench.demo.dialogue import Exchange
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.words import DAYS, MONTH_DAYS, MONTHS

# from, to, factor, largest amount
UNITS = (
    ("km", "m", 1000, 99), ("m", "cm", 100, 99), ("cm", "mm", 10, 99), ("kg", "g", 1000, 99), ("liters", "ml", 1000, 99),
    ("hours", "minutes", 60, 20), ("minutes", "seconds", 60, 20), ("days", "hours", 24, 10), ("weeks", "days", 7, 20),
    ("years", "months", 12, 12), ("dozen", "pieces", 12, 12), ("euros", "cents", 100, 99), ("meters", "centimeters", 100, 99),
    ("kilometers", "meters", 1000, 99), ("kilograms", "grams", 1000, 99),
)  # fmt: skip


def units(draw: Draw) -> Exchange:
    def case() -> tuple[int, int]:
        kind = draw.between(0, len(UNITS) - 1)
        return kind, draw.between(2, UNITS[kind][3])

    kind, amount = draw.unseen(case)
    big, small, factor, _ = UNITS[kind]
    if draw.chance(0.7):
        ask = draw.pick(
            ("How many {s} are {n} {b}?", "{n} {b} in {s}", "Convert {n} {b} to {s}.", "what is {n} {b} in {s}?", "How many {s} in {n} {b}?")
        )  # fmt: skip
        return Exchange(ask.format(s=small, n=amount, b=big), f"{amount} {big} = {amount * factor} {small}",
                        f"{amount * factor} {small}")  # fmt: skip
    ask = draw.pick(("How many {b} are {n} {s}?", "{n} {s} in {b}", "Convert {n} {s} to {b}."))
    return Exchange(ask.format(s=small, n=amount * factor, b=big), f"{amount * factor} {small} = {amount} {big}",
                    f"{amount} {big}")  # fmt: skip


def weekday(draw: Draw) -> Exchange:
    start, step = draw.between(0, 6), draw.between(-1, 6)
    if step in (-1, 0, 1):
        step = step or 1
        form = ("What day comes {} {}?", "which day is {} {}", "The day {} {}?")
        ask = draw.pick(form).format("after" if step == 1 else "before", DAYS[start])
        word = "after" if step == 1 else "before"
        return Exchange(
            ask, f"The day {word} {DAYS[start]} is {DAYS[(start + step) % 7]}.", DAYS[(start + step) % 7]
        )
    ask = draw.pick(
        (
            "Today is {d}. What day is it in {n} days?",
            "What day is {n} days after {d}?",
            "{n} days after {d}?",
        )
    )
    day = DAYS[(start + step) % 7]
    return Exchange(ask.format(d=DAYS[start], n=step), f"{step} days after {DAYS[start]} is {day}.", day)


def month(draw: Draw) -> Exchange:
    at = draw.between(0, 11)
    kind = draw.between(0, 3)
    if kind == 0:
        ask = draw.pick(("How many days does {} have?", "how many days are in {}?", "Days in {}?")).format(
            MONTHS[at]
        )
        days = "28 days, and 29 in a leap year" if at == 1 else f"{MONTH_DAYS[at]} days"
        return Exchange(ask, f"{MONTHS[at]} has {days}.", str(MONTH_DAYS[at]))
    if kind == 1:
        after = draw.chance(0.6)
        found = MONTHS[(at + (1 if after else -1)) % 12]
        word = "after" if after else "before"
        ask = draw.pick(("What month comes {} {}?", "Which month is {} {}?")).format(word, MONTHS[at])
        return Exchange(ask, f"The month {word} {MONTHS[at]} is {found}.", found)
    if kind == 2:
        ask = draw.pick(
            ("Which number is the month {}?", "What number is {}?", "{} is which month of the year?")
        )
        return Exchange(ask.format(MONTHS[at]), f"{MONTHS[at]} is month {at + 1}.", str(at + 1))
    if draw.chance(0.5):
        return Exchange(
            draw.pick(("What are the months?", "List the months.", "months of the year")), ", ".join(MONTHS)
        )
    ask = draw.pick(("What are the days of the week?", "days of the week", "List the days of the week."))
    return Exchange(ask, ", ".join(DAYS))


def iso_date(draw: Draw) -> Exchange:
    at, year = draw.between(0, 11), draw.between(1950, 2049)
    at, day, year = draw.unseen(lambda: (at, draw.between(1, MONTH_DAYS[at]), draw.between(1950, 2049)))
    spoken = draw.pick(("{d} {m} {y}", "{m} {d}, {y}")).format(d=day, m=MONTHS[at], y=year)
    written = f"{year}-{at + 1:02}-{day:02}"
    if draw.chance(0.6):
        ask = draw.pick(
            ("Write {} as an ISO date.", "{} in ISO format", "ISO date of {}", "Convert {} to YYYY-MM-DD.")
        )
        return Exchange(ask.format(spoken), written)
    ask = draw.pick(("What date is {}?", "Write {} in words.", "{} as a spoken date"))
    return Exchange(ask.format(written), f"{day} {MONTHS[at]} {year}")


def days_later(draw: Draw) -> Exchange:
    at = draw.between(0, 11)
    at, day, step = draw.unseen(lambda: (at, draw.between(1, MONTH_DAYS[at]), draw.between(2, 20)))
    ask = draw.pick(
        (
            "What date is {n} days after {d} {m}?",
            "{n} days after {d} {m}?",
            "Which day is {n} days after {m} {d}?",
        )
    )
    ask = ask.format(n=step, d=day, m=MONTHS[at])
    end, last = day + step, MONTH_DAYS[at]
    if end <= last:
        return Exchange(ask, f"{day} + {step} = {end}, so it is {end} {MONTHS[at]}.", f"{end} {MONTHS[at]}")
    after = MONTHS[(at + 1) % 12]
    return Exchange(ask, f"{day} + {step} = {end}. {MONTHS[at]} has {last} days: {end} - {last} = {end - last}, so it is {end - last} {after}.")  # fmt: skip


def clock(draw: Draw) -> Exchange:
    hour, minute, step = draw.unseen(
        lambda: (draw.between(0, 23), draw.between(0, 11) * 5, draw.between(1, 11) * 5 if draw.chance(0.6) else 60 * draw.between(1, 5))
    )  # fmt: skip
    end = (hour * 60 + minute + step) % 1440
    length = f"{step // 60} hour{'s' if step > 60 else ''}" if step % 60 == 0 else f"{step} minutes"
    ask = draw.pick(
        (
            "What time is it {s} after {h}:{m:02}?",
            "It is {h}:{m:02}. What time is it in {s}?",
            "{h}:{m:02} plus {s}?",
        )
    )
    return Exchange(ask.format(s=length, h=hour, m=minute), f"{end // 60}:{end % 60:02}")
