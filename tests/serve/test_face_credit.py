"""Credit by the token, and what a reader is told when its answer stands still (M1, M2)."""

from __future__ import annotations

from typing import Any

import pytest
from face_bench import FaceBench, Socket
from face_said import by_lane, finals, text
from fake_engine import replay
from fake_prompter import letters
from strict_responses import check_sequence

from headrace.runtime.request import SamplingParams


def of(socket: Socket, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in socket.said if event["type"] in kinds]


def told(socket: Socket, lane: str | None = None) -> str:
    deltas = of(socket, "response.output_text.delta")
    return "".join(event["delta"] for event in deltas if event.get("stream_id") == lane)


def alone(bench: FaceBench, count: int, seed: int = 1) -> str:
    """What the request that joined last says when nobody else is there."""
    ids = replay(bench.prompts[-1], count, SamplingParams(seed=seed), 256, letters)
    return bytes(ids).decode()


async def settled(bench: FaceBench) -> None:
    """Nothing moves any more: what waits, waits for a reader."""
    await bench.until(lambda: not bench.runtime._preparing and bool(bench.prompts) and bench.loop.flight == 0)
    await bench.until(lambda: not bench.scheduler.running and not bench.scheduler.waiting)
    bench.flush()


async def test_a_credit_is_kept_to_the_token_and_what_was_granted_later_joins_without_a_seam() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("one", stream_id="slow", x_credit=10, max_output_tokens=700)
    socket.create("two", stream_id="fast", max_output_tokens=30)
    await settled(bench)
    assert len(told(socket, "slow")) == 10, "the fake model writes one letter per token"
    assert [event["status"] for event in finals(socket)] == ["incomplete"], "the other lane has ended"
    (paused,) = of(socket, "x.paused")
    response_id = next(e for e in of(socket, "response.created") if e["stream_id"] == "slow")["response"][
        "id"
    ]
    assert paused == {
        "type": "x.paused",
        "response_id": response_id,
        "reason": "credit",
        "sent_tokens": 10,
        "stream_id": "slow",
    }
    assert bench.scheduler.counters.decode_tokens_computed <= 30 + 10 + 512 + 2, "it stands still when full"
    assert len(bench.scheduler.paused) == 1
    socket.send({"type": "x.credit", "stream_id": "slow", "tokens": 5})
    bench.flush()
    assert len(told(socket, "slow")) == 15
    socket.send({"type": "x.credit", "stream_id": "slow", "tokens": 1000})
    await socket.until_over(2)
    final = finals(socket)[-1]
    ids = replay(bench.prompts[0], 700, SamplingParams(seed=1), 256, letters)
    assert told(socket, "slow") == text(final) == bytes(ids).decode()
    assert final["usage"]["output_tokens"] == 700
    kinds = [(event["type"], event["sent_tokens"]) for event in of(socket, "x.paused", "x.resumed")]
    assert kinds == [
        ("x.paused", 10),
        ("x.resumed", 10),
        ("x.paused", 15),
        ("x.resumed", 15),
    ]
    check_sequence([raw for raw in by_lane(socket, "slow") if '"x.' not in raw])
    assert bench.scheduler.counters.prefill_tokens_computed == sum(map(len, bench.prompts)), "waking is free"
    socket.drop()
    await bench.baseline()


async def test_no_credit_at_all_still_lets_the_answer_begin_and_counts_framing_as_free() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("one", x_credit=0, max_output_tokens=3)
    await settled(bench)
    bench.flush()
    assert socket.types() == ["response.created", "response.in_progress", "x.paused"]
    socket.send({"type": "x.credit", "tokens": 3})
    await socket.until_over()
    assert len(told(socket)) == 3 and finals(socket)[0]["status"] == "incomplete"
    socket.drop()
    await bench.baseline()


@pytest.mark.parametrize(("count", "status"), [(100, "incomplete"), (2000, "cancelled")])
async def test_a_starved_answer_can_be_cancelled_and_says_all_that_was_computed(
    count: int, status: str
) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("one", x_credit=4, max_output_tokens=count)
    await settled(bench)
    socket.send({"type": "response.cancel"})
    await socket.until_over()
    (final,) = finals(socket)
    assert final["status"] == status, "one that had ended by itself ends as it did"
    assert text(final) == told(socket) == alone(bench, final["usage"]["output_tokens"])
    socket.drop()
    await bench.baseline()


@pytest.mark.parametrize(
    ("verb", "code", "param"),
    [
        ({"tokens": 5}, "response_not_found", "stream_id"),
        ({"tokens": 5, "stream_id": "free"}, "credit_not_enabled", "stream_id"),
        ({"tokens": 5, "stream_id": "no such"}, "response_not_found", "stream_id"),
        ({"tokens": 0, "stream_id": "free"}, "invalid_value", "tokens"),
        ({"tokens": 1 << 31}, "invalid_value", "tokens"),
        ({"tokens": True}, "invalid_value", "tokens"),
        ({}, "missing_required_parameter", "tokens"),
        ({"tokens": 1, "x_unknown": 1}, "unknown_parameter", "x_unknown"),
    ],
)
async def test_a_credit_that_fits_nothing_is_an_x_error_and_never_an_error(
    verb: dict[str, Any], code: str, param: str
) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("one", stream_id="free", x_on_slow={"buffer": 20}, max_output_tokens=3000)
    await bench.until(lambda: bool(told(socket, "free")))
    socket.send({"type": "x.credit", "event_id": "e1", **verb})
    bench.flush()
    (error,) = of(socket, "x.error")
    assert (error["error"]["code"], error["error"]["param"]) == (code, param)
    assert error["event_id"] == "e1" and error.get("stream_id") == verb.get("stream_id")
    assert not of(socket, "error") and socket.wire.malformed_count == 0
    socket.drop()
    await bench.baseline()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("x_credit", -1),
        ("x_credit", 1 << 31),
        ("x_on_slow", "wait"),
        ("x_on_slow", {"buffer": 0}),
        ("x_on_slow", {"buffer": 65537}),
        ("x_on_slow", {"buffer": 5, "more": 1}),
        ("x_on_disconnect", "stay"),
    ],
)
async def test_a_bad_field_of_ours_is_refused_by_name(field: str, value: Any) -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("one", **{field: value})
    bench.flush()
    (error,) = of(socket, "error")
    assert error["error"]["code"] in ("invalid_value", "unknown_parameter")
    assert error["error"]["param"].startswith(field)
    assert not bench.asks


async def test_a_stalled_socket_stops_its_answers_and_loses_nothing() -> None:
    bench = FaceBench()
    slow, fast = bench.socket(), bench.socket()
    slow.create("one", x_on_slow={"buffer": 20}, max_output_tokens=300)
    await bench.until(lambda: len(told(slow)) > 5)
    slow.wire.reading = False
    fast.create("two", max_output_tokens=400)
    await fast.until_over()
    assert bench.scheduler.counters.decode_tokens_computed <= len(told(slow)) + 20 + 2 + 400
    stats = bench.runtime.stats()
    assert 20 <= stats["unsent_tokens"] <= 22 and stats["reader_pauses"] == 1, (
        "the mark, and what was in flight"
    )
    slow.wire.reading = True
    await slow.until_over()
    assert told(slow) == text(finals(slow)[0])
    flow = [(event["type"], event["reason"]) for event in of(slow, "x.paused", "x.resumed")]
    assert flow == [("x.paused", "slow"), ("x.resumed", "slow")]
    assert bench.scheduler.counters.prefill_tokens_computed == sum(map(len, bench.prompts))
    for socket in (slow, fast):
        socket.drop()
    await bench.baseline()


async def test_a_reader_that_wants_no_wait_is_dropped_at_the_mark() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("one", x_on_slow="drop", max_output_tokens=3000)
    await bench.until(lambda: bool(told(socket)))
    socket.wire.reading = False
    await bench.until(lambda: socket.wire.close_code is not None)
    await bench.idle()
    assert socket.wire.close_code == 4002
    assert bench.scheduler.counters.decode_tokens_computed < 3000
    socket.drop(4002)
    await bench.baseline()


async def test_stock_clients_never_hear_of_any_of_this() -> None:
    bench = FaceBench()
    socket = bench.socket()
    socket.create("one", max_output_tokens=2000)
    await bench.until(lambda: bool(told(socket)))
    socket.wire.reading = False
    await settled(bench)
    socket.wire.reading = True
    await socket.until_over()
    assert not [kind for kind in socket.types() if kind.startswith("x.")]
    assert "x_resume" not in "".join(socket.raw)
    socket.drop()
    await bench.baseline()
