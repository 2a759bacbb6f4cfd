"""Other parameters for an answer that runs: in force within the steps in flight, at a token that is named (M10)."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import Any

import pytest
from face_bench import FaceBench, Socket
from face_said import finals, text
from fake_engine import replay
from fake_prompter import letters

from headrace.runtime.plan import StepPlan, StepResult
from headrace.runtime.request import SamplingParams


def flavour(params: SamplingParams) -> int:
    """What the fake model makes of sampling parameters: another seed."""
    return params.seed + 1000 * round(params.temperature * 100) + round(params.presence_penalty * 10)


def flavoured(bench: FaceBench) -> None:
    """From now on the answer depends on temperature and presence penalty too."""
    run = bench.engine.memory.run

    def tempered(plan: StepPlan) -> StepResult:
        grants = tuple(
            dataclasses.replace(grant, params=dataclasses.replace(grant.params, seed=flavour(grant.params)))
            for grant in plan.grants
        )
        return run(dataclasses.replace(plan, grants=grants))

    bench.engine.memory.run = tempered  # type: ignore[method-assign]


def said(prompt: list[int], count: int, **params: Any) -> list[int]:
    seed = flavour(SamplingParams(seed=1, **params))
    return replay(prompt, count, SamplingParams(seed=seed), 256, letters)


def of(socket: Socket, kind: str) -> list[dict[str, Any]]:
    return [event for event in socket.said if event["type"] == kind]


def id_of(socket: Socket) -> str:
    return str(of(socket, "response.created")[0]["response"]["id"])


async def step(bench: FaceBench) -> None:
    bench.engine.land(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.flush()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("seed", range(6))
async def test_a_change_at_a_random_token_is_told_and_the_text_turns_just_there(
    seed: int, depth: int
) -> None:
    rng = random.Random(seed)
    bench = FaceBench(gated=True)
    bench.engine.depth = depth
    flavoured(bench)
    socket = bench.socket()
    socket.create("q" * rng.choice((3, 200)), max_output_tokens=60, stream_id="a")
    other = bench.socket()
    other.create("another", max_output_tokens=60)
    await bench.until(lambda: bool(of(socket, "response.output_text.delta")))
    for _ in range(rng.randrange(20)):
        await step(bench)
    (stream,) = (
        stream for stream in bench.runtime._generations if stream.prompt_tokens == len(bench.prompts[0])
    )
    head, flight = stream.head, bench.loop.flight
    change = {"temperature": 0.3, "presence_penalty": rng.choice((0.0, 1.5))}
    socket.send({"type": "x.update", "event_id": "e", "response_id": id_of(socket), **change})
    await socket.until_over()
    await other.until_over()
    (updated,) = of(socket, "x.updated")
    at = updated.pop("effective_at_token")
    assert updated == {
        "type": "x.updated", "response_id": id_of(socket), "event_id": "e", "stream_id": "a",
    }  # fmt: skip
    assert head <= at <= head + flight <= head + 2, "within two steps"
    prompt = bench.prompts[0]
    before = said(prompt, at)
    after = said(prompt + before, 60 - at, **change)
    final = finals(socket)[0]
    assert text(final) == bytes(before + after).decode()
    assert final["temperature"] == 0.3, "the response says what it ended with"
    assert text(finals(other)[0]) == bytes(said(bench.prompts[1], 60)).decode(), "nobody else notices"
    assert bench.scheduler.counters.prefill_tokens_computed == sum(map(len, bench.prompts)), "nothing again"
    assert bench.scheduler.counters.decode_tokens_computed == 120
    for each in (socket, other):
        each.drop()
    await bench.baseline()


async def test_an_answer_can_be_made_shorter_longer_and_no_longer_than_fits() -> None:
    for limit, count in ((30, 30), (80, 80), (1, None), (1 << 30, 4096)):
        bench = FaceBench(gated=True, page_count=16 if limit > 80 else 256)
        socket = bench.socket()
        socket.create("q", max_output_tokens=50)
        await bench.until(lambda s=socket: len(of(s, "response.output_text.delta")) >= 10)  # type: ignore[misc]
        socket.send({"type": "x.update", "response_id": id_of(socket), "max_output_tokens": limit})
        await socket.until_over()
        (updated,) = of(socket, "x.updated")
        if count is None:
            count = updated["effective_at_token"] + 1
        elif limit > 80:
            count = bench.runtime.max_context - len(bench.prompts[0])
        final = finals(socket)[0]
        assert (final["status"], final["usage"]["output_tokens"]) == ("incomplete", count)
        socket.drop()
        await bench.baseline()


async def test_two_changes_at_once_are_one_change_told_twice() -> None:
    bench = FaceBench(gated=True)
    flavoured(bench)
    socket = bench.socket()
    socket.create("q", max_output_tokens=40)
    await bench.until(lambda: bool(of(socket, "response.output_text.delta")))
    for change in ({"temperature": 0.3}, {"presence_penalty": 1.0}):
        socket.send({"type": "x.update", "response_id": id_of(socket), **change})
    await socket.until_over()
    first, second = of(socket, "x.updated")
    at = first["effective_at_token"]
    assert at == second["effective_at_token"]
    before = said(bench.prompts[0], at)
    both = said(bench.prompts[0] + before, 40 - at, temperature=0.3, presence_penalty=1.0)
    assert text(finals(socket)[0]) == bytes(before + both).decode()


async def test_a_change_that_comes_too_late_is_an_x_error() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("q", max_output_tokens=5)
    await bench.until(lambda: len(of(socket, "response.output_text.delta")) == 4)
    socket.send({"type": "x.update", "event_id": "e", "response_id": id_of(socket), "temperature": 0.1})
    await socket.until_over()
    (error,) = of(socket, "x.error")
    assert error["error"]["code"] == "response_not_found" and error["event_id"] == "e"
    socket.send({"type": "x.update", "event_id": "f", "response_id": id_of(socket), "temperature": 0.1})
    bench.flush()
    assert of(socket, "x.error")[1]["error"]["code"] == "response_not_found"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"logit_bias": {"256": 1}}, "invalid_value", "logit_bias"),
        ({"stop": "x"}, "unknown_parameter", "stop"),
        ({"end_thinking": True}, "unknown_parameter", "end_thinking"),
        ({}, "missing_required_parameter", None),
        ({"response_id": "resp_other", "temperature": 1}, "response_not_found", "response_id"),
    ],
)
async def test_a_change_that_cannot_be_changes_nothing(change: dict[str, Any], code: str, param: str) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("q", max_output_tokens=30)
    await bench.until(lambda: bool(of(socket, "response.output_text.delta")))
    socket.send({"type": "x.update", "response_id": id_of(socket), **change})
    await socket.until_over()
    (error,) = of(socket, "x.error")
    assert (error["error"]["code"], error["error"]["param"]) == (code, param)
    assert not of(socket, "x.updated")
    assert bytes(replay(bench.prompts[0], 30, SamplingParams(seed=1), 256, letters)).decode() == text(
        finals(socket)[0]
    )
    socket.drop()
    await bench.baseline()
