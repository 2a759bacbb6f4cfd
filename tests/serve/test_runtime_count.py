"""Runtime.count and asks that fit: how many tokens a prompt has, and answers that end where the context ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from face_bench import FaceBench

from headrace.runtime import text_work
from headrace.runtime.interface import Ask, FinishReason, Message
from headrace.runtime.refusal import Refusal


async def counted(bench: FaceBench, ask: Ask) -> int | Refusal:
    told: asyncio.Future[int | Refusal] = asyncio.get_running_loop().create_future()
    bench.runtime.count(ask, told.set_result)
    assert not told.done(), "never from inside the call"
    return await told


async def test_messages_and_prompts_are_counted() -> None:
    bench = FaceBench()
    assert await counted(bench, Ask(prompt="hello")) == 5
    assert await counted(bench, Ask(prompt=(1, 2, 3))) == 3
    assert await counted(bench, Ask(messages=(Message("user", "x"),))) == len("user: x\nassistant: ")
    assert not bench.engine.plans
    await bench.baseline()


async def test_what_is_wrong_with_a_prompt_is_told() -> None:
    bench = FaceBench()
    refusal = await counted(bench, Ask(prompt=(999,), param_names={"prompt": "input"}))
    assert isinstance(refusal, Refusal) and (refusal.code, refusal.param) == ("invalid_value", "input")


async def test_nothing_is_counted_before_ready_and_while_stopping() -> None:
    bench = FaceBench()
    for name, value in (("ready", False), ("draining", True)):
        setattr(bench.runtime, name, value)
        with pytest.raises(Refusal) as caught:
            bench.runtime.count(Ask(prompt="x"), lambda count: None)
        assert caught.value.code == "server_is_overloaded" and caught.value.retry_after
        bench.runtime.ready = True


async def test_text_that_waits_is_bounded_together_with_that_of_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = FaceBench()
    monkeypatch.setattr(text_work, "LIMIT", 100)
    loop = asyncio.get_running_loop()
    futures: list[Any] = [loop.create_future() for _ in range(3)]
    bench.runtime.count(Ask(prompt="x" * 99), futures[0].set_result)
    with pytest.raises(Refusal) as caught:
        bench.runtime.count(Ask(prompt="xx"), futures[1].set_result)
    assert caught.value.code == "server_is_overloaded"
    bench.runtime.count(Ask(prompt="x"), futures[2].set_result)
    assert [await futures[0], await futures[2]] == [99, 1]
    assert bench.runtime._text.waiting == 0, "given back"


@pytest.mark.parametrize("limit", [1, 10, 58, 59, 60, 10_000])
async def test_an_ask_that_fits_ends_where_the_context_ends(limit: int) -> None:
    bench = FaceBench(page_count=4)
    room = bench.runtime.max_context - len("hello")
    stream = bench.runtime.open(Ask(prompt="hello", max_tokens=limit, fit=True), lambda stream: None)
    await bench.until(lambda: stream.finish is not None)
    assert stream.finish is FinishReason.LENGTH and stream.head == min(limit, room)
    strict = bench.runtime.open(Ask(prompt="hello", max_tokens=limit), lambda stream: None)
    await bench.until(lambda: strict.finish is not None)
    assert (strict.finish is FinishReason.ERROR) is (limit > room)
    await bench.baseline()
