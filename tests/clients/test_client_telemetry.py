"""What the Python client makes of telemetry, with a live server: the sums, and the server's own counts (M8)."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from bisect import bisect_left
from collections.abc import Iterator

import pytest
from live_server import LiveServer

from headrace.clients.client import connect
from headrace.clients.errors import ServerRefused
from headrace.clients.stream import ResponseStream

CALM = {"open_timeout": 120.0, "reconnect_within": 120.0}
SUMS = ("queue_ms", "prefill_ms", "steps_ms", "waited_ms", "send_lag_ms")


def us(milliseconds: float) -> int:
    return round(milliseconds * 1000)


@pytest.fixture
def live() -> Iterator[LiveServer]:
    server = LiveServer()
    yield server
    server.stop()


@pytest.fixture
def gated() -> Iterator[LiveServer]:
    server = LiveServer(gated=True)
    yield server
    server.stop()


def check_exact(stream: ResponseStream) -> None:
    """All that was waited and all steps, and the way to the reader, are the whole time."""
    timeline, found = stream.timeline, stream.timeline.summary
    assert found is not None and stream.usage is not None
    assert us(found.total_ms) == sum(us(getattr(found, name)) for name in SUMS)
    spent = sum(us(step.queue_ms) + us(step.step_ms) for step in timeline.steps)
    assert spent + us(found.send_lag_ms) == us(found.total_ms)
    tokens = [step.token_index for step in timeline.steps if step.token_index is not None]
    assert tokens == list(range(stream.usage.output_tokens))


async def test_events_and_metrics_count_the_same_steps(live: LiveServer) -> None:
    captured = frozenset({1, 2, 4})
    live.ask(lambda app: setattr(app.engine, "captured", captured))
    async with connect(live.url, **CALM) as client:
        before = time.monotonic()
        streams = await asyncio.gather(
            *(
                client.respond("x" * size, max_output_tokens=20 + size, telemetry="step")
                for size in (3, 90, 300)
            )
        )
        await asyncio.gather(*(stream.response() for stream in streams))
        wall = (time.monotonic() - before) * 1000
    steps = {}
    for stream in streams:
        check_exact(stream)
        assert stream.timeline.summary is not None and 0 < stream.timeline.summary.total_ms <= wall
        assert stream.timeline.prefill[-1].done == stream.timeline.prefill[-1].total
        for step in stream.timeline.steps:
            assert steps.setdefault(step.step_id, step).step_ms == step.step_ms, "one step, one time"
    bounds, counts = live.ask(lambda app: (app.metrics.step.bounds, list(app.metrics.step.counts)))
    told = [0] * len(counts)
    for step in steps.values():
        told[bisect_left(bounds, us(step.step_ms) / 1e6)] += 1
    assert sum(told) == sum(counts), "nobody else was there, so every step was told"
    # A step is told in whole microseconds: one beside a bound may be counted on its other side.
    beside = sum(min(abs(us(step.step_ms) - bound * 1e6) for bound in bounds) <= 1 for step in steps.values())
    assert sum(abs(one - other) for one, other in zip(told, counts, strict=True)) <= 2 * beside
    hits = sum(step.graph == "hit" for step in steps.values())
    stats = live.ask(lambda app: app.runtime.stats())
    assert hits == live.ask(lambda app: app.engine.replays) == stats["graph_replays"] > 0
    assert len(steps) - hits == stats["eager_steps"] > 0
    text = live.ask(lambda app: app.metrics.text().decode())
    assert f"headrace_graph_replays_total {float(hits)}" in text


async def test_a_lost_connection_tells_no_step_twice_and_costs_no_sum(gated: LiveServer) -> None:
    async with connect(gated.url, **CALM) as client:
        asked = asyncio.create_task(client.respond("a long one", max_output_tokens=400, telemetry="step"))
        while not asked.done():
            await asyncio.to_thread(gated.land)
        stream = await asked
        while len(stream.timeline.steps) < 5:
            await asyncio.to_thread(gated.land)
        assert client._link is not None
        client._link._socket.transport.abort()
        await asyncio.to_thread(gated.until, lambda app: app.held.resumes == 1)
        gated.open_gate()
        assert len((await stream.response()).output[0].content[0].text) == 400
    assert stream.resumes == 1
    tokens = [step.token_index for step in stream.timeline.steps if step.token_index is not None]
    assert tokens == sorted(set(tokens)) and tokens[-1] == 399, "no step twice"
    found = stream.timeline.summary
    assert found is not None and found.steps == 399
    assert us(found.total_ms) == sum(us(getattr(found, name)) for name in SUMS)


async def test_a_quiet_answer_has_an_empty_timeline_and_a_wrong_wish_is_refused(live: LiveServer) -> None:
    async with connect(live.url, **CALM) as client:
        stream = await client.respond("hello", max_output_tokens=4)
        await stream.response()
        assert not stream.timeline.steps and stream.timeline.summary is None
        summed = await client.respond("hello", max_output_tokens=4, telemetry="response")
        await summed.response()
        assert not summed.timeline.steps and summed.timeline.summary is not None
        with pytest.raises(ServerRefused) as refused:
            await client.respond("hello", telemetry="everything")
        assert (refused.value.code, refused.value.param) == ("invalid_value", "x_telemetry")


async def test_the_way_of_a_first_token_through_the_host_is_in_the_metrics(live: LiveServer) -> None:
    def chat() -> None:
        body = {"model": "default", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
        request = urllib.request.Request(
            live.url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as reply:
            assert reply.status == 200

    await asyncio.to_thread(chat)
    async with connect(live.url, **CALM) as client:
        first = await client.respond("hello", max_output_tokens=2)
        await first.response()
    parts = ("parse", "prepare", "launch_wait", "queue")
    counts, sums = live.ask(
        lambda app: (
            [sum(getattr(app.metrics, part).counts) for part in parts],
            [getattr(app.metrics, part).sum for part in parts],
        )
    )
    assert counts == [2, 2, 2, 2] and min(sums) > 0
    assert sums[1] + sums[2] == pytest.approx(sums[3]), "preparing and waiting are the time in the queue"
    assert live.ask(lambda app: app.metrics.read_at) == 0.0
    assert "headrace_request_parse_seconds_bucket" in live.ask(lambda app: app.metrics.text().decode())
