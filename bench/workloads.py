"""Workloads: from a name, its settings and a seed to the requests that a load run sends. Nothing is downloaded.

A shape says when requests go out and what becomes of them (SHAPES); lengths, prompts, shared prefixes and turns can
be combined with any of them. A preset is a shape with settings: PRESETS by name, and the cells `single_IN_OUT`,
`cSTREAMS_IN_OUT`, `prefix_SHARED_OWN_OUT`, `open_RATErps_IN_OUT` with any numbers in them.

    settings = msgspec.structs.replace(defaults("c8_512_256"), requests=40)
    plan("c8_512_256", settings, seed=1)

The same name, settings and seed give the same plan on every machine. Request n is drawn from (seed, n) alone. Every
request has text of its own unless its workload shares a prefix, so that no prefix cache flatters a server; for the
same reason each repeat of a run takes another seed (and two servers that are compared take the same ones).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from headrace.bench import traffic
from headrace.bench.draw import Draw, WorkloadError, WorkloadSettings
from headrace.bench.prompts import shuffled
from headrace.bench.record import Planned

__all__ = ["CELLS", "PRESETS", "SHAPES", "WorkloadError", "WorkloadSettings", "again", "defaults", "plan"]

EVERYWHERE = {
    "input_tokens",
    "output_tokens",
    "lengths",
    "sigma",
    "least_tokens",
    "most_tokens",
    "shared_prefix_tokens",
    "turns",
    "prompt",
    "first_id",
    "end_id",
    "tokens_per_word",
    "template_tokens",
    "file",
}
MAY_BE_ZERO = {"shared_prefix_tokens", "first_id", "template_tokens", "requests", "duration", "slow"}


class Shape(NamedTuple):
    """One shape of traffic: what yields its requests, the settings it starts from, and the names of those that it
    uses beside the ones of EVERYWHERE."""

    requests: Callable[[Draw], Iterable[Planned]]
    defaults: WorkloadSettings
    uses: frozenset[str]


def shape(requests: Callable[[Draw], Iterable[Planned]], uses: str, **defaults: Any) -> Shape:
    return Shape(requests, WorkloadSettings(**defaults), frozenset(uses.split()))


DECODERS: dict[str, Any] = {"concurrency": 32, "duration": 30.0, "input_tokens": 128, "output_tokens": 4096}
SHAPES: dict[str, Shape] = {
    "closed": shape(traffic.closed, "concurrency requests duration"),
    "poisson": shape(traffic.poisson, "rate requests duration"),
    "constant": shape(traffic.constant, "rate requests duration"),
    "bursts": shape(traffic.bursts, "burst every requests"),
    "ramp": shape(traffic.ramp, "rate final_rate duration"),
    "interference": shape(
        traffic.interfere, "concurrency duration every long_tokens long_output_tokens", **DECODERS
    ),
    "slow-readers": shape(traffic.slow_readers, "concurrency requests slow read_pause"),
    "abort-storm": shape(traffic.abort_storm, "concurrency duration every burst cut_after", **DECODERS),
    "reconnect-storm": shape(traffic.reconnect_storm, "concurrency requests cut_after"),
    "typed": shape(traffic.typed, "concurrency requests typing_rate", input_tokens=48, output_tokens=64),
}

# Shapes that need prompts of their own kind, or a pair of streams, and so read no file.
NO_FILE = {"interference", "slow-readers", "abort-storm", "reconnect-storm", "typed"}

PRESETS: dict[str, tuple[str, WorkloadSettings]] = {
    "interfere": ("interference", SHAPES["interference"].defaults),
    "interfere_64": (
        "interference",
        WorkloadSettings(**(DECODERS | {"concurrency": 64, "long_tokens": 32000})),
    ),
    "offline": (
        "closed",
        WorkloadSettings(
            concurrency=256,
            requests=256,
            lengths="uniform",
            least_tokens=100,
            input_tokens=1024,
            output_tokens=1024,
        ),
    ),
    "multi-turn": ("closed", WorkloadSettings(requests=40, turns=5, input_tokens=64, output_tokens=64)),
    "lognormal": ("poisson", WorkloadSettings(rate=10.0, requests=150, lengths="lognormal", sigma=0.8)),
}
CELLS = (
    "single_128_256",
    "single_1024_128",
    "single_2048_64",
    "c8_512_256",
    "c64_512_256",
    "c256_512_256",
    "prefix_2048_64_32",
    "open_10rps_1024_128",
)
"""The cells that servers are compared by; other numbers make other cells."""


def cell(name: str) -> tuple[str, WorkloadSettings] | None:
    """Shape and settings of a cell, None if the name is not written like one."""
    if found := re.fullmatch(r"(?:single|c(\d+))_(\d+)_(\d+)", name):
        streams = int(found[1] or 1)
        return "closed", WorkloadSettings(
            concurrency=streams,
            requests=10 * streams,
            input_tokens=int(found[2]),
            output_tokens=int(found[3]),
        )
    if found := re.fullmatch(r"prefix_(\d+)_(\d+)_(\d+)", name):
        return "closed", WorkloadSettings(
            concurrency=16,
            requests=160,
            input_tokens=int(found[1]) + int(found[2]),
            shared_prefix_tokens=int(found[1]),
            output_tokens=int(found[3]),
        )
    if found := re.fullmatch(r"open_(\d+(?:\.\d+)?)rps_(\d+)_(\d+)", name):
        return "poisson", WorkloadSettings(
            rate=float(found[1]), requests=150, input_tokens=int(found[2]), output_tokens=int(found[3])
        )
    return None


def look_up(name: str) -> tuple[str, WorkloadSettings]:
    """The shape that a name means, and the settings it starts from. WorkloadError if nobody knows the name."""
    if name in SHAPES:
        return name, SHAPES[name].defaults
    found = PRESETS.get(name) or cell(name)
    if found is None:
        known = ", ".join((*CELLS, *PRESETS, *SHAPES))
        raise WorkloadError(f"there is no workload {name!r}; known are {known}, and cells with other numbers")
    return found


def defaults(name: str) -> WorkloadSettings:
    """The settings that a workload starts from, to be changed with `msgspec.structs.replace`."""
    return look_up(name)[1]


def plan(name: str, settings: WorkloadSettings, seed: int) -> list[Planned]:
    """The requests of a workload. Names as in SHAPES, PRESETS and CELLS; WorkloadError for what makes no sense,
    which includes a setting that this shape would not look at."""
    known = look_up(name)[0]
    check(known, settings)
    planned = list(SHAPES[known].requests(Draw(settings, seed)))
    assert [request.number for request in planned] == list(range(len(planned)))
    return planned


def check(shape: str, settings: WorkloadSettings) -> None:
    """Raise WorkloadError for values that are out of range and for changed settings that the shape does not use."""
    plain, used = SHAPES[shape].defaults, SHAPES[shape].uses | EVERYWHERE
    for field in settings.__struct_fields__:
        value = getattr(settings, field)
        if field not in used and value != getattr(plain, field):
            raise WorkloadError(f"the workload shape {shape!r} has no use for {field}")
        if isinstance(value, int | float) and (
            not math.isfinite(value) or value < 0 or (value == 0 and field not in MAY_BE_ZERO)
        ):
            raise WorkloadError(f"{field} is {value}")
    if settings.shared_prefix_tokens >= settings.input_tokens:
        raise WorkloadError("shared_prefix_tokens must be below input_tokens, of which they are a part")
    if settings.least_tokens > settings.most_tokens:
        raise WorkloadError("least_tokens is above most_tokens")
    if settings.file:
        if shape in NO_FILE:
            raise WorkloadError(f"the workload shape {shape!r} makes its own prompts and reads no file")
        if settings.turns > 1 or settings.shared_prefix_tokens or settings.lengths != "exact":
            raise WorkloadError(
                "a file says what its prompts are: no turns, shared prefix or lengths beside it"
            )


def again(planned: Planned, round_: int) -> Planned:
    """A request of a time-based closed loop for its `round_`-th time: as long, but in another order, because a
    repeated prompt would measure the prefix cache. Round 0 is the request as planned."""
    if round_ == 0:
        return planned
    rng = random.Random(f"{planned.number}/{round_}")
    return msgspec.structs.replace(planned, turns=tuple(shuffled(turn, rng) for turn in planned.turns))
