"""Coming back to an answer: same numbers, same text, nothing computed twice, and nobody else can (M3)."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

import pytest
from face_bench import ALICE, BOB, FaceBench, Socket
from face_said import finals, text
from fake_engine import replay
from fake_prompter import letters
from strict_responses import check_sequence

from headrace.runtime.request import SamplingParams

OVER = ("response.completed", "response.incomplete", "response.failed")


class Reader:
    """A client that remembers what arrived, over however many sockets."""

    def __init__(self, bench: FaceBench, lane: str | None = None, **query: str) -> None:
        self.bench = bench
        self.lane = lane
        self.query = {"ext": "1", **query}
        self.socket = bench.socket(**self.query)
        self.raw: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.ours: list[dict[str, Any]] = []
        self.seen = 0

    def ask(self, **fields: Any) -> None:
        if self.lane is not None:
            fields["stream_id"] = self.lane
        self.socket.create(**fields)

    def collect(self) -> None:
        for raw, event in zip(self.socket.raw[self.seen :], self.socket.said[self.seen :], strict=True):
            self.seen += 1
            if event["type"].startswith("x."):
                self.ours.append(event)
            else:
                self.raw.append(raw)
                self.events.append(event)

    @property
    def last(self) -> int:
        return self.events[-1]["sequence_number"] if self.events else -1

    @property
    def over(self) -> bool:
        self.collect()
        return bool(self.events) and self.events[-1]["type"] in OVER

    @property
    def token(self) -> str:
        return str(self.events[0]["response"]["x_resume_token"])

    @property
    def id(self) -> str:
        return str(self.events[0]["response"]["id"])

    def cut(self, code: int = 1006) -> None:
        self.collect()
        self.socket.drop(code)

    def resume(self, **fields: Any) -> None:
        """On a new socket, from behind what arrived."""
        self.collect()
        self.socket = self.bench.socket(**self.query)
        self.seen = 0
        verb = {"response_id": self.id, "starting_after": self.last, "resume_token": self.token, **fields}
        self.socket.send({"type": "x.resume", **verb})

    def said(self) -> str:
        return "".join(event.get("delta", "") for event in self.events)


async def step(bench: FaceBench) -> None:
    """One step lands, is told and written."""
    bench.engine.land(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.flush()


def stock(raw: list[str]) -> list[str]:
    """What a stock client would have been told."""
    return [re.sub(r'"x_resume_token":"[^"]*",', "", line) for line in raw]


def error_of(socket: Socket) -> dict[str, Any]:
    (error,) = [event["error"] for event in socket.said if event["type"] == "x.error"]
    return dict(error)


def alone(bench: FaceBench, index: int, count: int) -> str:
    return bytes(replay(bench.prompts[index], count, SamplingParams(seed=1), 256, letters)).decode()


@pytest.mark.parametrize("seed", range(12))
async def test_cuts_at_any_moment_and_during_a_resume_leave_no_seam(seed: int) -> None:
    rng = random.Random(seed)
    bench = FaceBench(gated=True)
    reader = Reader(bench, "a" if seed % 2 else None)
    count = rng.choice((1, 5, 60))
    reader.ask(max_output_tokens=count)
    cuts = 0
    while not reader.over:
        await bench.until(lambda: len(reader.socket.said) > 0)
        for _ in range(rng.randint(1, 4)):
            await step(bench)
        reader.collect()
        if reader.events and not reader.over and rng.random() < 0.5:
            reader.cut()
            cuts += 1
            for _ in range(rng.randrange(6)):
                await step(bench)
            reader.resume()
    assert reader.said() == alone(bench, 0, count)
    check_sequence(stock(reader.raw))
    assert bench.scheduler.counters.decode_tokens_computed == count
    assert bench.scheduler.counters.prefill_tokens_computed == len(bench.prompts[0])
    assert bench.held.resumes == cuts
    reader.socket.drop(1000)
    bench.clock.advance(200.0)
    assert len(bench.held) == 0 and bench.held.bytes == 0
    await bench.baseline()


async def test_the_answer_of_a_resume_says_where_it_goes_on_and_numbers_repeat_what_was_told() -> None:
    bench = FaceBench()
    reader = Reader(bench, "a")
    reader.ask(max_output_tokens=20)
    await bench.until(lambda: reader.over)
    first = list(reader.raw)
    reader.cut()
    for after in (-1, 0, 4, reader.last):
        again = bench.socket(ext="1")
        verb = {"response_id": reader.id, "starting_after": after, "resume_token": reader.token}
        again.send({"type": "x.resume", "event_id": "e", **verb})
        bench.flush()
        assert again.said[0] == {
            "type": "x.resumed",
            "response_id": reader.id,
            "reason": "reconnect",
            "sent_tokens": 20,
            "next_sequence": after + 1,
            "status": "incomplete",
            "stream_id": "a",
        }
        assert again.raw[1:] == first[after + 1 :], "byte for byte"
        again.drop(1006)
    await bench.baseline()


async def test_a_response_can_move_to_another_lane() -> None:
    bench = FaceBench()
    reader = Reader(bench, "a")
    reader.ask(max_output_tokens=300)
    await bench.until(lambda: bool(reader.socket.said))
    reader.cut()
    reader.resume(stream_id="b")
    await bench.until(lambda: reader.over)
    lanes = {event["stream_id"] for event in reader.events}
    assert lanes == {"a", "b"} and {event.get("stream_id") for event in reader.ours} == {"b"}
    assert reader.said() == alone(bench, 0, 300)
    reader.socket.create("next", stream_id="b", previous_response_id=reader.id)
    await reader.socket.until_over(2)
    assert "assistant: " + reader.said() in bytes(bench.prompts[-1]).decode(), "it can be continued here"


async def test_the_last_one_to_attach_wins_and_the_other_is_told() -> None:
    bench = FaceBench()
    reader = Reader(bench)
    reader.ask(max_output_tokens=300, x_on_slow={"buffer": 20})
    await bench.until(lambda: len(reader.socket.said) > 3)
    old = reader.socket
    reader.resume()
    bench.flush()
    assert old.wire.close_code == 4001
    await bench.until(lambda: reader.over)
    assert reader.said() == alone(bench, 0, 300)
    check_sequence(stock(reader.raw))


async def test_lanes_beside_the_one_taken_over_are_held_too() -> None:
    bench = FaceBench(gated=True)
    old = bench.socket(ext="1")
    for lane in ("a", "b"):
        old.create("q " + lane, stream_id=lane, max_output_tokens=30)
    await bench.until(lambda: sum(e["type"] == "response.created" for e in old.said) == 2)
    first, other = (e for e in old.said if e["type"] == "response.created")
    new = bench.socket(ext="1")
    for created in (first, other):
        new.send(
            {
                "type": "x.resume",
                "response_id": created["response"]["id"],
                "starting_after": -1,
                "resume_token": created["response"]["x_resume_token"],
            }
        )
    bench.flush()
    assert old.gone and old.wire.close_code == 4001
    await new.until_over(2)
    assert sorted(map(len, map(text, finals(new)))) == [30, 30]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"response_id": "resp_other"}, "response_not_found", "response_id"),
        ({"resume_token": "guess"}, "response_not_found", "response_id"),
        ({"starting_after": 10_000}, "invalid_value", "starting_after"),
        ({"starting_after": -2}, "invalid_value", "starting_after"),
        ({"starting_after": None}, "invalid_value", "starting_after"),
        ({"resume_token": "ключ"}, "response_not_found", "response_id"),
    ],
)
async def test_who_asks_wrongly_learns_nothing_and_disturbs_nobody(
    change: dict[str, Any], code: str, param: str
) -> None:
    bench = FaceBench(gated=True)
    reader = Reader(bench)
    reader.ask(max_output_tokens=10)
    await bench.until(lambda: len(reader.socket.said) > 3)
    reader.collect()
    other = bench.socket(ext="1")
    verb = {"response_id": reader.id, "starting_after": -1, "resume_token": reader.token, **change}
    other.send({"type": "x.resume", "event_id": "e", **verb})
    bench.flush()
    assert (error_of(other)["code"], error_of(other)["param"]) == (code, param)
    assert not reader.socket.gone
    await bench.until(lambda: reader.over)
    check_sequence(stock(reader.raw))


async def test_another_tenant_cannot_resume_even_with_the_key() -> None:
    bench = FaceBench()
    reader = Reader(bench)
    reader.ask(max_output_tokens=10)
    await bench.until(lambda: reader.over)
    for tenant, found in ((BOB, False), (ALICE, True)):
        socket = bench.socket(tenant, ext="1")
        verb = {"response_id": reader.id, "starting_after": -1, "resume_token": reader.token}
        socket.send({"type": "x.resume", **verb})
        bench.flush()
        assert (socket.said[0]["type"] == "x.resumed") is found


async def test_a_busy_lane_is_not_taken_and_the_answer_stays_where_it_is() -> None:
    bench = FaceBench(gated=True)
    reader = Reader(bench, "a")
    reader.ask(max_output_tokens=10)
    await bench.until(lambda: len(reader.socket.said) > 3)
    reader.collect()
    other = bench.socket(ext="1")
    other.create("mine", stream_id="a", max_output_tokens=100)
    verb = {"response_id": reader.id, "starting_after": -1, "resume_token": reader.token}
    other.send({"type": "x.resume", **verb})
    bench.flush()
    assert error_of(other)["code"] == "lane_busy"
    assert not reader.socket.gone
    await bench.until(lambda: reader.over)


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1008, 1009])
async def test_a_meant_goodbye_cancels(code: int) -> None:
    bench = FaceBench(gated=True)
    reader = Reader(bench)
    reader.ask(max_output_tokens=1000)
    await bench.until(lambda: len(reader.socket.said) > 3)
    reader.cut(code)
    await bench.baseline()
    assert len(bench.held) == 0
    reader.resume()
    bench.flush()
    assert error_of(reader.socket)["code"] == "response_not_found"


async def test_without_ext_a_lost_connection_cancels_unless_the_request_says_otherwise() -> None:
    bench = FaceBench(gated=True)
    for field, lives in ((None, False), ("cancel", False), ("continue", True), ("pause", True)):
        socket = bench.socket()
        fields = {} if field is None else {"x_on_disconnect": field}
        socket.create("q", max_output_tokens=1000, **fields)
        await bench.until(lambda s=socket: len(s.said) > 3)  # type: ignore[misc]
        assert ("x_resume_token" in socket.said[0]["response"]) is lives
        assert not any("x_resume_token" in event.get("response", {}) for event in socket.said[1:])
        socket.drop(1006)
        assert bench.loop.live == lives
        bench.clock.advance(61.0)
        assert bench.loop.live == 0
        await bench.baseline()


async def test_an_abandoned_stream_goes_on_up_to_the_ring_or_pauses_at_once() -> None:
    bench = FaceBench()
    bench.held.window = 100
    counts = {}
    for leaves in ("continue", "pause"):
        reader = Reader(bench)
        reader.ask(max_output_tokens=400, x_on_disconnect=leaves)
        await bench.until(lambda r=reader: len(r.socket.said) > 6)  # type: ignore[misc]
        before = bench.scheduler.counters.decode_tokens_computed
        reader.cut()
        await bench.until(lambda: not bench.scheduler.running and bench.loop.flight == 0)
        counts[leaves] = bench.scheduler.counters.decode_tokens_computed - before
        assert bench.held.stats()["detached_streams"] == 1
        reader.resume()
        bench.flush()
        await bench.until(lambda r=reader: r.over)  # type: ignore[misc]
        assert reader.said() == alone(bench, -1, 400)
        reader.cut(1000)
        await bench.baseline()
    assert counts["pause"] <= 2 and 95 <= counts["continue"] <= 102


async def test_an_answer_that_ended_unheard_is_kept_for_its_reader_and_for_the_next_turn() -> None:
    bench = FaceBench()
    reader = Reader(bench)
    reader.ask(max_output_tokens=40)
    await bench.until(lambda: len(reader.socket.said) > 5)
    reader.cut()
    await bench.until(lambda: bench.loop.live == 0)
    reader.resume()
    bench.flush()
    assert reader.over and reader.said() == alone(bench, 0, 40)
    # And one whose reader never comes back is stored when its time is over.
    lost = Reader(bench)
    lost.ask(max_output_tokens=30)
    await bench.until(lambda: len(lost.socket.said) > 5)
    lost.cut()
    await bench.until(lambda: bench.loop.live == 0)
    bench.clock.advance(61.0)
    fetched = bench.fetch(f"/v1/responses/{lost.id}")
    assert fetched.status == 200 and len(text(fetched.json)) == 30
    await bench.baseline()


async def test_all_that_is_held_is_bounded_and_old_ends_go_first() -> None:
    bench = FaceBench()
    bench.held.bytes_limit = 60_000
    readers = []
    for _ in range(30):
        reader = Reader(bench)
        reader.ask(max_output_tokens=20)
        await bench.until(lambda r=reader: r.over)  # type: ignore[misc]
        readers.append(reader)
        assert bench.held.bytes <= 60_000
    assert 0 < len(bench.held) < 30
    for reader, lives in ((readers[0], False), (readers[-1], True)):
        reader.cut()
        reader.resume()
        bench.flush()
        assert (reader.socket.said[0]["type"] == "x.resumed") is lives


async def test_only_so_many_wait_for_a_reader() -> None:
    bench = FaceBench(gated=True)
    bench.held.alone_limit = 3
    readers = [Reader(bench) for _ in range(5)]
    for reader in readers:
        reader.ask(max_output_tokens=1000)
    await bench.until(lambda: all(len(reader.socket.said) > 4 for reader in readers))
    for reader in readers:
        reader.cut()
    assert bench.held.stats()["detached_streams"] == bench.loop.live == 3
    bench.clock.advance(61.0)
    await bench.baseline()


async def test_a_long_replay_obeys_the_brake_of_its_socket() -> None:
    bench = FaceBench()
    reader = Reader(bench)
    reader.ask(max_output_tokens=1500)
    await bench.until(lambda: reader.over)
    whole = list(reader.raw)
    reader.cut()
    socket = bench.socket(ext="1")
    verb = {"response_id": reader.id, "starting_after": -1, "resume_token": reader.token}
    socket.send({"type": "x.resume", **verb})
    socket.pump()
    sizes = [len(socket.raw)]
    while socket.wire.marked:
        socket.pump()
        sizes.append(len(socket.raw))
    assert len(sizes) > 3, "one go carries some of it"
    assert socket.raw[1:] == whole


async def test_a_resume_on_the_same_socket_tells_it_again() -> None:
    bench = FaceBench(gated=True)
    reader = Reader(bench)
    reader.ask(max_output_tokens=30)
    await bench.until(lambda: len(reader.socket.said) > 8)
    reader.collect()
    verb = {"response_id": reader.id, "starting_after": 3, "resume_token": reader.token}
    reader.socket.send({"type": "x.resume", **verb})
    await bench.until(lambda: reader.over)
    numbers = [event["sequence_number"] for event in reader.events]
    at = numbers.index(4, 5)
    assert numbers[:at] == list(range(at)) and numbers[at:] == list(range(4, reader.last + 1))
    assert not reader.socket.gone


async def test_limits_of_held_responses_are_settings() -> None:
    bench = FaceBench(settings={"linger": 7.0, "held_bytes": 70_000, "held_streams": 3, "held_tokens": 40})
    held = bench.held
    assert (held.linger, held.bytes_limit, held.alone_limit, held.window) == (7.0, 70_000, 3, 40)
    socket = bench.socket(ext="1")
    socket.create("hello", stream_id="a", max_output_tokens=400)
    await socket.until(lambda: "response.created" in socket.types())
    socket.drop(1006)
    await bench.until(lambda: bool(bench.scheduler.paused))
    assert len(held) == 1
    bench.clock.advance(6.9)
    assert len(held) == 1
    bench.clock.advance(0.2)
    assert len(held) == 0
