"""Decode steps of an engine by row count and context, driven with plans made by hand: no scheduler, no server.

Every row has KV of its own that a real prefill wrote. Contexts rise, so that each prompt token is computed once for
all cells; the tokens that a cell decodes are overwritten by what comes after it.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.bench.machine import Neighbours, brief, spread
from headrace.bench.step_model import (
    Machine,
    Precision,
    Shape,
    Work,
    percent_of_floor,
    triangle,
    work_floor_ms,
    work_ms,
)
from headrace.runtime.plan import PagePatch, PlanRow, SlotGrant, StepPlan, StepResult
from headrace.runtime.request import SamplingParams


class SteppedEngine(Protocol):
    """What a sweep needs of an engine. One that lands its steps only when asked has a `poll` besides."""

    page_count: int
    page_size: int
    max_running: int
    max_context: int
    chunk_tokens: int
    embedding_rows: int

    def launch(self, plan: StepPlan) -> Future[StepResult]: ...


def waiter(engine: SteppedEngine) -> Callable[[Future[StepResult]], StepResult]:
    """How to wait for a launched step: by asking the engine until it has landed, where it wants to be asked."""
    poll = getattr(engine, "poll", None)

    def wait(future: Future[StepResult]) -> StepResult:
        if poll is not None:
            while not future.done():
                poll()
        return future.result()

    return wait


@dataclass(slots=True)
class Sweep:
    """One engine whose slots fill up as the contexts rise. `pages`: by slot; `held`: computed tokens by slot."""

    engine: SteppedEngine
    seed: int = 0
    number: int = 0
    used: int = 0
    pages: list[list[int]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    prompt_steps: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def obstacle(self, rows: int, context: int, steps: int) -> str | None:
        """Why this cell cannot run on this engine; None if it can. Counts the tokens of all slots filled so far."""
        engine, tokens = self.engine, context + steps
        if rows > engine.max_running:
            return f"{rows} rows, the engine has {engine.max_running} slots"
        if tokens > engine.max_context:
            return f"{tokens} tokens, the engine has a context of {engine.max_context}"
        per_row = -(-tokens // engine.page_size)
        held = [len(pages) for pages in self.pages] + [0] * rows
        needed = sum(max(per_row, own) for own in held[:rows]) + sum(held[rows:])
        if needed > engine.page_count:
            return f"{needed} pages, the slab has {engine.page_count}"
        return None

    def fill(self, rows: int, context: int, steps: int) -> None:
        """Slots 0 to `rows` - 1 hold `context` computed tokens and have pages for `steps` more."""
        assert self.obstacle(rows, context, steps) is None
        wait = waiter(self.engine)
        rng = random.Random(f"{self.seed} {rows} {context}")
        for slot in range(rows):
            grants, patches = self._room(slot, context + steps)
            begin = self.held[slot]
            while begin < context:
                count = min(self.engine.chunk_tokens, context - begin)
                ids = tuple(rng.randrange(self.engine.embedding_rows) for _ in range(count))
                row = PlanRow(slot, slot, begin, count, ids, begin + count == context)
                plan = StepPlan(self.number, grants, patches, (), (), (row,))
                self.number += 1
                start = time.perf_counter()
                wait(self.engine.launch(plan))
                self.prompt_steps.setdefault((begin, count), []).append(time.perf_counter() - start)
                grants, patches = (), ()
                begin += count
            if grants or patches:
                wait(self.engine.launch(StepPlan(self.number, grants, patches, (), (), ())))
                self.number += 1
            self.held[slot] = max(context, self.held[slot])

    def _room(self, slot: int, tokens: int) -> tuple[tuple[SlotGrant, ...], tuple[PagePatch, ...]]:
        """Pages for `tokens` of this slot: a grant if it is new, patches if it has some already."""
        needed = -(-tokens // self.engine.page_size)
        if slot == len(self.pages):
            own = list(range(self.used, self.used + needed))
            self.used += needed
            self.pages.append(own)
            self.held.append(0)
            return (SlotGrant(slot, slot, SamplingParams(temperature=0.0), 1, tuple(own), ()),), ()
        own = self.pages[slot]
        fresh = range(self.used, self.used + max(0, needed - len(own)))
        patches = tuple(PagePatch(slot, len(own) + place, page) for place, page in enumerate(fresh))
        own.extend(fresh)
        self.used += len(fresh)
        return (), patches

    def plans(self, rows: int, context: int, steps: int) -> Iterator[StepPlan]:
        """Decode steps of the first `rows` slots, the first one writing the token at place `context`."""
        for place in range(context, context + steps):
            decode = tuple(PlanRow(slot, slot, place, 1, None, True) for slot in range(rows))
            yield StepPlan(self.number, (), (), (), decode, ())
            self.number += 1

    def run(self, rows: int, context: int, steps: int, depth: int) -> Landings:
        """`steps` decode steps, `depth` of them in flight; the first few are left out of the times."""
        wait = waiter(self.engine)
        made = list(self.plans(rows, context, steps))
        flight: deque[Future[StepResult]] = deque()
        found = Landings()
        landed = time.perf_counter()
        for plan in made:
            start = time.perf_counter()
            flight.append(self.engine.launch(plan))
            launched = time.perf_counter()
            found.launches.append(launched - start)
            found.gaps.append(launched - landed)
            if len(flight) >= depth:
                result = wait(flight.popleft())
                landed = time.perf_counter()
                found.stamps.append(landed)
                assert len(result.tokens) == rows and min(result.tokens) >= 0, result
        while flight:
            wait(flight.popleft())
            found.stamps.append(time.perf_counter())
        return found


@dataclass(slots=True)
class Landings:
    """When steps landed, how long each call of `launch` took, and from a landing to the end of the next launch."""

    stamps: list[float] = field(default_factory=list)
    launches: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def periods(self, skip: int = 2) -> list[float]:
        """Seconds between landings, without the first ones."""
        return [
            after - before for before, after in zip(self.stamps[skip:], self.stamps[skip + 1 :], strict=False)
        ]


def measure_cell(
    sweep: Sweep, rows: int, context: int, steps: int, rounds: int, rates: tuple[Shape, Machine, Precision]
) -> dict[str, Any]:
    """One cell: the step alone (two in flight, so that the device never waits), and what the host adds when it
    launches the next step only after the last one landed. `context` is what the rows hold; while they decode they
    read `steps` / 2 tokens more on average, and the floor counts those. Where the cell cannot run, "left_out" says
    why."""
    reason = sweep.obstacle(rows, context, steps)
    if reason is not None:
        return {"rows": rows, "context": context, "left_out": reason}
    sweep.fill(rows, context, steps)
    back_to_back: list[float] = []
    one_by_one: list[float] = []
    launches: list[float] = []
    gaps: list[float] = []
    for turn in range(rounds + 1):
        queued = sweep.run(rows, context, steps, depth=2)
        single = sweep.run(rows, context, steps, depth=1)
        if turn == 0:
            continue
        back_to_back.append(statistics.median(queued.periods()))
        one_by_one.append(statistics.median(single.periods()))
        launches += queued.launches[2:]
        gaps += single.gaps[2:]
    step_ms = statistics.median(back_to_back) * 1e3
    work = Work(rows, context + (steps + 1) / 2)
    shape, machine, precision = rates
    floor = work_floor_ms(shape, work, machine, precision)
    _, launch, late_launch = spread(launches, 1e6)
    _, gap, late_gap = spread(gaps, 1e6)
    return {
        "rows": rows,
        "context": work.context,
        "step_ms": brief(step_ms),
        "step_ms_best": brief(min(back_to_back) * 1e3),
        "step_ms_worst": brief(max(back_to_back) * 1e3),
        "tokens_per_s": brief(rows / step_ms * 1e3),
        "lockstep_ms": brief(statistics.median(one_by_one) * 1e3),
        "launch_us_p50": brief(launch),
        "launch_us_p99": brief(late_launch),
        "gap_us_p50": brief(gap),
        "gap_us_p99": brief(late_gap),
        "floor_ms": brief(floor),
        "pct_of_floor": brief(percent_of_floor(floor, step_ms)),
        "predicted_ms": brief(work_ms(shape, work, machine, precision)),
        "rounds": rounds,
    }


def prompt_cells(sweep: Sweep, rates: tuple[Shape, Machine, Precision]) -> list[dict[str, Any]]:
    """The prompt steps that the sweep has run on its way, one entry for each place and size, medians."""
    shape, machine, precision = rates
    found = []
    for (begin, count), seconds in sorted(sweep.prompt_steps.items()):
        work = Work(0, 0.0, count, triangle(begin, begin + count))
        step_ms = statistics.median(seconds) * 1e3
        floor = work_floor_ms(shape, work, machine, precision)
        found.append(
            {
                "begin": begin,
                "chunk": count,
                "step_ms": brief(step_ms),
                "tokens_per_s": brief(count / step_ms * 1e3),
                "floor_ms": brief(floor),
                "pct_of_floor": brief(percent_of_floor(floor, step_ms)),
                "predicted_ms": brief(work_ms(shape, work, machine, precision)),
                "steps": len(seconds),
            }
        )
    return found


def measure_sweep(
    engine: SteppedEngine,
    rows: Sequence[int],
    contexts: Sequence[int],
    steps: int,
    rounds: int,
    rates: tuple[Shape, Machine, Precision],
    said: Callable[[dict[str, Any]], None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All cells, contexts rising, and the prompt steps. `said` hears of each cell when it is done. Only before the
    first plan of a scheduler."""
    idle_work = getattr(engine, "idle_work", None)
    while idle_work is not None and idle_work():
        pass  # what an engine puts off until it is idle (captures) shall not fall into a measured step
    sweep = Sweep(engine)
    neighbours = Neighbours([os.getpid()])
    cells = []
    for context in sorted(set(contexts)):
        for count in sorted(set(rows)):
            neighbours.look()
            cell = measure_cell(sweep, count, context, steps, rounds, rates)
            cells.append({**cell, "cpus_busy_elsewhere": round(neighbours.look(), 2)})
            said(cells[-1])
    return cells, prompt_cells(sweep, rates)
