"""The GPU engine against transformers: greedy tokens in float32, however requests are run together."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_rig import answer_of

from headrace.runtime.device_engine import DeviceEngine

ON_GPU = torch.cuda.is_available()
# Head sizes that a GPU takes: powers of two.
VARIANTS = ("llama-biased", "llama-3.1", "mistral-full", "qwen2-sliding", "qwen3", "qwen3-sliding")
if ON_GPU:  # where they take no time; without one they differ from those above in nothing that a kernel does
    VARIANTS += ("llama-linear", "llama-yarn", "qwen2")
PROMPTS = 16 if ON_GPU else 3
TOKENS = 64 if ON_GPU else 6


def settle(run: Any) -> None:
    """Step until nothing is left, asking the engine for what has landed before each retirement."""
    while True:
        plan = run.scheduler.plan()
        if plan is not None:
            run.flight.append((plan, run.engine.launch(plan)))
        if run.flight and (plan is None or len(run.flight) > 1):
            landed, result = run.flight.pop(0)
            while not result.done():
                run.engine.poll()
            run.scheduler.retire(landed, result.result())
            run.scheduler.check()
        if not run.flight and run.scheduler.idle:
            return


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_answers(
    name: str,
    tiny: Callable[[str], Any],
    device_engine: Callable[..., DeviceEngine],
    drive: Callable[..., Any],
) -> None:
    model = tiny(name)
    samples = model.oracle(PROMPTS)
    run = drive(device_engine(model.folder))
    run.engine.warm(budget=60.0 if ON_GPU else 0.0)
    reqs = [run.add(sample.prompt, TOKENS) for sample in samples]
    settle(run)
    assert [answer_of(req) for req in reqs] == [sample.answer[:TOKENS] for sample in samples]


def test_chunks_and_prefix_hits(tiny: Any, device_engine: Any, drive: Any) -> None:
    model = tiny("qwen3")
    samples = model.oracle(max(PROMPTS, 5))[3:]  # longer than a page
    engine = device_engine(model.folder)
    for chunk in (7, 64):
        run = drive(engine, chunk_tokens=chunk)
        for _ in range(2):
            reqs = [run.add(sample.prompt, TOKENS) for sample in samples]
            settle(run)
            assert [answer_of(req) for req in reqs] == [sample.answer[:TOKENS] for sample in samples]
        assert run.scheduler.counters.cached_tokens > 0


def test_cancelled_neighbours_change_nothing(tiny: Any, device_engine: Any, drive: Any) -> None:
    model = tiny("llama-3.1")
    samples = model.oracle(PROMPTS)
    rng = random.Random(3)
    run = drive(device_engine(model.folder))
    others = [run.add([rng.randrange(199) for _ in range(rng.randint(1, 40))], 40) for _ in range(4)]
    reqs = [run.add(sample.prompt, TOKENS) for sample in samples]
    while others:
        plan = run.scheduler.plan()
        assert plan is not None
        future = run.engine.launch(plan)
        run.cancel(others.pop())
        while not future.done():
            run.engine.poll()
        run.scheduler.retire(plan, future.result())
    settle(run)
    assert [answer_of(req) for req in reqs] == [sample.answer[:TOKENS] for sample in samples]


def test_a_head_size_that_only_the_cpu_takes(tiny: Any, device_engine: Any) -> None:
    from headrace.runtime.config import SettingError

    with pytest.raises(SettingError, match="power of two"):
        device_engine(tiny("llama").folder)
