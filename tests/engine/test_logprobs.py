"""Logprobs of the CPU engine: those of transformers, and the same whatever else runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from headrace.runtime.cpu_engine import CpuEngine
from headrace.runtime.logprobs import Logprobs, LogprobWish, TokenLogprob
from headrace.runtime.plan import StepPlan, StepResult
from headrace.runtime.request import FinishReason, Req, SamplingParams

# Float32 through a few layers, summed in another order: what the rule of equality allows in a logprob.
TOLERANCE = 1e-4
TOP = 5
GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=1.7, top_k=30, repetition_penalty=1.3, logit_bias=((3, 4.0),), seed=11)


class Told:
    """A Drive whose retirements are listened to: every request's logprobs, by its id."""

    def __init__(self, drive: Any) -> None:
        self.drive = drive
        self.found: dict[int, list[TokenLogprob]] = {}
        retire = drive.scheduler.retire

        def listen(plan: StepPlan, result: StepResult) -> Any:
            events = retire(plan, result)
            for event in events:
                if event.logprob is not None:
                    self.found.setdefault(event.req.id, []).append(event.logprob)
            return events

        drive.scheduler.retire = listen

    def add(
        self, prompt: list[int], count: int, wish: LogprobWish | None, params: SamplingParams = GREEDY
    ) -> Req:
        drive = self.drive
        req = Req(drive.next_id, "", list(prompt), len(prompt), len(prompt) + count, params, logprobs=wish)
        drive.next_id += 1
        drive.scheduler.add(req)
        return req


def prompt_of(length: int, seed: int) -> list[int]:
    return torch.randint(0, 199, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference(model: Any, tokens: list[int]) -> torch.Tensor:
    """Row i: the log-softmax after token i."""
    with torch.no_grad():
        return model.reference(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def check_place(told: TokenLogprob, expected: torch.Tensor) -> None:
    assert told.logprob == pytest.approx(float(expected[told.token]), abs=TOLERANCE)
    assert len(told.top) == TOP
    values = [value for _, value in told.top]
    assert values == sorted(values, reverse=True)
    best = expected.topk(TOP)
    assert values == pytest.approx(best.values.tolist(), abs=TOLERANCE)
    for token, value in told.top:
        assert value == pytest.approx(float(expected[token]), abs=TOLERANCE)
        assert token != told.token or value == told.logprob, "the same token has the same bits in both places"


def check_request(model: Any, req: Req, told: list[TokenLogprob], first: int | None) -> None:
    assert [each.token for each in told] == req.tokens[req.prompt_len :]
    expected = reference(model, req.tokens)
    for index, each in enumerate(told, req.prompt_len):
        check_place(each, expected[index - 1])
    assert req.logprobs is not None
    prompt = req.logprobs.prompt
    assert len(prompt) == (0 if first is None else req.prompt_len - first)
    for place in range(len(prompt)):
        assert first is not None
        check_place(prompt.at(place, req.tokens[first + place], TOP), expected[first + place - 1])


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_those_of_transformers(
    name: str, tiny: Callable[[str], Any], start: Callable[..., CpuEngine], drive: Callable[..., Any]
) -> None:
    """Raw ones: temperature, penalties, bias and filters choose another token and change no logprob."""
    model = tiny(name)
    told = Told(drive(start(model.folder)))
    greedy = told.add(prompt_of(40, 1), 12, LogprobWish(TOP, 1))
    drawn = told.add(prompt_of(70, 2), 12, LogprobWish(TOP, 1), DRAWN)  # two chunks
    silent = told.add(prompt_of(30, 3), 12, None)
    late = told.add(prompt_of(50, 4), 12, LogprobWish(TOP, 33))
    outputs = told.add(prompt_of(20, 5), 12, LogprobWish(TOP), DRAWN)
    told.drive.finish()
    for req, first in ((greedy, 1), (drawn, 1), (late, 33), (outputs, None)):
        check_request(model, req, told.found[req.id], first)
    assert silent.id not in told.found
    for each in told.found[greedy.id]:
        assert each.logprob == each.top[0][1], "a greedy token is the best one, bit for bit"


def values_of(req: Req, told: list[TokenLogprob]) -> list[float]:
    assert req.logprobs is not None
    return [*req.logprobs.prompt.values, *(each.logprob for each in told)]


def test_the_same_whatever_runs(
    tiny: Callable[[str], Any], start: Callable[..., CpuEngine], drive: Callable[..., Any]
) -> None:
    """Alone, in chunks of any size, beside others that come and go, and with its prompt in the cache."""
    model = tiny("qwen3")
    engine = start(model.folder)
    prompt = prompt_of(90, 9)

    def run(others: int = 0, warm: bool = False, cancel: bool = False, **settings: Any) -> list[float]:
        told = Told(drive(engine, **settings))
        if warm:
            told.add(prompt, 3, None)
            told.drive.finish()
        crowd = [
            told.add(prompt_of(20 + 9 * k, 20 + k), 30, LogprobWish(k) if k % 2 else None)
            for k in range(others)
        ]
        req = told.add(prompt, 20, LogprobWish(TOP, 1))
        if cancel:
            for _ in range(4):
                told.drive.step()
            for other in crowd:
                told.drive.scheduler.cancel(other, FinishReason.CANCELLED)
        told.drive.finish()
        told.drive.scheduler.check()
        check_request(model, req, told.found[req.id], 1)
        return values_of(req, told.found[req.id])

    alone = run()
    for found in (
        run(chunk_tokens=7),
        run(chunk_tokens=64, others=5),
        run(warm=True),
        run(warm=True, others=3, chunk_tokens=16),
        run(others=4, cancel=True, chunk_tokens=33),
    ):
        assert found == pytest.approx(alone, abs=TOLERANCE)


def test_retracted_ones_tell_nothing_twice(
    tiny: Callable[[str], Any], start: Callable[..., CpuEngine], drive: Callable[..., Any]
) -> None:
    model = tiny("llama")
    told = Told(drive(start(model.folder), page_count=14, ahead_tokens=0))
    reqs = [told.add(prompt_of(40, 30 + k), 40, LogprobWish(TOP, 1)) for k in range(4)]
    told.drive.finish()
    told.drive.scheduler.check()
    assert any(req.retractions for req in reqs), "the pool was too large for this test"
    for req in reqs:
        check_request(model, req, told.found[req.id], 1)


def test_a_wish_reads_only_what_it_must(
    tiny: Callable[[str], Any], start: Callable[..., CpuEngine], drive: Callable[..., Any]
) -> None:
    """Prompt logprobs need the logits of the tokens before them: the cache serves the rest."""
    model = tiny("llama")
    told = Told(drive(start(model.folder)))
    size = told.drive.scheduler.page_size
    prompt = prompt_of(4 * size + 3, 50)
    told.add(prompt, 1, None)
    told.drive.finish()
    for first, cached in ((1, 0), (size, 0), (size + 1, size), (3 * size + 5, 3 * size), (None, 4 * size)):
        req = told.add(prompt, 2, LogprobWish(TOP, first))
        told.drive.finish()
        assert req.cached_len == cached, first
        check_request(model, req, told.found[req.id], first)


def test_columns_keep_their_places() -> None:
    wide = Logprobs(3, [-1.0, -2.0, float("-inf")], [1, 2, 3, 4, 5, 6, 7, 8, 9], [-0.5 * k for k in range(9)])
    narrow = Logprobs(2, (), (), ())
    narrow.append(wide, 1, 2)
    assert narrow.at(0, 77, 2) == TokenLogprob(77, -2.0, ((4, -1.5), (5, -2.0)))
    assert narrow.at(1, 78, 1) == TokenLogprob(78, -9999.0, ((7, -3.0),))
    assert len(narrow) == 2
