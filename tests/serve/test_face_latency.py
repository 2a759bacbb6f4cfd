"""Classes, targets and early refusals, as clients say them and are told of them (M7)."""

from __future__ import annotations

import math
from typing import Any

import pytest
from face_bench import BOB, FaceBench, Socket
from face_said import finals
from fake_engine import replay
from fake_prompter import letters

from headrace.runtime.interface import Rank, Targets
from headrace.runtime.pace import Pace
from headrace.runtime.request import SamplingParams
from headrace.server.faces.latency import Wish, targets_of, tier_of
from headrace.server.metrics import Metrics
from headrace.server.protocol.latency import Latency


def bench_with_pace(**sizes: Any) -> FaceBench:
    """A device that takes 10 ms for decode rows and 1 ms a prompt token, known to be so."""
    bench = FaceBench(gated=True, virtual=True, **sizes)
    pace = Pace((16, 32, 64), 1e-3, math.inf)
    for rows in (1, 2, 4, 8, 16):
        pace.observe(rows, 0, 0.0, 0.010)
    for _ in range(20):
        for tokens in (16, 64):
            pace.observe(0, tokens, tokens * tokens / 2, 1e-3 * tokens)
    bench.loop.foresight.pace = pace
    return bench


@pytest.mark.parametrize(
    ("latency", "tier", "priority", "rank", "echo"),
    [
        (None, None, None, Rank.STANDARD, None),
        (None, None, -3, Rank.INTERACTIVE, None),
        (None, None, 7, Rank.BATCH, None),
        (None, "auto", 7, Rank.BATCH, "flex"),
        (None, "default", 7, Rank.STANDARD, "default"),
        (None, "scale", None, Rank.STANDARD, "default"),
        (None, "priority", 7, Rank.INTERACTIVE, "priority"),
        (None, "fast", None, Rank.INTERACTIVE, "fast"),
        (None, "ultrafast", None, Rank.INTERACTIVE, "ultrafast"),
        (None, "flex", None, Rank.BATCH, "flex"),
        (Latency(class_="batch"), "priority", -1, Rank.BATCH, "flex"),
        (Latency(class_="interactive"), None, None, Rank.INTERACTIVE, "priority"),
        (Latency(ttft_ms=5.0), "flex", None, Rank.BATCH, "flex"),
    ],
)
def test_the_class_and_the_tier_that_is_echoed(
    latency: Latency | None, tier: str | None, priority: int | None, rank: Rank, echo: str | None
) -> None:
    wish = Wish(latency, tier, priority)
    assert targets_of(wish).rank is rank and tier_of(wish) == echo


async def test_targets_reach_the_core_from_every_endpoint() -> None:
    bench = FaceBench()
    wanted = {"ttft_ms": 1500, "itl_ms": 50.5, "deadline_ms": 60000, "class": "batch"}
    targets = Targets(Rank.BATCH, 1.5, 0.0505, 60.0)
    socket = bench.socket()
    socket.create(x_latency=wanted)
    await socket.until_over()
    assert finals(socket)[0]["service_tier"] == "flex"
    await bench.fetch(
        "/v1/responses", {"model": "fake", "input": "a", "x_latency": wanted, "max_output_tokens": 2}
    ).done()
    await bench.chat(x_latency=wanted, max_tokens=2).done()
    body = {"model": "fake", "prompt": "a", "max_tokens": 2, "x_latency": wanted}
    await bench.fetch("/v1/completions", body).done()
    body = {"text": "a", "sampling_params": {"max_new_tokens": 2}, "x_latency": wanted}
    await bench.fetch("/generate", body).done()
    assert [ask.targets for ask in bench.asks] == [targets] * 5
    await bench.fetch(
        "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 2}, "priority": 5}
    ).done()
    assert bench.asks[-1].targets.rank is Rank.INTERACTIVE, "there higher ones go first"


@pytest.mark.parametrize(
    "bad",
    [
        {"ttft_ms": 0},
        {"itl_ms": -1},
        {"deadline_ms": 1e12},
        {"class": "fast"},
        {"tpot_ms": 3},
        [],
        "soon",
        {"ttft_ms": "1"},
    ],
)
async def test_malformed_targets_are_refused_by_name(bad: Any) -> None:
    socket = FaceBench().socket()
    socket.create(x_latency=bad)
    await socket.until_over()
    (error,) = socket.said
    assert error["type"] == "error" and error["status"] == 400
    assert error["error"]["param"].startswith("x_latency")


async def test_what_cannot_be_kept_is_refused_at_once_with_a_time() -> None:
    bench = bench_with_pace()
    socket = bench.socket()
    socket.create("x" * 200, stream_id="a", x_latency={"ttft_ms": 100})
    await socket.until_over()
    (error,) = socket.said
    assert error["status"] == 429 and error["stream_id"] == "a"
    assert error["error"]["code"] == "rate_limit_exceeded" and error["error"]["param"] == "x_latency"
    assert "ttft_ms" in error["error"]["message"] and " ms" in error["error"]["message"]
    assert int(error["error"]["headers"]["retry-after-ms"]) > 0
    fetch = await bench.chat("x" * 200, max_tokens=3, x_latency={"deadline_ms": 150}).done()
    assert fetch.status == 429 and int(fetch.headers["retry-after"]) >= 1
    assert "deadline_ms" in fetch.error["message"]
    fetch = await bench.chat("hello", x_latency={"itl_ms": 5}).done()
    assert fetch.status == 429 and "itl" not in fetch.error["param"] and "5 ms" in fetch.error["message"]
    assert not bench.scheduler.waiting and not bench.scheduler.running
    stats = bench.runtime.class_stats()
    assert stats["early_refusals"] == {"interactive": 0, "standard": 3, "batch": 0}


async def test_what_was_promised_is_counted_as_met_or_missed() -> None:
    bench = bench_with_pace()
    socket = bench.socket()
    socket.create("hello", stream_id="a", x_latency={"ttft_ms": 5000}, service_tier="fast")
    await bench.until(lambda: bool(bench.scheduler.running))
    bench.clock.advance(1.0)
    await finish(bench, socket, 1)
    socket.create("hello", stream_id="b", x_latency={"ttft_ms": 5000})
    await bench.until(lambda: bool(bench.scheduler.running))
    bench.clock.advance(9.0)
    await finish(bench, socket, 2)
    stats = bench.runtime.class_stats()
    assert stats["targets_met"]["interactive"] == 1 and stats["targets_missed"]["standard"] == 1
    metrics = Metrics()
    metrics.by_class = bench.runtime.class_stats
    text = metrics.text().decode()
    assert 'headrace_targets_met_total{class="interactive"} 1.0' in text
    assert 'headrace_queue_length{class="batch"} 0.0' in text


async def finish(bench: FaceBench, socket: Socket, count: int) -> None:
    def over() -> bool:
        bench.engine.land()
        return sum(event["type"] in ("response.incomplete", "error") for event in socket.said) >= count

    await bench.until(over)


async def test_an_interactive_answer_takes_the_slot_of_a_batch_one_which_loses_nothing() -> None:
    bench = FaceBench(gated=True, slots=1)
    socket = bench.socket()
    socket.create("batch work", stream_id="low", service_tier="flex", max_output_tokens=40)
    await bench.until(lambda: bool(bench.scheduler.running))
    for _ in range(10):
        bench.engine.land(1)
        await bench.until(lambda: bool(bench.engine.held))
    socket.create("a person", stream_id="high", service_tier="priority", max_output_tokens=5)
    await finish(bench, socket, 2)
    ends = [event["stream_id"] for event in socket.said if event["type"] == "response.incomplete"]
    assert ends == ["high", "low"]
    assert bench.scheduler.counters.yields == 1 and bench.scheduler.counters.retractions == 0
    for lane, prompt, count in (("low", bench.prompts[0], 40), ("high", bench.prompts[1], 5)):
        told = "".join(
            e["delta"] for e in socket.said if e["type"].endswith("text.delta") and e["stream_id"] == lane
        )
        assert told == bytes(replay(prompt, count, SamplingParams(seed=1), 256, letters)).decode()
    assert bench.scheduler.counters.prefill_tokens_computed == sum(map(len, bench.prompts)), (
        "nothing is read twice"
    )


async def test_the_first_request_of_another_key_passes_a_long_line() -> None:
    bench = FaceBench(gated=True, slots=2, waiting_limit=1000)
    alice = [bench.socket() for _ in range(4)]
    for socket in alice:
        for lane in range(16):
            socket.create(f"a{lane}", stream_id=f"l{lane}", max_output_tokens=20)
    await bench.until(lambda: len(bench.prompts) == 64)
    bob = bench.socket(BOB)
    bob.create("bob", max_output_tokens=20)
    await bench.until(lambda: len(bench.prompts) == 65)
    await finish(bench, bob, 1)
    done = sum(len(finals(socket)) for socket in alice)
    assert done <= 4, f"{done} answers of the other key came first"
