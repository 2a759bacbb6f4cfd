"""Latency targets on a virtual clock (M7): what is promised is kept, and what cannot be kept is refused early."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from headrace.runtime.claim import Claim, Rank, Targets
from headrace.runtime.foresight import Allowance, Foresight
from headrace.runtime.pace import Pace
from headrace.runtime.request import Req

SEEDS = 10


@pytest.fixture(scope="module")
def timed(simulation: ModuleType) -> ModuleType:
    return simulation.load("timed")


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def crowd(timed: ModuleType, pace: Pace, device: Any, load: float, prompts: int, depth: int = 1) -> Any:
    """32 streams that were promised 25 ms between tokens, and long prompts that come as they like."""
    rng = random.Random(5)
    world = timed.Clockwork(pace, device, depth=depth, pages=40_000)
    steady = Claim("chats", 1.0, Targets(Rank.INTERACTIVE, itl=0.025))
    streams = [world.arrive(0.01 * i, [i] * 256, 100_000, steady) for i in range(32)]
    world.run(2.0)
    lengths = [rng.randint(16_000, 64_000) for _ in range(prompts)]
    exact = timed.ExactPace(timed.SIZES, device)
    mean = statistics.mean(exact.seconds(33, 0, length, 0.025) for length in lengths)
    at = 2.0
    pasted = []
    for number, length in enumerate(lengths):
        at += rng.expovariate(load / mean)
        claim = Claim("pastes", 1.0, Targets(ttft=5.0))
        pasted.append(world.arrive(at, [1000 + number] * length, 32, claim))
    world.run(at + 6.0)
    return world, streams, pasted


@pytest.mark.parametrize("depth", [1, 2])
def test_streams_keep_their_pace_and_promises_are_kept_at_load_0_8(timed: ModuleType, depth: int) -> None:
    """M7's acceptance, in a world whose device is a formula that the pace has to learn."""
    device = timed.Device(token=8e-6, pair=1e-10)
    _, streams, pasted = crowd(timed, Pace(timed.SIZES, 4e-5), device, 0.8, 24, depth)
    gaps = [gap for life in streams for gap in life.gaps]
    assert quantile(gaps, 0.99) <= 0.025 and max(gaps) <= 0.050
    admitted = [life for life in pasted if life.refused is None]
    assert len(admitted) >= 0.7 * len(pasted)
    assert all(life.ttft <= 5.0 for life in admitted), "a promise was broken"
    errors = [abs(life.req.promise.expected - life.ttft) / life.ttft for life in admitted]
    print(len(admitted), statistics.median(errors), max(errors), quantile(gaps, 0.99), max(gaps))
    assert statistics.median(errors) < 0.15


@pytest.mark.parametrize("depth", [1, 2])
def test_no_promise_is_broken_where_the_pace_is_exact(timed: ModuleType, depth: int) -> None:
    """Whatever comes after a promise, of whatever class and owner, does not break it."""
    total: Counter[str] = Counter()
    for seed in range(SEEDS):
        total += timed.promises_of(seed, depth)
    missing = [name for name in timed.PROMISE_GATES if total[name] < SEEDS // 10]
    assert not missing, f"too rare: {missing}, {total}"


class NeverHurries(Foresight):
    def allowance(self, now: float) -> Allowance:
        found = super().allowance(now)
        return Allowance(found.budget, found.most_rows, False)


class ForgetsWhatItPromised(Foresight):
    def _promised(self) -> list[Req]:
        return []


class TakesSlotsForGranted(Foresight):
    def _slot_times(self, rank: Rank, begin: float) -> Iterator[float]:
        return itertools.repeat(begin)


class ForgetsReaders(Foresight):
    def allowance(self, now: float) -> Allowance:
        found = super().allowance(now)
        return Allowance(None, None, found.hurry)


@pytest.mark.parametrize(
    "bug",
    [NeverHurries, ForgetsWhatItPromised, TakesSlotsForGranted, ForgetsReaders],
    ids=lambda bug: bug.__name__,
)
def test_a_planted_bug_of_foresight_breaks_a_promise(timed: ModuleType, bug: type[Foresight]) -> None:
    def crowds() -> None:
        for seed in (99, 184, *range(60)):  # the first two are where a slot is not to be had
            timed.promises_of(seed, 1, foresight=bug)

    with pytest.raises(AssertionError, match="seed"):
        crowds()
