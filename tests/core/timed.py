"""The core on a virtual clock: the real Scheduler, Pace and Foresight, and a device whose times are a formula.

Nothing here waits: a step lands when the formula says so. Tokens mean nothing; who is told what, and when, does.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.runtime.claim import NO_CLAIM, Claim, Rank, Targets
from headrace.runtime.foresight import Foresight
from headrace.runtime.pace import Pace, pairs_of
from headrace.runtime.plan import StepPlan, StepResult
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import Req, SamplingParams
from headrace.runtime.scheduler import Scheduler

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Device:
    """Seconds of a step: `base` and `row` each for decode rows, `chunk`, `token` and `pair` for what is read."""

    base: float = 0.006
    row: float = 5e-5
    chunk: float = 5e-4
    token: float = 2e-5
    pair: float = 1e-9

    def alone(self, rows: int) -> float:
        return self.base + self.row * rows if rows else 0.0

    def added(self, tokens: int, pairs: float) -> float:
        return self.chunk + self.token * tokens + self.pair * pairs if tokens else 0.0


class ExactPace(Pace):
    """A pace that knows the device: what is predicted happens."""

    def __init__(self, sizes: Sequence[int], device: Device, bound: float = 0.0) -> None:
        super().__init__(sizes, device.token, bound)
        self.device = device

    def observe(self, rows: int, tokens: int, pairs: float, seconds: float) -> None:
        pass

    def alone(self, rows: int) -> float:
        return self.device.alone(rows)

    def added(self, tokens: int, start: int) -> float:
        return self.device.added(tokens, pairs_of(tokens, start))

    def most_rows(self, itl: float) -> int | None:
        return max(0, int((0.9 * itl - self.added(16, 8000) - self.device.base) / self.device.row))


@dataclass
class Life:
    """One request as its client saw it."""

    req: Req
    opened: float
    refused: Refusal | None = None
    times: list[float] = field(default_factory=list)  # of its tokens

    @property
    def ttft(self) -> float:
        return self.times[0] - self.opened

    @property
    def gaps(self) -> list[float]:
        return [late - early for early, late in zip(self.times, self.times[1:], strict=False)]


class Clockwork:
    """Arrivals at their times, steps one after the other, `depth` of them launched at most."""

    def __init__(
        self, pace: Pace, device: Device, *, pages: int = 20_000, page_size: int = 64, slots: int = 64,
        depth: int = 1, chunk: int = 2048, scheduler: Any = Scheduler, foresight: Any = Foresight,
        **settings: Any,
    ) -> None:  # fmt: skip
        self.scheduler = scheduler(pages, page_size, slots, chunk, **settings)
        self.pace, self.device, self.depth = pace, device, depth
        self.foresight = foresight(self.scheduler, pace, depth)
        self.now = 0.0
        self.lives: dict[int, Life] = {}
        self.steps: list[tuple[StepPlan, float]] = []  # and what each took
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._flight: deque[tuple[StepPlan, float, float]] = deque()  # plan, begin, end
        self._order = 0

    def at(self, time: float, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (time, self._order, event))

    def arrive(
        self, time: float, prompt: Sequence[int], output: int, claim: Claim = NO_CLAIM, salt: str = "a"
    ) -> Life:
        """A request comes at `time`. Its life is told from then on."""
        number = len(self.lives) + 1
        req = Req(
            number, salt, list(prompt), len(prompt), len(prompt) + output, SamplingParams(), claim=claim
        )
        life = self.lives[number] = Life(req, time)

        def come() -> None:
            try:
                req.promise = self.foresight.promise(req, time, self.now, self._ahead())
                self.scheduler.add(req)
            except Refusal as refusal:
                life.refused = refusal
            self._launch()

        self.at(time, come)
        return life

    def run(self, until: float = float("inf")) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def _ahead(self) -> float:
        return max(0.0, self._flight[-1][2] - self.now) if self._flight else 0.0

    def _launch(self) -> None:
        while len(self._flight) < self.depth:
            allowed = self.foresight.allowance(self.now)
            plan = self.scheduler.plan(allowed.budget, most_rows=allowed.most_rows, hurry=allowed.hurry)
            if plan is None:
                return
            begin = max(self.now, self._flight[-1][2] if self._flight else 0.0)
            tokens = plan.prefill_tokens
            pairs = sum(pairs_of(row.count, row.start) for row in plan.prefill)
            padded = next((size for size in SIZES if size >= tokens), tokens) if tokens else 0
            seconds = self.device.alone(len(plan.decode)) + self.device.added(padded, pairs)
            seconds = max(seconds, 1e-5)
            self._flight.append((plan, begin, begin + seconds))
            self.steps.append((plan, seconds))
            self.at(begin + seconds, self._land)

    def _land(self) -> None:
        plan, begin, end = self._flight.popleft()
        pairs = sum(pairs_of(row.count, row.start) for row in plan.prefill)
        self.pace.observe(len(plan.decode), plan.prefill_tokens, pairs, end - begin)
        sampling = sum(row.sample for row in plan.rows)
        for event in self.scheduler.retire(plan, StepResult((1,) * sampling)):
            self.lives[event.req.id].times.append(end)
        self._launch()


PROMISE_GATES = (
    "kept", "refused", "kept: behind a crowd that wanted nothing", "kept: of the batch class", "deadline kept",
    "pace kept", "refused: pace", "made way",
)  # fmt: skip


def promises_of(seed: int, depth: int, **parts: Any) -> Counter[str]:
    """One seeded crowd of all classes and owners on an exact device; AssertionError if a promise is broken."""
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    device = Device(token=rng.choice((1e-5, 4e-5)), pair=rng.choice((1e-10, 1e-9)))
    slots = rng.choice((4, 8, 32))
    world = Clockwork(ExactPace(SIZES, device), device, depth=depth, slots=slots, **parts)
    load = rng.choice((0.5, 1.0, 3.0))
    at = 0.0
    for number in range(60):
        length = rng.choice((30, 300, 2000, 8000))
        at += rng.expovariate(load / (world.pace.seconds(4, 0, length) + 0.05))
        wish: dict[str, float] = {}
        rank = rng.choice(tuple(Rank))
        kind = rng.random()
        if kind < 0.35:
            wish["ttft"] = rng.choice((0.3, 1.0, 3.0, 10.0))
        elif kind < 0.5:
            wish["deadline"] = rng.choice((2.0, 10.0))
        elif kind < 0.6:
            wish["itl"] = rng.choice((0.005, 0.03, 0.06))
        claim = Claim(rng.choice("xyz"), 1.0, Targets(rank, **wish))
        prompt = [rng.randrange(50) if rng.random() < 0.01 else 7 for _ in range(length)]
        world.arrive(at, [number, *prompt], rng.choice((1, 20, 100)), claim)
    world.run()
    lives = list(world.lives.values())
    for life in lives:
        targets, req = life.req.claim.targets, life.req
        if life.refused is not None:
            assert targets.promised and life.refused.code == "rate_limit_exceeded"
            assert life.refused.retry_after is None or life.refused.retry_after > 0.0
            seen["refused"] += 1
            seen["refused: pace"] += targets.itl is not None
            continue
        assert len(life.times) == req.max_len - req.prompt_len, f"request {req.id} was not served"
        if targets.ttft is not None:
            assert life.ttft <= targets.ttft, f"seed {seed}: request {req.id} waited {life.ttft:.3f} s"
            seen["kept"] += 1
            seen["kept: of the batch class"] += targets.rank is Rank.BATCH
            crowd = [
                other
                for other in lives
                if other.opened < life.opened and not other.req.claim.targets.promised
            ]
            behind = [other for other in crowd if other.times[0] > life.times[0]]
            seen["kept: behind a crowd that wanted nothing"] += len(behind) >= 2
        if targets.deadline is not None:
            took = life.times[-1] - life.opened
            assert took <= targets.deadline, f"seed {seed}: request {req.id} took {took:.3f} s"
            seen["deadline kept"] += 1
        if targets.itl is not None:
            slowest = max(life.gaps, default=0.0)
            assert slowest <= targets.itl, f"seed {seed}: request {req.id} paused for {slowest:.3f} s"
            seen["pace kept"] += 1
    seen["made way"] += world.scheduler.counters.yields
    world.scheduler.check()
    assert world.scheduler.idle
    return seen
