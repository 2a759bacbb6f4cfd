"""An engine without a model: the next token is a hash of the page contents it reads.

A wrong, stale, shifted or foreign page therefore changes the text. Runs the real scheduler, loop and sockets.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from headrace.runtime.logprobs import Logprobs
from headrace.runtime.pace import Pace
from headrace.runtime.plan import NON_FINITE, StepPlan, StepResult
from headrace.runtime.request import SamplingParams

UNWRITTEN = -7
_MASK = (1 << 64) - 1


def mix(state: int, value: int) -> int:
    """One step of a 64-bit hash (splitmix finaliser over state and value)."""
    state = (state * 0x9E3779B97F4A7C15 + value + 0x632BE59BD9B4E019) & _MASK
    state ^= state >> 30
    state = (state * 0xBF58476D1CE4E5B9) & _MASK
    return state ^ (state >> 27)


def next_token(tokens: list[int], seed: int, width: int) -> int:
    """What the fake model answers after `tokens`: a pure function of them, of the seed and of the length."""
    state = mix(seed & _MASK, len(tokens))
    for token in tokens:
        state = mix(state, token)
    return state % width


def likely(tokens: list[int], width: int) -> list[tuple[int, float]]:
    """All tokens with the logprobs that the fake model gives them after `tokens`, best first. They have nothing to
    do with what it says next, and are no probabilities: only another hash, exact in float32."""
    state = 0
    for token in tokens:
        state = mix(state, token)
    values = [(token, -(mix(state, token) % 4096) / 256.0) for token in range(width)]
    return sorted(values, key=lambda each: (-each[1], each[0]))


def replay(
    prompt: list[int], count: int, params: SamplingParams, width: int, choose: Callable[..., int] = next_token
) -> list[int]:
    """The oracle: this request alone, `count` tokens at most, ended by its stop ids."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        token = choose(tokens, params.seed, width)
        tokens.append(token)
        if token in params.stop_ids and len(tokens) - len(prompt) > params.min_tokens:
            break
    return tokens[len(prompt) :]


def nearest(mask: bytes, token: int, width: int) -> int:
    """`token`, or the first one after it, all around, that `mask` allows; NON_FINITE if none is."""
    for step in range(width):
        each = (token + step) % width
        if each // 8 < len(mask) and mask[each // 8] >> each % 8 & 1:
            return each
    return NON_FINITE


class PageMemory:
    """Pages as lists of token ids, page tables and last tokens by slot: what a real engine keeps on the device."""

    def __init__(
        self,
        page_count: int,
        page_size: int,
        slots: int,
        width: int,
        choose: Callable[[list[int], int, int], int] = next_token,
    ) -> None:
        self.page_size = page_size
        self.width = width
        self.choose = choose
        self.pages = [[UNWRITTEN] * page_size for _ in range(page_count)]
        self.tables: list[list[int]] = [[] for _ in range(slots)]
        self.params: list[SamplingParams | None] = [None] * slots
        self.last: list[int] = [UNWRITTEN] * slots

    def run(self, plan: StepPlan) -> StepResult:
        """Grants, patches, copies, then rows: the order that StepPlan promises."""
        for grant in plan.grants:
            self.tables[grant.slot] = list(grant.pages)
            self.params[grant.slot] = grant.params
            self.last[grant.slot] = UNWRITTEN
        for patch in plan.patches:
            table = self.tables[patch.slot]
            assert patch.index == len(table), "page tables grow at their end"
            table.append(patch.page)
        for copy in plan.copies:
            self.pages[copy.target] = list(self.pages[copy.source])
        fed: list[tuple[int, ...]] = []
        for row in plan.rows:
            ids = row.ids if row.ids is not None else (self.last[row.slot],)
            assert len(ids) == row.count and UNWRITTEN not in ids
            fed.append(ids)
        for row, ids in zip(plan.rows, fed, strict=True):
            for offset, token in enumerate(ids):
                index = row.start + offset
                page = self.tables[row.slot][index // self.page_size]
                self.pages[page][index % self.page_size] = token
        masks = {mask.slot: mask.grammar.mask() for mask in plan.masks}
        sampled: list[int] = []
        chosen: dict[int, int] = {}
        for index, row in enumerate(plan.rows):
            if not row.sample:
                continue
            read = self._read(row.slot, row.start + row.count)
            params = self.params[row.slot]
            assert params is not None
            token = self.choose(read, params.seed, self.width)
            if row.slot in masks:
                token = nearest(masks[row.slot], token, self.width)
            self.last[row.slot] = token
            sampled.append(token)
            chosen[index] = token
        return StepResult(tuple(sampled), self._probe(plan, chosen) if plan.probes else None)

    def _read(self, slot: int, length: int) -> list[int]:
        table = self.tables[slot]
        return [self.pages[table[i // self.page_size]][i % self.page_size] for i in range(length)]

    def _probe(self, plan: StepPlan, chosen: dict[int, int]) -> Logprobs:
        """Of every token that is wanted, what `likely` says after the tokens on the pages."""
        width = max(probe.top for probe in plan.probes)
        values: list[float] = []
        ids: list[int] = []
        tops: list[float] = []
        for probe in plan.probes:
            row = plan.rows[probe.row]
            wanted = [(row.start + probe.first + at + 1, token) for at, token in enumerate(probe.ids)]
            if row.sample:
                wanted.append((row.start + row.count, chosen[probe.row]))
            for length, token in wanted:
                ranked = likely(self._read(row.slot, length), self.width)
                values.append(dict(ranked)[token])
                ids += [rank for rank, _ in ranked[:width]]
                tops += [value for _, value in ranked[:width]]
        return Logprobs(width, values, ids, tops)


class FakeEngine:
    """The engine side of the StepLoop over a PageMemory.

    Without a gate (`gated`) a step lands as soon as it is launched; with one, steps land when the test says so.
    `polled`: as on a GPU, what has landed is told inside `poll`; otherwise by whoever lands it."""

    def __init__(
        self,
        page_count: int = 256,
        page_size: int = 16,
        slots: int = 16,
        width: int = 256,
        choose: Callable[[list[int], int, int], int] = next_token,
        gated: bool = False,
        depth: int = 1,
        polled: bool = False,
    ) -> None:
        self.depth = depth
        self.masks = True
        self.poll: Callable[[], bool] | None = self._tell if polled else None
        self.idle_work: Callable[[], bool] | None = None
        self.bucket = self.replays = 0
        self.captured: frozenset[int] = frozenset()  # rows for which it pretends to have a graph
        self.pace: Pace | None = None
        self._landed: deque[tuple[Future[StepResult], StepResult]] = deque()
        self.page_count = page_count
        self.page_size = page_size
        self.page_bytes = 1024 * page_size
        self.max_running = slots
        self.max_context = page_count * page_size
        self.chunk_tokens = 64
        self.image_blocks, self.image_block_rows, self.images = 64, 16, None
        self.image_stages, self.whole_pictures, self.image_ratio = 4, False, 1.0
        self.memory = PageMemory(page_count, page_size, slots, width, choose)
        self.plans: list[StepPlan] = []  # every plan launched, for tests that look at what ran
        self.gated = gated
        self.held: list[tuple[StepPlan, Future[StepResult]]] = []
        self.fault: Exception | None = None
        self.closed = False
        self._lock = threading.Lock()

    def launch(self, plan: StepPlan) -> Future[StepResult]:
        future: Future[StepResult] = Future()
        self.plans.append(plan)
        rows = len(plan.decode) + len(plan.prefill)
        self.bucket = 1 << (rows - 1).bit_length()
        self.replays += self.bucket in self.captured and not plan.prefill
        if self.fault is not None:
            future.set_exception(self.fault)
            return future
        with self._lock:
            self.held.append((plan, future))
        if not self.gated:
            self.land()
        return future

    def land(self, count: int | None = None) -> int:
        """Let `count` held steps land (None: all). Returns how many did."""
        landed = 0
        while self.held and (count is None or landed < count):
            with self._lock:
                plan, future = self.held.pop(0)
            result = self.memory.run(plan)
            if self.poll is None:
                future.set_result(result)
            else:
                self._landed.append((future, result))
            landed += 1
        return landed

    def _tell(self) -> bool:
        found = bool(self._landed)
        while self._landed:
            future, result = self._landed.popleft()
            future.set_result(result)
        return found

    def aside(self, work: Callable[[], None]) -> Future[None]:
        """Its steps run on the thread that lets them land: so does this."""
        future: Future[None] = Future()
        work()
        future.set_result(None)
        return future

    def close(self) -> None:
        self.closed = True
