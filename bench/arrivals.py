"""When requests of an open loop arrive: seconds after the start of the run, ascending."""

from __future__ import annotations

import math
import random


def constant(count: int, rate: float) -> list[float]:
    """One every 1/rate seconds, the first at once."""
    return [number / rate for number in range(count)]


def poisson(count: int, rate: float, rng: random.Random) -> list[float]:
    """Independent arrivals: gaps are exponential with mean 1/rate."""
    at, times = 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate)
        times.append(at)
    return times


def bursts(count: int, burst: int, every: float) -> list[float]:
    """`burst` at one instant, again after `every` seconds; the last burst may be smaller."""
    return [number // burst * every for number in range(count)]


def ramp(rate: float, final_rate: float, duration: float, rng: random.Random) -> list[float]:
    """Independent arrivals whose rate moves in a straight line from `rate` to `final_rate` within `duration`.

    Given their number, arrivals of such a process are independent draws from the density that follows the rate;
    each is found by inverting its integral. Their number is the expected one: every ramp holds the same load.
    """
    count = round((rate + final_rate) / 2 * duration)
    slope = (final_rate - rate) / duration
    times = []
    for _ in range(count):
        area = rng.random() * (rate + final_rate) / 2 * duration
        # The root of rate * t + slope / 2 * t^2 = area in the form that also holds for a slope of 0.
        times.append(2 * area / (rate + math.sqrt(rate * rate + 2 * slope * area)))
    return sorted(times)
