"""Responses over WebSocket, one session at a time: lanes, cancel, limits, the end of the connection."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from face_bench import FaceBench
from face_said import by_lane, errors, finals, prompt_of, text
from strict_responses import check_sequence

from headrace.server.session import LaneLimits

# -- lanes ---------------------------------------------------------------------------------------------------


async def test_lanes_run_side_by_side_and_each_stays_in_order() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("one", stream_id="a", max_output_tokens=8)
    socket.create("two", stream_id="b", max_output_tokens=8)
    socket.create("three", max_output_tokens=8)
    await socket.until_over(3)
    for lane in ("a", "b", None):
        check_sequence(by_lane(socket, lane))
    order = [event.get("stream_id") for event in socket.said if event["type"].endswith(".delta")]
    changes = sum(x != y for x, y in itertools.pairwise(order))
    assert changes >= 12, "deltas of the lanes interleave"
    socket.drop()
    await bench.baseline()


async def test_one_lane_is_first_in_first_out() -> None:
    bench = FaceBench()
    socket = bench.socket()
    for number in range(4):
        socket.create(f"question {number}", stream_id="a", metadata={"number": str(number)})
    await socket.until_over(4)
    ids = []
    for event in socket.said:
        if event["type"] == "response.created":
            assert len(finals(socket)) >= len(ids)
            ids.append(event["response"]["metadata"]["number"])
    assert ids == ["0", "1", "2", "3"]
    kinds = [k for k in socket.types() if k in ("response.created", "response.incomplete")]
    assert kinds == ["response.created", "response.incomplete"] * 4, "one after the other"
    socket.drop()
    await bench.baseline()


async def test_only_so_many_run_and_the_rest_waits_its_turn() -> None:
    limits = LaneLimits(in_flight=2, waiting=3, named=32)
    bench = FaceBench(gated=True, settings={"lanes": limits})
    socket = bench.socket()
    for number in range(6):
        socket.create("x", stream_id=f"lane{number}")
    bench.flush()
    assert len(bench.asks) == 2
    (refused,) = errors(socket)
    # Not the code of one named lane too many: that one never fits, this one fits a moment later.
    assert (refused["error"]["code"], refused["error"]["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert refused["stream_id"] == "lane5" and refused["status"] == 429
    assert "2 requests run and 3 (" in refused["error"]["message"]
    assert refused["error"]["headers"]["retry-after"] == "1"
    running_most = 0

    def step() -> bool:
        nonlocal running_most
        running_most = max(running_most, bench.loop.live)
        return len(finals(socket)) == 5

    await bench.until(step)
    assert running_most == 2
    for number in range(5):
        check_sequence(by_lane(socket, f"lane{number}"))
    socket.create("again", stream_id="lane5")
    await socket.until_over(7)
    assert len(finals(socket)) == 6, "the socket lives on"
    socket.drop()
    await bench.baseline()


async def test_waiting_requests_are_bounded_in_bytes_too() -> None:
    bench = FaceBench(gated=True, settings={"lanes": LaneLimits(in_flight=1, waiting=64, waiting_bytes=4000)})
    socket = bench.socket()
    socket.create("x" * 100, stream_id="a")
    for _ in range(3):
        socket.create("x" * 1800, stream_id="a")
    bench.flush()
    (error,) = errors(socket)
    assert "1 requests run and 2 (" in error["error"]["message"], "what is there, not what the limits are"
    socket.drop()
    await bench.baseline()


async def test_waiting_requests_of_all_connections_are_bounded_together() -> None:
    bench = FaceBench(gated=True, settings={"lanes": LaneLimits(in_flight=1), "waiting_bytes": 5000})
    sockets = [bench.socket() for _ in range(3)]
    for socket in sockets:
        socket.create("runs")
    big = json.dumps({"type": "response.create", "model": "fake", "input": "x" * 2000})
    for socket in sockets:
        socket.send(big)
    bench.flush()
    assert [[e["error"]["code"] for e in errors(socket)] for socket in sockets] == [
        [],
        [],
        ["server_is_overloaded"],
    ]
    for socket in sockets:
        socket.drop()
    await bench.baseline()


async def test_the_33rd_named_lane_is_refused() -> None:
    bench = FaceBench()
    socket = bench.socket()
    for number in range(32):
        socket.create("x", stream_id=f"n{number}", max_output_tokens=1)
    socket.create("x", stream_id="one.too-many_", max_output_tokens=1)
    await socket.until_over(33)
    (error,) = errors(socket)
    assert error["error"]["code"] == "websocket_stream_limit_reached"
    assert error["error"]["param"] == "stream_id" and error["stream_id"] == "one.too-many_"
    socket.create("x", max_output_tokens=1)
    socket.create("x", stream_id="n31", max_output_tokens=1)
    await socket.until_over(35)
    assert len(errors(socket)) == 1, "the unnamed lane and known lanes still work"
    socket.drop()
    await bench.baseline()


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 257, "a\n", "a\0", "#1", 5, True, [], {}])
async def test_a_bad_lane_name(name: Any) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("x", stream_id=name)
    await socket.until_over()
    (error,) = errors(socket)
    assert error["error"]["code"] == "invalid_stream_id" and "stream_id" not in error
    assert len(bench.asks) == 0


@pytest.mark.parametrize("name", ["a", "x" * 256, "A-Z_0.9", None])
async def test_a_good_lane_name(name: str | None) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("x", stream_id=name)
    await socket.until_over()
    check_sequence(socket.raw)
    assert socket.said[0].get("stream_id") == name


# -- cancel --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("deltas", [0, 1, 5])
async def test_cancel_stops_within_one_step(named: bool, deltas: int) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("hello", max_output_tokens=500)
    await socket.until(lambda: bool(socket.said) and sum("delta" in e for e in socket.said) >= deltas)
    response_id = socket.said[0]["response"]["id"]
    launched = len(bench.engine.plans)
    socket.send({"type": "response.cancel", **({"response_id": response_id} if named else {})})
    bench.flush()
    events = check_sequence(socket.raw)
    assert events[-1]["type"] == "response.incomplete"
    final = events[-1]["response"]
    assert final["status"] == "cancelled" and final["incomplete_details"] is None
    told = sum(event["type"].endswith("text.delta") for event in events)
    assert final["usage"]["output_tokens"] >= told
    await bench.idle()
    assert len(bench.engine.plans) <= launched + 1
    if final["output"]:
        assert [item["status"] for item in final["output"]] == ["incomplete"]
        socket.create("go on", previous_response_id=response_id)
        await socket.until_over(2)
        assert f"assistant: {text(final)}\nuser: go on\n" in prompt_of(bench)
    socket.drop()
    await bench.baseline()


async def test_cancel_before_the_prompt_is_ready() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("hello")
    socket.send({"type": "response.cancel"})
    bench.flush()
    events = check_sequence(socket.raw)
    assert [e["type"] for e in events] == ["response.created", "response.in_progress", "response.incomplete"]
    await asyncio.sleep(0)
    assert not bench.engine.plans, "no step was spent on it"
    socket.drop()
    await bench.baseline()


async def test_cancel_of_nothing_is_silent() -> None:
    bench = FaceBench()
    socket, other = bench.socket(), bench.socket()
    socket.send({"type": "response.cancel"})
    socket.send({"type": "response.cancel", "response_id": "resp_unknown"})
    socket.create("hello", stream_id="a")
    socket.send({"type": "response.cancel"})
    await socket.until_over()
    socket.send({"type": "response.cancel", "response_id": finals(socket)[0]["id"]})
    other.create("mine", max_output_tokens=20)
    await other.until(lambda: bool(other.said))
    socket.send({"type": "response.cancel", "response_id": other.said[0]["response"]["id"]})
    await other.until_over()
    assert check_sequence(other.raw)[-1]["response"]["status"] == "incomplete", "not cancelled by a stranger"
    bench.flush()
    check_sequence(socket.raw)


async def test_cancel_names_one_of_many() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    for lane in ("a", "b", "c"):
        socket.create("hello", stream_id=lane, max_output_tokens=12)
    await socket.until(lambda: sum(e["type"] == "response.created" for e in socket.said) == 3)
    ids = {e["stream_id"]: e["response"]["id"] for e in socket.said if e["type"] == "response.created"}
    socket.send({"type": "response.cancel", "response_id": ids["b"]})
    socket.send({"type": "response.cancel", "stream_id": "c"})
    await socket.until_over(3)
    status = {r["id"]: r["status"] for r in finals(socket)}
    assert status == {ids["a"]: "incomplete", ids["b"]: "cancelled", ids["c"]: "cancelled"}


# -- the connection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
async def test_a_lost_connection_cancels_everything_within_one_step(steps: int) -> None:
    bench = FaceBench(gated=True, settings={"lanes": LaneLimits(in_flight=3)})
    socket, other = bench.socket(), bench.socket()
    other.create("canary", temperature=0.0, max_output_tokens=40)
    for lane in ("a", "b", "c", "d", "e"):
        socket.create("hello", stream_id=lane, max_output_tokens=400)
    for _ in range(steps):
        bench.flush()
        bench.engine.land(1)
        await asyncio.sleep(0)
    socket.drop()
    at = len(bench.engine.plans)
    await other.until_over()
    for plan in bench.engine.plans[at + 1 :]:
        assert len(plan.rows) <= 1, "only the canary is left from the next step on"
    assert len(bench.asks) == 4
    other.drop()
    await bench.baseline()
    assert not socket.session._jobs and not socket.session._marked  # type: ignore[attr-defined]


@pytest.mark.parametrize("told", [0, 6])
async def test_a_connection_lost_in_the_middle_of_a_continuation_leaves_nothing(told: int) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("first", store=False)
    await socket.until_over()
    socket.create("second", store=False, previous_response_id=finals(socket)[0]["id"], max_output_tokens=99)
    await socket.until(lambda: sum(e["type"].endswith(".delta") for e in socket.said) >= told)
    socket.drop()
    await bench.baseline()
    assert bench.store.bytes == 0 and len(bench.store) == 0


async def test_a_peer_that_does_not_read_pauses_its_own_stream_only() -> None:
    bench = FaceBench()
    slow, fast = bench.socket(), bench.socket()
    slow.create("hello", max_output_tokens=1500)
    await slow.until(lambda: len(slow.said) > 5)
    slow.wire.reading = False
    fast.create("hello", max_output_tokens=700)
    await fast.until_over()
    stream = next(iter(slow.session._jobs))  # type: ignore[attr-defined]
    assert stream.full and stream.head - stream.sent <= stream.window + 2, "the ring is bounded"
    assert len(bench.scheduler.paused) == 1
    slow.wire.reading = True
    await slow.until_over()
    events = check_sequence(slow.raw)
    assert events[-1]["response"]["usage"]["output_tokens"] == 1500
    again = bench.socket()
    again.create("hello", max_output_tokens=1500)
    await again.until_over()
    assert text(finals(again)[0]) == text(finals(slow)[0]), "the pause changed nothing"
    for socket in (slow, fast, again):
        socket.drop()
    await bench.baseline()


async def test_answers_that_nobody_reads_end_the_connection() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.wire.reading = False
    for _ in range(1100):
        socket.create("x", temperature=9)
    bench.clock.advance(0.0)
    assert socket.wire.close_code == 1008
    assert len(socket.session._frames) <= 1026  # type: ignore[attr-defined]


async def test_the_age_limit_closes_an_idle_socket_without_a_frame() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("hello")
    await socket.until_over()
    said = len(socket.said)
    bench.clock.advance(3599)
    bench.flush()
    assert socket.wire.close_code is None
    bench.clock.advance(2)
    bench.flush()
    bench.clock.advance(0)
    assert socket.wire.close_code == 1001 and len(socket.said) == said


async def test_at_the_age_limit_what_runs_finishes_and_what_comes_is_refused() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    socket.create("hello", max_output_tokens=20)
    await socket.until(lambda: len(socket.said) > 5)
    bench.clock.advance(3601)
    socket.create("late")
    bench.flush()
    assert errors(socket)[0]["error"]["code"] == "websocket_connection_limit_reached"
    assert socket.wire.close_code is None
    await bench.until(lambda: socket.wire.close_code is not None)
    assert socket.wire.close_code == 1001
    events = check_sequence([raw for raw in socket.raw if json.loads(raw)["type"] != "error"])
    assert events[-1]["response"]["usage"]["output_tokens"] == 20


async def test_drain_finishes_what_runs_and_refuses_the_rest() -> None:
    bench = FaceBench(gated=True)
    idle, socket = bench.socket(), bench.socket()
    socket.create("hello", stream_id="a", max_output_tokens=20)
    socket.create("waits", stream_id="a")
    await socket.until(lambda: len(socket.said) > 5)
    idle.session.drain()
    socket.session.drain()
    bench.flush()
    bench.clock.advance(0)
    assert idle.wire.close_code == 1012 and socket.wire.close_code is None
    socket.create("late", stream_id="b")
    await bench.until(lambda: socket.wire.close_code is not None)
    assert socket.wire.close_code == 1012
    assert [(e["error"]["code"], e["stream_id"]) for e in errors(socket)] == [
        ("server_is_overloaded", "a"),
        ("server_is_overloaded", "b"),
    ]
    events = check_sequence([raw for raw in socket.raw if json.loads(raw)["type"] != "error"])
    assert events[-1]["response"]["status"] == "incomplete"
    await bench.baseline()


async def test_nothing_is_said_after_the_end() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("hello")
    await socket.until_over()
    socket.drop(1000)
    socket.create("ghost")
    assert len(bench.asks) == 1 and socket.session.render() == []
