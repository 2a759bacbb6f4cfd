"""Deterministic computing: the same bits in any batch, however a prompt was cut, cached, paused or forked."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from headrace.runtime.backends.row_counts import agreeing, pieces
from headrace.runtime.backends.steady import LADDER, SteadyBackend, SteadyLinear
from headrace.runtime.config import DeviceFacts, EngineConfig, SettingError, settle_device
from headrace.runtime.logprobs import LogprobWish
from headrace.runtime.plan import StepPlan, StepResult
from headrace.runtime.request import FinishReason, ForkPoint, Req, SamplingParams

TOP = 4
LENGTHS = (1, 3, 40, 17, 70, 9)
COUNT = 8


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(199) for _ in range(length)] for length in LENGTHS]


def params_of(index: int) -> SamplingParams:
    return SamplingParams(temperature=0.0) if index % 2 else SamplingParams(temperature=1.3, seed=index)


class Bits:
    """Requests through a scheduler and an engine, with every logprob they were told."""

    def __init__(self, run: Any, count: int = COUNT) -> None:
        self.run = run
        self.count = count
        self.told: dict[int, list[Any]] = {}
        retire = run.scheduler.retire

        def listen(plan: StepPlan, result: StepResult) -> Any:
            events = retire(plan, result)
            for event in events:
                if event.logprob is not None:
                    self.told.setdefault(event.req.id, []).append(event.logprob)
            return events

        run.scheduler.retire = listen

    def add(self, prompt: list[int], params: SamplingParams, fork: ForkPoint | None = None) -> Req:
        run = self.run
        req = Req(
            run.next_id,
            "",
            list(prompt),
            len(prompt),
            len(prompt) + self.count if fork is None else fork.parent.max_len,
            params,
            logprobs=LogprobWish(TOP, None),
            fork=fork,
        )
        run.next_id += 1
        run.scheduler.add(req)
        return req

    def of(self, req: Req) -> tuple[list[int], list[Any]]:
        return req.tokens[req.prompt_len :], self.told[req.id]


def alone(start: Any, drive: Any, folder: Any, **settings: Any) -> list[tuple[list[int], list[Any]]]:
    """Each request by itself, nothing cached, every prompt in as few chunks as may be."""
    engine = start(folder, deterministic=True, **settings)
    found = []
    for index, prompt in enumerate(prompts()):
        bits = Bits(drive(engine, prefix_cache=False))
        req = bits.add(prompt, params_of(index))
        bits.run.finish()
        found.append(bits.of(req))
    return found


@pytest.mark.parametrize(
    ("name", "dtype", "chunk", "threads"),
    [
        ("llama", "bfloat16", 7, 1),
        ("llama-biased", "float32", 64, 1),
        ("mistral", "bfloat16", 1, 1),
        ("qwen3", "bfloat16", 7, 2),
        ("qwen3", "float32", 7, 1),
        ("mixtral", "bfloat16", 64, 1),
        ("phi3", "bfloat16", 7, 1),
        ("gemma2", "bfloat16", 7, 1),
    ],
)
def test_the_same_bits_whatever_else_runs(
    tiny: Any, start: Any, drive: Any, name: str, dtype: str, chunk: int, threads: int
) -> None:
    folder = tiny(name).folder
    # Another number of threads may give other bits, so what runs with two is compared with two.
    expected = alone(start, drive, folder, dtype=dtype, threads=threads)
    engine = start(folder, deterministic=True, dtype=dtype, chunk_tokens=chunk, threads=threads)
    bits = Bits(drive(engine))
    for repeat in range(2):  # the second time out of the prefix cache
        reqs = [bits.add(prompt, params_of(index)) for index, prompt in enumerate(prompts())]
        gone = [bits.add(prompt[::-1], params_of(0)) for prompt in prompts()[:3]]
        for number in range(9):
            bits.run.step()
            if number % 3 == 2:
                bits.run.cancel(gone[number // 3])
            if number == 4:
                bits.run.scheduler.pause(reqs[2])
            if number == 7:
                bits.run.scheduler.resume(reqs[2])
        bits.run.finish()
        assert [bits.of(req) for req in reqs] == expected, f"repeat {repeat}"


def test_the_same_bits_after_giving_up_pages(tiny: Any, start: Any, drive: Any) -> None:
    engine = start(tiny("qwen3").folder, deterministic=True, dtype="bfloat16")
    crowd = [[(index * 5 + at * at) % 199 for at in range(40)] for index in range(4)]
    expected = []
    for index, prompt in enumerate(crowd):
        bits = Bits(drive(engine, prefix_cache=False), 40)
        req = bits.add(prompt, params_of(index))
        bits.run.finish()
        expected.append(bits.of(req))
    bits = Bits(drive(engine, page_count=14, ahead_tokens=0), 40)
    reqs = [bits.add(prompt, params_of(index)) for index, prompt in enumerate(crowd)]
    bits.run.finish()
    assert any(req.retractions for req in reqs), "the pool was too large to show anything"
    assert [bits.of(req) for req in reqs] == expected


def test_a_fork_goes_on_with_the_same_bits(tiny: Any, start: Any, drive: Any) -> None:
    folder = tiny("qwen3").folder
    bits = Bits(drive(start(folder, deterministic=True, dtype="bfloat16")))
    parent = bits.add(prompts()[2], params_of(2))
    while len(parent.tokens) < 45:
        bits.run.step()
    twin = bits.add(parent.tokens[:44], params_of(2), ForkPoint(parent, 44))
    bits.run.finish()
    assert twin.tokens == parent.tokens
    assert bits.told[twin.id] == bits.told[parent.id][4:]


def test_a_long_context_of_several_blocks(tiny: Any, start: Any, drive: Any) -> None:
    """Chunks end inside of key blocks and at their edges; a window hides whole blocks."""
    for name in ("llama", "mistral"):
        prompt = [index * 7 % 199 for index in range(490)]
        told = []
        for chunk in (512, 61):
            engine = start(tiny(name).folder, deterministic=True, dtype="bfloat16", chunk_tokens=chunk)
            bits = Bits(drive(engine))
            others = [bits.add(prompt[at:], params_of(1)) for at in (300, 100)] if chunk == 61 else []
            req = bits.add(prompt, params_of(0))
            bits.run.finish()
            told.append(bits.of(req))
            assert len(others) in (0, 2)
        assert told[0] == told[1]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_the_answers_are_those_of_transformers(tiny: Any, start: Any, drive: Any, name: str) -> None:
    model = tiny(name)
    samples = model.oracle(2)
    run = drive(start(model.folder, deterministic=True))
    reqs = [run.add(sample.prompt, len(sample.answer)) for sample in samples]
    run.finish()
    for req, sample in zip(reqs, samples, strict=True):
        assert req.finish is FinishReason.LENGTH
        assert req.tokens[req.prompt_len :] == sample.answer


def moody(counts: set[int]) -> Callable[[Tensor], Tensor]:
    """Rows doubled; at row counts of `counts` a little more than that."""

    def compute(x: Tensor) -> Tensor:
        return x * (2.0 + 1e-6) if len(x) in counts else x * 2.0

    return compute


def test_row_counts_that_give_other_bits_are_not_used() -> None:
    draws = [torch.randn((max(LADDER), 8), generator=torch.Generator().manual_seed(1))]
    assert agreeing(LADDER, moody(set()), draws) == tuple(sorted(LADDER))
    assert agreeing(LADDER, moody({1, 64}), draws) == (2, 4, 8, 16, 32, 128)

    def by_place(x: Tensor) -> Tensor:
        found = x * 2.0
        if len(x) == 32:
            found[-1] = found[-1] * (1.0 + 1e-6)
        return found

    assert 32 not in agreeing(LADDER, by_place, draws)
    with pytest.raises(AssertionError, match="place of a row"):
        agreeing((16, 32), lambda x: x + torch.arange(len(x))[:, None], draws)


def test_a_product_only_runs_at_agreed_row_counts() -> None:
    seen: list[int] = []

    def linear(x: Tensor, residual: Tensor | None = None) -> Tensor:
        seen.append(len(x))
        return x if residual is None else x + residual

    steady = SteadyLinear(linear, (2, 8, 16), 1)
    x = torch.randn(43, 4)
    assert torch.equal(steady(x, x), x + x)
    assert seen == [16, 16, 16]
    seen.clear()
    assert torch.equal(steady(x[:1]), x[:1]) and torch.equal(steady(x[:18]), x[:18])
    assert seen == [2, 16, 2]
    for rows in range(1, 80):
        covered = [place for begin, end, _ in pieces(rows, (2, 8, 16)) for place in range(begin, end)]
        assert covered == list(range(rows))


def test_a_plan_of_computing_names_what_decides_bits() -> None:
    backend = SteadyBackend(1, torch.float32, 4, 2, 16)
    try:
        backend.submit(lambda: backend.linear(torch.randn(24, 16), None)).result()
        assert backend.plan["rows"][0][:3] == [24, 16, "float32"]  # type: ignore[index]
        assert backend.plan["torch"] == torch.__version__ and backend.plan["threads"] == 1
    finally:
        backend.close()


def test_a_gpu_does_not_promise_it() -> None:
    facts = DeviceFacts(
        free_memory=1 << 34, total_memory=1 << 34, weight_elements=1, kv_token_elements=1, max_positions=64
    )
    with pytest.raises(SettingError, match="deterministic"):
        settle_device(EngineConfig(deterministic=True), facts)
