"""What plots are drawn from, small enough to stay in the JSON: quantiles, a timeline, the course of the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.bench.answer import MS, Answer, failure, measure
from headrace.bench.record import Run

# Dense where latency is decided: every percent, then finer and finer towards the maximum.
PROBABILITIES: tuple[float, ...] = (
    *(percent / 100 for percent in range(100)),
    *(0.99 + step / 1000 for step in range(1, 10)),
    *(0.999 + step / 10000 for step in range(1, 10)),
    0.99995,
    0.99999,
    1.0,
)
TIMELINE_CHUNKS = 4000
TIMELINE_ROWS = 48
TIMELINE_GAPS = 250  # typical gaps that a timeline is wide: more of them would run together
COURSE_BINS = 120
COURSE_REQUESTS = 1200


def samples(runs: Sequence[Run]) -> dict[str, Any]:
    """Sketches of all repeats together; timeline and course of the last one. Times in ms from the run's start."""
    answers = [
        measure(trace) for run in runs for trace in run.traces if failure(trace) is None and trace.chunks
    ]
    parts = sorted({answer.trace.part for answer in answers})
    last = [measure(trace) for trace in runs[-1].traces if failure(trace) is None and trace.chunks]
    return {
        "probabilities": list(PROBABILITIES),
        "parts": {
            part: sketches([answer for answer in answers if answer.trace.part == part]) for part in parts
        },
        "timeline": timeline(last, runs[-1].started_ns),
        "course": course(last, runs[-1].started_ns),
    }


def sketches(answers: Sequence[Answer]) -> dict[str, Any]:
    """Quantiles of TTFT, ITL, TPOT and longest gap."""
    merged = sum(int((answer.tokens - 1).sum()) for answer in answers)
    gaps = np.concatenate([np.empty(0), *(answer.gaps for answer in answers), np.zeros(merged)])
    longest = [answer.longest_gap for answer in answers if answer.longest_gap is not None]
    return {
        "ttft_ms": sketch(np.array([answer.ttft for answer in answers])),
        "itl_ms": sketch(gaps),
        "tpot_ms": sketch(np.array([a.tpot for a in answers if a.tpot is not None])),
        "max_gap_ms": sketch(np.array(longest)),
    }


def sketch(values: NDArray[np.float64]) -> dict[str, Any]:
    """How many values there are and their quantiles at PROBABILITIES."""
    if not len(values):
        return {"count": 0, "quantiles": []}
    return {"count": len(values), "quantiles": short(np.quantile(values, PROBABILITIES))}


def short(values: Iterable[float]) -> list[float]:
    """Five digits: more than a plot can show, and half the size."""
    return [float(f"{value:.5g}") for value in values]


def timeline(answers: Sequence[Answer], start_ns: int) -> dict[str, Any]:
    """When the chunks of some answers came: the whole run if it is small, otherwise what is around its longest gap.

    rows: of each answer its number, part, when it was sent, `at_us` (the first chunk after the row's `sent_ms`,
    then each after the one before, whole microseconds) and `tokens` of each chunk where they are not all 1. whole:
    nothing of the run lies outside. answers: how many there are in this time, of which rows may be some.
    """
    if not answers:
        return {"from_ms": 0.0, "to_ms": 0.0, "whole": True, "answers": 0, "rows": []}
    worst = max(answers, key=lambda answer: answer.longest_gap or 0.0)
    place = int(worst.gaps.argmax()) if len(worst.gaps) else 0
    middle = int(worst.at_ns[place : place + 2].mean())
    begin = min(answer.trace.sent_ns for answer in answers)
    end = max(int(answer.at_ns[-1]) for answer in answers)
    # The longest gap itself always stays in view.
    least = int((worst.longest_gap or 0.0) * MS)
    gaps = np.concatenate([answer.gaps for answer in answers])
    typical = float(np.median(gaps)) * MS if len(gaps) else 0.0
    half = max(middle - begin, end - middle)
    if typical:
        half = min(half, max(least, round(typical * TIMELINE_GAPS / 2)))
    rows = TIMELINE_ROWS
    while True:
        low, high = max(begin, middle - half), min(end, middle + half)
        inside = [a for a in answers if a.trace.sent_ns <= high and int(a.at_ns[-1]) >= low]
        shown = chosen(inside, worst, rows)
        chunks = sum(int(((a.at_ns >= low) & (a.at_ns <= high)).sum()) for a in shown)
        if chunks <= TIMELINE_CHUNKS or (half <= least and rows == 1):
            break
        # A shorter time first, then fewer rows.
        half, rows = max(least, half * 7 // 10), rows if half > least else rows // 2
    return {
        "from_ms": round((low - start_ns) / MS, 3),
        "to_ms": round((high - start_ns) / MS, 3),
        "whole": low == begin and high == end,
        "answers": len(inside),
        "rows": [row(answer, low, high, start_ns) for answer in shown],
    }


def chosen(answers: Sequence[Answer], worst: Answer, rows: int) -> list[Answer]:
    """At most `rows` of them, evenly taken in the order of sending, `worst` always among them."""
    ordered = sorted(answers, key=lambda answer: (answer.trace.sent_ns, answer.trace.number))
    if len(ordered) <= rows:
        return ordered
    places = set(np.linspace(0, len(ordered) - 1, rows - 1).astype(int).tolist())
    return [answer for place, answer in enumerate(ordered) if place in places or answer is worst]


def row(answer: Answer, low: int, high: int, start_ns: int) -> dict[str, Any]:
    inside = (answer.at_ns >= low) & (answer.at_ns <= high)
    at_us = (answer.at_ns[inside] - answer.trace.sent_ns) // 1000
    tokens = answer.tokens[inside]
    result: dict[str, Any] = {
        "number": answer.trace.number,
        "part": answer.trace.part,
        "sent_ms": round((answer.trace.sent_ns - start_ns) / MS, 3),
        "at_us": np.diff(at_us, prepend=0).tolist(),
    }
    if len(tokens) and tokens.max() > 1:
        result["tokens"] = tokens.tolist()
    return result


def course(answers: Sequence[Answer], start_ns: int) -> dict[str, Any]:
    """Tokens per bin of time, and when requests were due with their TTFT: evenly taken, and the slowest."""
    if not answers:
        return {"bin_ms": 1.0, "tokens": [], "requests": []}
    at = np.concatenate([answer.at_ns for answer in answers]) - start_ns
    tokens = np.concatenate([answer.tokens for answer in answers])
    width = max(1.0, float(at.max()) / COURSE_BINS)
    bins = np.bincount((at // width).astype(np.int64), weights=tokens).astype(np.int64)
    ordered = sorted(answers, key=lambda answer: answer.trace.scheduled_ns)
    places = set(np.linspace(0, len(ordered) - 1, min(COURSE_REQUESTS, len(ordered))).astype(int).tolist())
    slowest = sorted(range(len(ordered)), key=lambda place: -ordered[place].ttft)[:20]
    return {
        "bin_ms": width / MS,
        "tokens": bins.tolist(),
        "requests": [
            [round((a.trace.scheduled_ns - start_ns) / MS, 3), float(f"{a.ttft:.5g}"), a.trace.part]
            for place, a in enumerate(ordered)
            if place in places or place in slowest
        ],
    }
