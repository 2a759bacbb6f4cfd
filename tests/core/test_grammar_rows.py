"""Rows that follow a grammar: one in flight, each token allowed by what came before it, neighbours undisturbed."""

from __future__ import annotations

import random
from concurrent.futures import Future

import pytest
from fake_engine import FakeEngine, mix, nearest, next_token, replay

from headrace.runtime.plan import StepPlan, StepResult
from headrace.runtime.request import FinishReason, Req, SamplingParams
from headrace.runtime.scheduler import Scheduler

WIDTH = 64


class Hashed:
    """A grammar whose allowed tokens are a hash of all tokens accepted so far: a missed or doubled one shows."""

    def __init__(self, fails_after: int = 1 << 30) -> None:
        self.accepted: list[int] = []
        self.fails_after = fails_after

    def mask(self) -> bytes:
        if len(self.accepted) >= self.fails_after:
            return b""
        state = 1
        for token in self.accepted:
            state = mix(state, token)
        return (state | 1 << state % WIDTH).to_bytes(16, "little")[: WIDTH // 8]

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def copy(self) -> Hashed:
        twin = Hashed(self.fails_after)
        twin.accepted = list(self.accepted)
        return twin

    @property
    def trouble(self) -> str:
        return "too complex" if len(self.accepted) >= self.fails_after else ""


def guided(prompt: list[int], count: int, seed: int) -> list[int]:
    """The oracle: this request alone."""
    grammar, tokens = Hashed(), list(prompt)
    for _ in range(count):
        token = nearest(grammar.mask(), next_token(tokens, seed, WIDTH), WIDTH)
        grammar.accept(token)
        tokens.append(token)
    return tokens[len(prompt) :]


class Run:
    """A scheduler over the fake engine with `depth` steps in flight."""

    def __init__(self, depth: int, pages: int = 64) -> None:
        self.engine = FakeEngine(page_count=pages, page_size=4, slots=8, width=WIDTH, gated=True)
        self.scheduler = Scheduler(pages, 4, 8, 8, ahead_tokens=0)
        self.depth = depth
        self.flight: list[tuple[StepPlan, Future[StepResult]]] = []
        self.errors: list[Req] = []
        self.ids = 0

    def add(self, prompt: list[int], count: int, seed: int, grammar: Hashed | None = None) -> Req:
        self.ids += 1
        params = SamplingParams(seed=seed)
        req = Req(self.ids, "", prompt, len(prompt), len(prompt) + count, params, grammar=grammar)
        self.scheduler.add(req)
        return req

    def step(self) -> bool:
        while len(self.flight) < self.depth and (plan := self.scheduler.plan()) is not None:
            for mask in plan.masks:
                (req,) = [req for req in self.scheduler.running.values() if req.slot == mask.slot]
                assert mask.grammar is req.grammar and isinstance(req.grammar, Hashed)
                assert req.grammar.accepted == req.tokens[req.prompt_len :], (
                    "its grammar is where its text is"
                )
            sampled = [row.slot for row in plan.rows if row.sample]
            bound = [req.slot for req in self.scheduler.running.values() if req.grammar is not None]
            assert sorted(mask.slot for mask in plan.masks) == sorted(set(sampled) & set(bound))
            self.flight.append((plan, self.engine.launch(plan)))
        if not self.flight:
            return False
        self.engine.land(1)
        plan, future = self.flight.pop(0)
        for event in self.scheduler.retire(plan, future.result()):
            if event.token is None:
                self.errors.append(event.req)
        self.scheduler.check()
        for req in self.scheduler.reqs():
            assert req.grammar is None or req.total_len - len(req.tokens) <= 1, (
                "one token at most is not seen yet"
            )
        return True

    def finish(self) -> None:
        steps = 0
        while self.step():
            steps += 1
            assert steps < 5000


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("pages", [64, 22])
def test_guided_rows_equal_their_lone_runs_beside_others(depth: int, pages: int) -> None:
    run, rng = Run(depth, pages), random.Random(depth)
    made = []
    for index in range(10):
        prompt = [rng.randrange(WIDTH) for _ in range(rng.choice([1, 3, 8, 17]))]
        made.append((run.add(list(prompt), 20, index, Hashed() if index % 2 else None), prompt, index))
    run.finish()
    for req, prompt, seed in made:
        said = req.tokens[len(prompt) :]
        if req.grammar is None:
            assert said == replay(prompt, 20, SamplingParams(seed=seed), WIDTH)
        else:
            assert said == guided(prompt, 20, seed)
        assert req.finish is FinishReason.LENGTH
    assert pages == 64 or run.scheduler.counters.retractions, "with few pages, some start over"
    assert run.scheduler.pages_in_use == 0 and run.scheduler._grammars == 0


def test_alone_it_runs_every_step_and_beside_others_every_second() -> None:
    run = Run(depth=2)
    run.add([1, 2], 10, 1, Hashed())
    run.finish()
    alone = run.scheduler.counters.steps
    assert alone == 10
    run.add([1, 2], 10, 1, Hashed())
    other = run.add([3, 4], 30, 2)
    run.finish()
    assert run.scheduler.counters.steps - alone <= 31, "the other one lost no step"
    assert other.tokens[2:] == replay([3, 4], 30, SamplingParams(seed=2), WIDTH)


@pytest.mark.parametrize("depth", [1, 2])
def test_pauses_and_cancels_leave_the_grammar_where_the_text_is(depth: int) -> None:
    run, rng = Run(depth), random.Random(5)
    req = run.add([1, 2, 3], 25, 7, Hashed())
    gone = run.add([4], 25, 8, Hashed())
    run.add([5], 60, 9)
    for turn in range(40):
        run.step()
        if req.finish is None and rng.random() < 0.4:
            (run.scheduler.resume if req.pausing else run.scheduler.pause)(req)
        if turn == 6:
            run.scheduler.cancel(gone)
    run.scheduler.resume(req)
    run.finish()
    assert req.tokens[3:] == guided([1, 2, 3], 25, 7)
    assert run.scheduler._grammars == 0


def test_a_grammar_that_fails_ends_its_request_alone() -> None:
    run = Run(depth=2)
    broken = run.add([1, 2], 20, 1, Hashed(fails_after=5))
    other = run.add([3], 20, 2, Hashed())
    run.finish()
    assert run.errors == [broken] and broken.finish is FinishReason.ERROR
    assert broken.tokens[2:] == guided([1, 2], 5, 1)
    assert other.tokens[1:] == guided([3], 20, 2)
