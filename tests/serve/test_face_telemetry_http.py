"""Telemetry over HTTP (M8): the same events in a stream of Responses, and the summary where a reply ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import FaceBench, Fetch

SUMS = ("queue_ms", "prefill_ms", "steps_ms", "waited_ms", "send_lag_ms")


def us(milliseconds: float) -> int:
    return round(milliseconds * 1000)


def events(fetch: Fetch) -> list[dict[str, Any]]:
    """Every event of a stream, each under its own name."""
    found = []
    for block in fetch.body.decode().split("\n\n")[:-2]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


async def stepped(bench: FaceBench, fetch: Fetch, seconds: float = 0.01) -> Fetch:
    def over() -> bool:
        bench.clock.advance(seconds)
        return fetch.over

    await bench.until(over)
    return fetch


def exact(found: dict[str, Any]) -> dict[str, Any]:
    assert us(found["total_ms"]) == sum(us(found[name]) for name in SUMS) > 0
    return found


async def test_a_stream_of_responses_has_the_same_events_as_a_socket() -> None:
    bench = FaceBench(gated=True, virtual=True)
    fetch = await stepped(bench, bench.respond("x" * 100, stream=True, x_telemetry="step"))
    said = events(fetch)
    kinds = [event["type"] for event in said]
    steps = [event for event in said if event["type"] == "x.step"]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("x.prefill.progress") == 3, "as it begins, and after each of two chunks"
    run = said[-1]["response"]
    assert all(row["response_id"] == run["id"] for step in steps for row in step["streams"])
    assert [row.get("token_index") for step in steps for row in step["streams"]] == [None, 0, 1, 2, 3, 4]
    numbers = [event["sequence_number"] for event in said if "sequence_number" in event]
    assert numbers == list(range(len(said) - len(steps) - 3)), "events of ours have no number"
    found = exact(json.loads(run["metadata"]["x_telemetry"]))
    spent = sum(us(step["step_ms"]) + us(step["streams"][0]["queue_ms"]) for step in steps)
    assert spent + us(found["send_lag_ms"]) == us(found["total_ms"])
    await bench.baseline()


async def test_a_response_that_is_over_at_once_begins_before_its_step() -> None:
    bench = FaceBench(virtual=True)
    fetch = bench.respond(stream=True, x_telemetry="step", max_output_tokens=1)
    fetch.wire.reading = False
    await bench.until(lambda: bench.scheduler.counters.steps == 1 and not bench.loop.live)
    fetch.wire.reading = True
    await fetch.done()
    kinds = [event["type"] for event in events(fetch)]
    assert kinds[:4] == ["response.created", "response.in_progress", "x.step", "x.prefill.progress"]
    await bench.baseline()


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"background": True}])
async def test_the_summary_is_in_the_metadata_beside_the_clients_own(more: dict[str, Any]) -> None:
    bench = FaceBench(virtual=True)
    fetch = bench.respond(x_telemetry="response", metadata={"mine": "yes"}, **more)
    await bench.until(lambda: fetch.over and not bench.loop.live)
    await bench.idle()
    body = fetch.json if not more.get("stream") else events(fetch)[-1]["response"]
    stored = await bench.fetch(f"/v1/responses/{body['id']}").done()
    assert '"x.' not in fetch.body.decode()
    metadata = stored.json["metadata"]
    assert metadata["mine"] == "yes" and json.loads(metadata["x_telemetry"])["steps"] == 4
    if not more.get("background"):
        assert body["metadata"] == metadata
    await bench.baseline()


async def test_a_chat_completion_has_it_on_the_usage_chunk_or_on_the_whole() -> None:
    bench = FaceBench(gated=True, virtual=True)
    streamed = bench.chat(stream=True, stream_options={"include_usage": True}, x_telemetry="response")
    await stepped(bench, streamed)
    *others, last = streamed.data
    assert not any("x_telemetry" in chunk for chunk in others)
    assert last["choices"] == [] and exact(last["x_telemetry"])["steps"] == 4
    whole = await stepped(bench, bench.chat(x_telemetry="response"))
    assert exact(whole.json["x_telemetry"])["steps"] == 4
    for fields in ({}, {"x_telemetry": "off"}):
        plain = await stepped(bench, bench.chat(**fields))
        assert "x_telemetry" not in plain.json
    await bench.baseline()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("responses", {"x_telemetry": "step"}),
        ("responses", {"x_telemetry": "step", "stream": True, "background": True}),
        ("responses", {"x_telemetry": 1}),
        ("chat", {"x_telemetry": "step"}),
        ("chat", {"x_telemetry": "response", "stream": True}),
        ("chat", {"x_telemetry": "response", "n": 2}),
    ],
)
async def test_what_has_no_place_is_refused(path: str, fields: dict[str, Any]) -> None:
    bench = FaceBench()
    fetch = await (bench.respond if path == "responses" else bench.chat)(**fields).done()
    assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (400, "invalid_value", "x_telemetry")
    assert not bench.asks
