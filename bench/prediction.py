"""What a whole load run should show: the step model stepped forward under the scheduler's rules, in closed loop.

Every stream sends its next request when the one before has ended. Decode rows take part in every step; prompt
tokens fill it in order of arrival up to the largest chunk whose predicted step stays within `stretch` times the
decode-only step, never beyond `ceiling_s`. Where nobody decodes, or very much waits, only the ceiling counts.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.bench.step_model import (
    BF16,
    H200,
    Machine,
    Precision,
    Shape,
    Work,
    triangle,
    work_floor_ms,
    work_ms,
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`streams` at once, each `waves` requests in turn; `cached` of the prompt tokens are held already."""

    name: str
    streams: int
    prompt: int
    output: int
    waves: int = 3
    cached: int = 0

    @property
    def mean_context(self) -> float:
        """Tokens that a decode row reads on average."""
        return self.prompt + self.output / 2


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("single_128_256", 1, 128, 256),
        Scenario("single_1024_128", 1, 1024, 128),
        Scenario("single_2048_64", 1, 2048, 64),
        Scenario("c8_512_256", 8, 512, 256),
        Scenario("c64_512_256", 64, 512, 256),
        Scenario("c256_512_256", 256, 512, 256),
        Scenario("prefix_2048_64_32", 16, 2112, 32, waves=8, cached=2048),
    )
}


@dataclass(frozen=True, slots=True)
class ChunkRule:
    """How long prompts may make a step. `flood`: with more prompt tokens waiting, only the ceiling counts."""

    stretch: float = 3.0
    ceiling_s: float = 0.050
    flood: int = 16384


@dataclass(frozen=True, slots=True)
class Outlook:
    """What clients should see. Times in ms; `floor_ms` is the floor of the mean decode step, and `pct_of_floor`
    what share of the predicted time per token it is."""

    tokens_per_s: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    itl_p50: float
    itl_p99: float
    itl_max: float
    floor_ms: float
    pct_of_floor: float


@dataclass(slots=True)
class _Row:
    """One request: prompt tokens done of those it has, and when each of its tokens landed (seconds)."""

    arrived: float
    done: int
    prompt: int
    together: int
    stamps: list[float] = field(default_factory=list)


def _fill(waiting: Sequence[_Row], room: int) -> tuple[int, float, int]:
    """Chunk, pairs and finished prompts when `room` tokens go to the waiting prompts in order."""
    chunk, pairs, finished = 0, 0.0, 0
    for row in waiting:
        take = min(room - chunk, row.prompt - row.done)
        if take <= 0:
            break
        chunk += take
        pairs += triangle(row.done, row.done + take)
        finished += row.done + take == row.prompt
    return chunk, pairs, finished


def _largest(
    shape: Shape, decode: Work, waiting: Sequence[_Row], limit: float, machine: Machine, precision: Precision
) -> Work:
    """The step with the most prompt tokens that stays within `limit` ms; at least 16, so that prompts move on."""

    def step(room: int) -> Work:
        return Work(decode.rows, decode.context, *_fill(waiting, room))

    low, high = 1, -(-sum(row.prompt - row.done for row in waiting) // 16)
    while low < high:
        middle = (low + high + 1) // 2
        if work_ms(shape, step(16 * middle), machine, precision) <= limit:
            low = middle
        else:
            high = middle - 1
    return step(16 * low)


def outlook(
    scenario: Scenario,
    shape: Shape,
    machine: Machine = H200,
    precision: Precision = BF16,
    rule: ChunkRule | None = None,
) -> Outlook:
    """Step `scenario` forward from its first request to its last token."""
    rule = rule or ChunkRule()
    clock = 0.0
    waiting: deque[_Row] = deque()
    running: list[_Row] = []
    ended: list[_Row] = []
    left = [scenario.waves] * scenario.streams

    def arrive(count: int) -> None:
        waiting.extend(_Row(clock, scenario.cached, scenario.prompt, count) for _ in range(count))

    arrive(scenario.streams)
    begun = scenario.streams
    while waiting or running:
        contexts = sum(row.prompt + len(row.stamps) for row in running)
        work = Work(len(running), contexts / len(running) if running else 0.0)
        if waiting:
            queued = sum(row.prompt - row.done for row in waiting)
            limit = 1e3 * rule.ceiling_s
            if running and queued <= rule.flood:
                limit = min(limit, rule.stretch * work_ms(shape, work, machine, precision))
            work = _largest(shape, work, waiting, limit, machine, precision)
        clock += work_ms(shape, work, machine, precision) / 1e3
        room = work.chunk
        for row in running:
            row.stamps.append(clock)
        while room:
            row = waiting[0]
            take = min(room, row.prompt - row.done)
            row.done += take
            room -= take
            if row.done == row.prompt:
                row.stamps.append(clock)
                running.append(waiting.popleft())
        over = [row for row in running if len(row.stamps) >= scenario.output]
        running = [row for row in running if len(row.stamps) < scenario.output]
        ended += over
        again = min(len(over), sum(left) - begun)
        begun += again
        if again:
            arrive(again)
    return _seen(scenario, shape, machine, precision, ended, clock)


def _seen(
    scenario: Scenario,
    shape: Shape,
    machine: Machine,
    precision: Precision,
    rows: Sequence[_Row],
    seconds: float,
) -> Outlook:
    """What clients see of the landings: the server's own share of a first token is added, and what the host and
    the wire do to gaps."""
    first = sorted(
        1e3 * (row.stamps[0] - row.arrived + machine.request_s + machine.parse_s * (row.together - 1))
        for row in rows
    )
    per_token = [1e3 * (row.stamps[-1] - row.stamps[0]) / (len(row.stamps) - 1) for row in rows]
    gaps = sorted(1e3 * (b - a) for row in rows for a, b in zip(row.stamps, row.stamps[1:], strict=False))
    late, latest = (
        (0.15, 1.0) if scenario.streams <= 16 else (0.4, 2.0) if scenario.streams <= 64 else (1.3, 2.0)
    )
    tpot = statistics.median(per_token)
    floor = work_floor_ms(shape, Work(scenario.streams, scenario.mean_context), machine, precision)
    return Outlook(
        tokens_per_s=len(rows) * scenario.output / (seconds + scenario.waves * machine.request_s),
        ttft_p50=_share(first, 0.5),
        ttft_p99=_share(first, 0.99),
        tpot_p50=tpot,
        itl_p50=_share(gaps, 0.5) + 0.01,
        itl_p99=_share(gaps, 0.99) + late,
        itl_max=gaps[-1] + latest,
        floor_ms=floor,
        pct_of_floor=100 * floor / tpot,
    )


def _share(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
