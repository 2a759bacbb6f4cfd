"""The chunk budget against a made-up device whose times are known."""

from __future__ import annotations

import random

import pytest

from headrace.runtime.pace import MOST, QUEUED, UNSEEN, Pace, pairs_of

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)


def truth(rows: int, tokens: int, start: int) -> float:
    """Seconds: decode rows alone, then 1 ms, 20 us a token and 2 ns a pair."""
    alone = 0.004 + 1e-5 * rows if rows else 0.0
    return alone + (1e-3 + 2e-5 * tokens + 2e-9 * pairs_of(tokens, start) if tokens else 0.0)


def trained(bound: float = 0.0, noise: float = 0.0, prior: float = 1e-4) -> Pace:
    rng = random.Random(3)
    pace = Pace(SIZES, prior, bound)
    for _ in range(300):
        rows, tokens, start = rng.choice((1, 8, 32, 64)), rng.choice((0, *SIZES)), rng.randrange(16000)
        seconds = truth(rows, tokens, start) * (1.0 + noise * rng.uniform(-1, 1))
        pace.observe(rows, tokens, pairs_of(tokens, start), seconds)
    return pace


def test_the_fit_finds_the_device() -> None:
    pace = trained()
    for tokens in SIZES:
        for start in (0, 1000, 15000):
            assert pace.added(tokens, start) == pytest.approx(truth(0, tokens, start), rel=0.05)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_step_keeps_the_rule(noise: float) -> None:
    pace = trained(noise=noise)
    for rows in (1, 8, 64):
        for start in (0, 8000):
            tokens = pace.allow(rows, start, queued=2048)
            allowed = 3.0 * truth(rows, 0, 0)
            assert truth(rows, tokens, start) <= allowed * 1.15
            larger = SIZES[min(SIZES.index(tokens) + 1, len(SIZES) - 1)]
            assert larger == tokens or truth(rows, larger, start) > allowed * 0.85


def test_short_steps_still_take_what_no_reader_sees() -> None:
    pace = Pace(SIZES, 1e-5)
    for _ in range(50):
        pace.observe(4, 0, 0.0, 0.001)
        for tokens in (64, 512):
            pace.observe(4, tokens, pairs_of(tokens, 0), 0.001 + truth(0, tokens, 0))
    tokens = pace.allow(4, 0, 100)
    assert 0.004 < 0.001 + truth(0, tokens, 0) <= UNSEEN * 1.05


def test_late_chunks_of_a_long_prompt_shrink() -> None:
    pace = trained()
    assert pace.allow(32, 0, 8192) > pace.allow(32, 15000 * 10, 8192)


def test_a_long_line_may_take_longer_steps() -> None:
    pace = trained()
    tokens = pace.allow(8, 0, QUEUED + 1)
    assert tokens > pace.allow(8, 0, QUEUED)
    assert truth(8, tokens, 0) <= MOST * 1.1


def test_a_bound_that_was_set() -> None:
    pace = trained(bound=0.008)
    tokens = pace.allow(32, 0, 100_000)
    assert truth(32, tokens, 0) <= 0.008 * 1.05
    # A bound below the decode rows' own time cannot be kept; prompts still advance.
    assert trained(bound=0.001).allow(32, 0, 1) == 16


def test_without_readers_nothing_is_held_back() -> None:
    assert trained().allow(0, 0, 1) == SIZES[-1]
    assert Pace(SIZES, 1e-4).allow(8, 0, 1) == SIZES[-1], (
        "no decode step was seen yet: nobody was kept waiting"
    )


def test_a_device_that_changes_is_followed() -> None:
    pace = trained()
    for _ in range(200):
        for tokens in (64, 512):
            pace.observe(32, tokens, pairs_of(tokens, 0), 2 * truth(32, tokens, 0) - truth(32, 0, 0))
    assert pace.added(512, 0) == pytest.approx(2 * truth(0, 512, 0), rel=0.1)


def test_equal_steps_leave_a_usable_fit() -> None:
    """One chunk size and one start determine a line of answers only; what is predicted there is right."""
    pace = Pace(SIZES, 1e-3)
    pace.observe(4, 0, 0.0, 0.004)
    for _ in range(500):
        pace.observe(4, 256, pairs_of(256, 0), truth(4, 256, 0))
    assert pace.added(256, 0) == pytest.approx(truth(4, 256, 0) - 0.004, rel=0.1)
    assert all(pace.added(size, 0) >= 0.0 for size in SIZES)
