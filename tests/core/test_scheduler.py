"""Scripts: one short life each, for bugs that the simulation found and for rules that need a sure case."""

from __future__ import annotations

import gc
from types import ModuleType
from typing import Any

import pytest

from headrace.runtime.plan import NON_FINITE, StepResult
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import FinishReason, ForkPoint, Phase, Req, SamplingParams
from headrace.runtime.scheduler import Retired, Scheduler

WIDTH = 50


class Script:
    """A scheduler and a device, stepped by hand. `check()` runs after every step."""

    def __init__(
        self, cells: ModuleType, pages: int, page_size: int, slots: int = 4, chunk: int = 64, **more: Any
    ):
        self.cells = cells
        self.scheduler = Scheduler(pages, page_size, slots, chunk, **more)
        self.device = cells.Device(pages, page_size, slots, WIDTH)
        self.flight: list[Any] = []
        self.born = 0

    def req(
        self, tokens: list[int], count: int, fork: ForkPoint | None = None, salt: str = "a", **params: Any
    ) -> Req:
        self.born += 1
        return Req(
            self.born, salt, list(tokens), len(tokens), len(tokens) + count, SamplingParams(**params), fork
        )

    def add(self, *words: Any, **more: Any) -> Req:
        req = self.req(*words, **more)
        self.scheduler.add(req)
        self.scheduler.check()
        return req

    def launch(self) -> Any:
        plan = self.scheduler.plan()
        self.scheduler.check()
        if plan is not None:
            self.flight.append(plan)
        return plan

    def land(self, bad: Req | None = None) -> list[Retired]:
        """The oldest step lands; with `bad`, its row in that step was not finite."""
        plan = self.flight.pop(0)
        spoil = {index for index, row in enumerate(plan.rows) if bad is not None and row.req_id == bad.id}
        result, _ = self.device.run(plan, frozenset(spoil))
        events = self.scheduler.retire(plan, result)
        self.scheduler.check()
        return events

    def run(self) -> None:
        """Until nothing moves any more."""
        while self.flight or self.launch() is not None:
            self.land()

    def answer(self, req: Req) -> list[int]:
        return req.tokens[req.prompt_len :]

    def alone(self, req: Req) -> list[int]:
        prompt = req.tokens[: req.prompt_len]
        told: list[int] = self.cells.alone(prompt, req.max_len - req.prompt_len, req.params, WIDTH)
        return told


@pytest.fixture
def cells(simulation: ModuleType) -> ModuleType:
    module: ModuleType = simulation.cells
    return module


def test_pages_of_a_failed_request_are_not_offered_to_others(cells: ModuleType) -> None:
    """ENG-08: the first chunk holds the NaN, only the last one samples and shows it."""
    script = Script(cells, pages=16, page_size=2, chunk=4)
    prompt = [1, 2, 3, 4, 5, 6, 7]
    sick = script.add(prompt, 3)
    script.launch()
    script.land(bad=sick)
    assert script.scheduler.tree.cached_pages == 2, "nobody knows yet"
    script.launch()
    (event,) = script.land()
    assert event.token is None and event.finish is FinishReason.ERROR and sick.phase is Phase.DONE
    assert script.scheduler.tree.cached_pages == 0
    well = script.add(prompt, 3)
    script.run()
    assert well.finish is FinishReason.LENGTH and well.cached_len == 0
    assert script.answer(well) == script.alone(well)
    assert script.scheduler.pages_in_use == 0


def test_a_neighbour_on_a_condemned_prefix_keeps_its_pages_and_its_words(cells: ModuleType) -> None:
    script = Script(cells, pages=32, page_size=2)
    prompt = [1, 2, 3, 4, 5]
    script.add(prompt, 1)
    script.run()
    one, two = script.add(prompt, 9), script.add(prompt, 9)
    script.launch()
    assert one.cached_len == two.cached_len == 4
    script.land(bad=one)
    assert one.finish is FinishReason.ERROR and two.finish is None
    assert script.scheduler.tree.cached_pages == 0
    fork = script.add(two.tokens, 2, ForkPoint(two, len(two.tokens)))
    script.run()
    assert script.answer(two) == script.alone(two) and script.answer(fork) == script.alone(fork)
    assert script.scheduler.tree.cached_pages == 0, "what stands on a condemned page is not offered either"
    assert script.scheduler.pool.used_count == 0


def test_a_nan_that_lands_after_the_cancel_is_not_cached(cells: ModuleType) -> None:
    script = Script(cells, pages=8, page_size=4)
    req = script.add([1, 2, 3, 4], 9)  # a full page, so that it would enter the tree when it lands
    script.launch()
    script.launch()
    script.scheduler.cancel(req)
    assert script.land(bad=req) == [] and req.finish is FinishReason.CANCELLED
    assert script.land() == [], "its next row lands too, with a token that came after a NaN"
    assert req.phase is Phase.DONE and script.scheduler.pool.used_count == 0
    after = script.add([1, 2, 3, 4, 5, 6], 1)
    script.run()
    assert after.cached_len == 0


def test_a_row_of_this_very_plan_keeps_its_pages_until_it_lands(cells: ModuleType) -> None:
    """The younger one comes first in the batch, has its row already, and is then the victim of the older one."""
    script = Script(cells, pages=3, page_size=4, ahead_tokens=0, prefix_cache=False)
    old = script.add([1, 2, 3], 8)
    script.launch()
    script.land()
    script.scheduler.pause(old)
    young = script.add([4, 5, 6, 7, 8], 7)
    script.launch()
    script.land()
    script.scheduler.resume(old)
    assert script.launch() is not None and list(script.scheduler.running) == [young.id, old.id]
    script.land()
    assert script.scheduler.pool.free_count == 0
    plan = script.launch()
    assert [row.req_id for row in plan.rows] == [young.id] and young.retracting and young.pages
    script.land()
    assert not young.pages and young.retractions == 1 and script.answer(young) == script.alone(young)[:3]


def test_a_fork_of_a_failed_parent_shares_nothing(cells: ModuleType) -> None:
    script = Script(cells, pages=8, page_size=2)
    parent = script.add([1, 2, 3], 9)
    script.launch()
    script.launch()
    script.land(bad=parent)
    assert parent.finish is FinishReason.ERROR and parent.phase is not Phase.DONE
    fork = script.add([1, 2, 3, 4], 2, ForkPoint(parent, 3))
    assert not fork.pages and fork.copy_from is None
    script.run()
    assert script.answer(fork) == script.alone(fork)


def test_the_idle_source_of_a_copy_is_not_counted_as_a_free_page(cells: ModuleType) -> None:
    """The parent filled its part page, cached it and ended; the fork that sleeps still holds it for its copy."""
    script = Script(cells, pages=4, page_size=2)
    scheduler = script.scheduler
    parent = script.add([1, 2, 3], 3)
    script.launch()
    script.land()
    fork = script.add([1, 2, 3, 9], 2, ForkPoint(parent, 3))
    scheduler.pause(fork)
    script.run()
    assert parent.phase is Phase.DONE and fork.copy_from is not None
    assert scheduler.tree.is_idle(fork.copy_from) and scheduler.pool.free_count == 2
    assert scheduler.pages_in_use == 2
    large = script.add([7] * 5, 2, salt="b")  # three pages: one more than can be had while the fork holds two
    script.run()
    assert fork.copy_from is None and fork.retractions == 1
    scheduler.resume(fork)
    script.run()
    for req in (large, fork):
        assert script.answer(req) == script.alone(req)


def test_a_fork_of_what_has_not_landed_looks_into_the_cache(cells: ModuleType) -> None:
    script = Script(cells, pages=16, page_size=2, slots=1)
    parent = script.add([1, 2, 3, 4, 5], 2)
    script.launch()  # its whole prompt is in flight: nothing of it can be shared yet
    fork = script.add([1, 2, 3, 4, 5, 6], 2, ForkPoint(parent, 5))
    assert not fork.pages and fork.copy_from is None
    script.run()
    assert fork.cached_len == 4, "by then the parent's pages were in the tree"
    assert script.answer(fork) == script.alone(fork)


def test_a_forks_own_work_is_not_counted_as_cached(cells: ModuleType) -> None:
    script = Script(cells, pages=16, page_size=2, prefix_cache=False)
    parent = script.add([1, 2, 3, 4, 5], 2)
    fork = script.add([1, 2, 3, 4, 5, 6], 5, ForkPoint(parent, 5))
    script.launch()
    script.land()
    script.scheduler.pause(fork)
    assert fork.phase is Phase.PAUSED and fork.pages
    script.scheduler.resume(fork)
    script.run()
    assert fork.cached_len == 0 and script.scheduler.counters.cached_tokens == 0
    assert script.answer(fork) == script.alone(fork)


def test_a_request_retracted_before_its_start_still_counts_its_hit(cells: ModuleType) -> None:
    script = Script(cells, pages=16, page_size=2)
    parent = script.add([1, 2, 3, 4, 5], 4)
    script.launch()
    script.land()
    fork = script.add([1, 2, 3, 4, 5, 6], 2, ForkPoint(parent, 5))
    script.scheduler._retract(fork)
    assert not fork.pages
    script.run()
    assert fork.cached_len == 4


def test_a_chain_of_forks_does_not_keep_its_ancestors(cells: ModuleType) -> None:
    """A conversation that forks its last answer for ever must not hold all answers before."""
    script = Script(cells, pages=64, page_size=4)
    parent = script.add([1, 2, 3], 9, salt="chain")
    script.launch()
    script.land()
    for _ in range(5):
        child = script.add(parent.tokens, 9, ForkPoint(parent, len(parent.tokens)), "chain")
        script.launch()
        script.land()
        script.scheduler.cancel(parent)
        parent = child
    gc.collect()
    assert [each for each in gc.get_objects() if isinstance(each, Req) and each.salt == "chain"] == [parent]
    script.run()
    assert script.answer(parent) == script.alone(parent)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("evicted", [0, 1, 3, 100])
def test_a_fork_of_the_ended_takes_what_is_left_and_says_the_same(
    cells: ModuleType, size: int, evicted: int
) -> None:
    for kept in range(1, 13):
        script = Script(cells, pages=64, page_size=size)
        parent = script.req([1, 2, 3, 4, 5], 7)
        parent.forkable = True
        script.scheduler.add(parent)
        script.run()
        scheduler, spent = script.scheduler, script.scheduler.counters.prefill_tokens_computed
        part = (len(parent.tokens) - 1) % size > 0
        assert len(scheduler.remnants) == part and scheduler.pages_in_use == 0
        for _ in range(evicted):
            scheduler.tree.evict_one()
        fork = script.add([*parent.tokens[:kept], 9], 4, ForkPoint(parent, kept), seed=1)
        script.run()
        assert script.answer(fork) == script.alone(fork)
        if not evicted:
            again = scheduler.counters.prefill_tokens_computed - spent
            # Its own token is the last one, so it is fed; and the parent's last one never was.
            assert again == (2 if kept == len(parent.tokens) else 1), "only what follows is computed"
        scheduler.flush_cache()
        assert scheduler.pool.free_count == 64


def test_who_has_met_a_nan_leaves_nothing(cells: ModuleType) -> None:
    script = Script(cells, pages=16, page_size=4)
    parent = script.req([1, 2, 3, 4, 5], 9)
    parent.forkable = True
    script.scheduler.add(parent)
    script.launch()
    script.land()
    script.launch()
    script.land(bad=parent)
    assert parent.finish is FinishReason.ERROR and not len(script.scheduler.remnants)
    fork = script.add(parent.tokens, 3, ForkPoint(parent, len(parent.tokens)))
    script.run()
    assert fork.cached_len == 0 and script.answer(fork) == script.alone(fork)


@pytest.mark.parametrize("size", [1, 2, 4, 16])
@pytest.mark.parametrize("chunk", ["one", "page-1", "page", "page+1", 128])
@pytest.mark.parametrize("cache", [True, False])
def test_retraction_every_three_steps_changes_no_word(
    cells: ModuleType, size: int, chunk: Any, cache: bool
) -> None:
    """ENG-06."""
    tokens = {"one": 1, "page-1": max(1, size - 1), "page": size, "page+1": size + 1}.get(chunk, chunk)
    script = Script(cells, pages=256, page_size=size, chunk=tokens, prefix_cache=cache)
    reqs = [script.add([1, 2, 3, 4, 5, number], 20, seed=number) for number in range(3)]
    for step in range(200):
        while len(script.flight) < 2 and script.launch() is not None:
            pass
        # At times only, so that a prompt fed again token by token also gets further than before.
        if step % 3 == 0 and step < 30:
            running = [
                req for req in script.scheduler.running.values() if not req.retracting and not req.finish
            ]
            if running:
                script.scheduler._retract(running[step % len(running)])
                script.scheduler.check()
        if script.flight:
            script.land()
    assert script.scheduler.idle and script.scheduler.counters.retractions > 5
    for req in reqs:
        assert req.finish is FinishReason.LENGTH and script.answer(req) == script.alone(req)


@pytest.mark.parametrize("size", [1, 2, 16])
def test_what_needs_the_whole_pool_runs_and_one_token_more_is_refused(cells: ModuleType, size: int) -> None:
    """ENG-04: need = pool - 1, pool, pool + 1 tokens of KV, beside somebody who holds pages and sleeps."""
    pages = 4
    for need in (pages * size - 1, pages * size, pages * size + 1):
        script = Script(cells, pages=pages, page_size=size)
        sleeper = script.add([5], 3)
        script.launch()
        script.land()
        script.scheduler.pause(sleeper)
        prompt = [1] * max(1, need - 1)
        count = need + 1 - len(prompt)  # the last token needs no KV
        if need > pages * size:
            with pytest.raises(Refusal) as refused:
                script.add(prompt, count)
            assert refused.value.code == "context_length_exceeded"
        else:
            req = script.add(prompt, count)
            script.run()
            assert req.finish is FinishReason.LENGTH and script.answer(req) == script.alone(req)
        script.scheduler.resume(sleeper)
        script.run()
        assert script.answer(sleeper) == script.alone(sleeper)


def test_one_token_for_ever_leaves_nothing_behind(cells: ModuleType) -> None:
    """SEC-09: answers of one token in a tight loop."""
    script = Script(cells, pages=8, page_size=2)
    for number in range(300):
        req = script.add([number % 50, 1, 2], 1, salt=f"tenant {number}")
        script.run()
        assert req.finish is FinishReason.LENGTH
    scheduler = script.scheduler
    scheduler.flush_cache()
    assert scheduler.pool.free_count == 8 and not scheduler.tree._roots and not scheduler._sources
    assert sum(map(len, scheduler.tree._heaps.values())) <= 64
    assert not scheduler.waiting and not scheduler.running and not scheduler.paused and not scheduler._flight


def test_results_must_match_the_plan(cells: ModuleType) -> None:
    script = Script(cells, pages=8, page_size=2)
    script.add([1, 2], 3)
    first, second = script.launch(), script.launch()
    with pytest.raises(AssertionError, match="in the order they were planned"):
        script.scheduler.retire(second, StepResult((1,)))
    with pytest.raises(AssertionError, match="one token per sampling row"):
        script.scheduler.retire(first, StepResult((1, NON_FINITE)))
