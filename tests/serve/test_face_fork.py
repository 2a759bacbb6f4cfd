"""Forks of an answer at any token or character: what is kept is not computed again, the rest as if asked (M6)."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from face_bench import FaceBench, Socket
from face_said import by_lane, finals, text
from fake_engine import replay
from fake_prompter import letters
from strict_responses import check_sequence

from headrace.runtime.request import SamplingParams


def of(socket: Socket, kind: str) -> list[dict[str, Any]]:
    return [event for event in socket.said if event["type"] == kind]


def created(socket: Socket, lane: str) -> dict[str, Any]:
    (event,) = [e for e in of(socket, "response.created") if e.get("stream_id") == lane]
    return dict(event["response"])


def final(socket: Socket, lane: str) -> dict[str, Any]:
    (event,) = [e for e in socket.said if e.get("stream_id") == lane and e["type"] == "response.incomplete"]
    return dict(event["response"])


def told(socket: Socket, lane: str) -> str:
    deltas = of(socket, "response.output_text.delta")
    return "".join(event["delta"] for event in deltas if event.get("stream_id") == lane)


def answer(prompt: list[int], count: int, seed: int) -> bytes:
    return bytes(replay(prompt, count, SamplingParams(seed=seed), 256, letters))


async def test_forks_at_random_tokens_cost_no_prefill_and_say_what_a_full_computation_says() -> None:
    rng = random.Random(4)
    bench = FaceBench(gated=True, page_count=1024, slots=40)
    socket = bench.socket(ext="1")
    socket.create("question " * 40, stream_id="root", max_output_tokens=1000)
    await bench.until(lambda: len(told(socket, "root")) >= 100)
    parent = created(socket, "root")["id"]
    prompt = bench.prompts[0]
    spent = bench.scheduler.counters.prefill_tokens_computed
    whole = answer(prompt, 1000, 1)
    forks: list[tuple[str, int, int, int]] = []
    for number in range(80):
        at = rng.randint(0, len(told(socket, "root")))
        seed, count = rng.randint(2, 5), rng.randint(at + 1, at + 20)
        lane = f"fork{number % 15}"
        used = bench.scheduler.pool.used_count
        steps = len(bench.engine.plans)
        socket.send(
            {
                "type": "x.fork", "response_id": parent, "at_token": at, "stream_id": lane,
                "seed": seed, "max_output_tokens": count,
            }
        )  # fmt: skip
        assert bench.scheduler.pool.used_count <= used + 1, "at most the part page is new"
        before = len(finals(socket))
        (child,) = [
            s
            for s in bench.runtime._generations
            if s.params is not None and s.head == at and s.req and s.req.forked_len
        ]
        await bench.until(lambda c=child, n=at: c.head > n)  # type: ignore[misc]
        assert len(bench.engine.plans) - steps <= 3, "its first token comes within two steps"
        await bench.until(lambda n=before: len(finals(socket)) > n)  # type: ignore[misc]
        forks.append((lane, at, seed, count))
        said = finals(socket)[-1]
        assert text(said) == (whole[:at] + answer(prompt + list(whole[:at]), count - at, seed)).decode()
        assert said["x_forked_from"] == {"response_id": parent, "at_token": at}
        assert said["usage"]["output_tokens"] == count and said["usage"]["input_tokens"] == len(prompt)
        if len(told(socket, "root")) > 960:
            break
    assert len(forks) >= 50
    assert bench.scheduler.counters.prefill_tokens_computed == spent, "nothing was computed again"
    await bench.until(lambda: any(f["id"] == parent for f in finals(socket)))
    assert text(final(socket, "root")) == whole.decode(), "the parent does not notice"
    socket.drop(1000)
    await bench.baseline()


async def test_a_fork_is_a_response_like_any_other() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=60, metadata={"k": "v"})
    await bench.until(lambda: len(told(socket, "a")) > 20)
    verb = {"type": "x.fork", "response_id": created(socket, "a")["id"], "stream_id": "b"}
    socket.send({**verb, "at_token": 10, "force_text": "So: ", "metadata": {"k": "w"}})
    await socket.until_over(2)
    said = final(socket, "b")
    kept = list(answer(bench.prompts[0], 10, 1)) + list(b"So: ")
    assert text(said).encode() == bytes(kept) + answer(bench.prompts[0] + kept, 60 - 14, 1)
    assert said["metadata"] == {"k": "w"} and said["temperature"] == final(socket, "a")["temperature"]
    check_sequence(plain(socket, "a"))
    check_sequence(plain(socket, "b"))
    socket.create("and then?", stream_id="b", previous_response_id=said["id"], max_output_tokens=3)
    await socket.until_over(3)
    assert f"assistant: {text(said)}" in bytes(bench.prompts[-1]).decode()
    stored = bench.fetch(f"/v1/responses/{said['id']}")
    assert stored.json["x_forked_from"]["at_token"] == 10
    socket.drop(1000)
    await bench.baseline()


def plain(socket: Socket, lane: str) -> list[str]:
    """A lane as a stock client would have been told it."""
    rows = [raw for raw in by_lane(socket, lane) if '"type":"x.' not in raw]
    ours = r'"x_resume_token":"[^"]*",|,"x_forked_from":\{[^}]*\}'
    return [re.sub(ours, "", raw) for raw in rows]


@pytest.mark.parametrize("stop", [None, "zzz"])
async def test_a_fork_at_a_character_may_lie_inside_a_token(stop: str | None) -> None:
    def choose(tokens: list[int], seed: int, width: int) -> int:
        return "é→x🙂".encode()[(len(tokens) - start) % 10]

    start = 0
    bench = FaceBench(gated=True, choose=choose)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=40, **({} if stop is None else {"stop": stop}))
    await bench.until(lambda: bool(bench.prompts))
    start = len(bench.prompts[0])
    await socket.until_over()
    whole = text(final(socket, "a"))
    assert whole == "é→x🙂" * 4
    parent = created(socket, "a")["id"]
    for at in range(0, 17):
        lane = f"at{at}"
        verb = {"type": "x.fork", "response_id": parent, "at_char": at, "stream_id": lane}
        socket.send({**verb, "force_text": "!", "max_output_tokens": 45})
        await bench.until(lambda n=at: len(finals(socket)) == n + 2)  # type: ignore[misc]
        assert told(socket, lane).startswith(whole[:at] + "!")
        assert created(socket, lane)["x_forked_from"]["at_token"] == len(whole[:at].encode())
    socket.send({"type": "x.fork", "response_id": parent, "at_char": 17, "stream_id": "beyond"})
    bench.flush()
    (error,) = of(socket, "x.error")
    assert error["error"]["code"] == "fork_point_invalid"
    socket.drop(1000)
    await bench.baseline()


async def test_a_rewind_drops_what_it_forks_from() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=500)
    await bench.until(lambda: len(told(socket, "a")) > 30)
    parent = created(socket, "a")["id"]
    verb = {"type": "x.fork", "response_id": parent, "at_token": 7, "stream_id": "b", "drop_parent": True}
    socket.send({**verb, "max_output_tokens": 20})
    await socket.until_over(2)
    assert final(socket, "a")["status"] == "cancelled"
    assert text(final(socket, "b")) == answer(bench.prompts[0], 20, 1).decode()
    assert bench.scheduler.counters.prefill_tokens_computed == len(bench.prompts[0])
    socket.drop(1000)
    await bench.baseline()


async def test_an_answer_that_has_ended_can_be_forked_while_it_is_held() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("one", stream_id="a", max_output_tokens=30)
    await socket.until_over()
    socket.create("two", stream_id="a", previous_response_id=finals(socket)[0]["id"], max_output_tokens=50)
    await socket.until_over(2)
    parent = finals(socket)[1]
    spent = bench.scheduler.counters.prefill_tokens_computed
    verb = {"type": "x.fork", "response_id": parent["id"], "stream_id": "b", "max_output_tokens": 60}
    socket.send({**verb, "at_token": 25, "seed": 9})
    await socket.until_over(3)
    prompt = bench.prompts[1]
    kept = answer(prompt, 25, 1)
    assert text(finals(socket)[2]).encode() == kept + answer(prompt + list(kept), 35, 9)
    more = bench.scheduler.counters.prefill_tokens_computed - spent
    assert more <= bench.engine.page_size, "whole pages come from the cache"
    other = bench.socket(ext="1")
    other.send({**verb, "at_token": 0, "stream_id": "c"})
    await other.until_over()
    assert "assistant: " in bytes(bench.prompts[-1]).decode(), "the conversation before it is part of it"
    bench.clock.advance(200.0)
    socket.send({**verb, "at_token": 1, "stream_id": "d"})
    bench.flush()
    (error,) = of(socket, "x.error")
    assert error["error"]["code"] == "response_not_found"
    for each in (socket, other):
        each.drop(1000)
    bench.clock.advance(200.0)
    await bench.baseline()


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"at_token": 10_000}, "fork_point_invalid", None),
        ({"at_token": -1}, "invalid_value", "at_token"),
        ({"at_token": None}, "invalid_value", "at_token"),
        ({"at_char": 1}, "invalid_value", "at_token"),
        ({"stream_id": "a"}, "lane_busy", "stream_id"),
        ({"stream_id": "a b"}, "invalid_stream_id", "stream_id"),
        ({"stream_id": None}, "invalid_value", "stream_id"),
        ({"response_id": "resp_x"}, "response_not_found", "response_id"),
        ({"max_output_tokens": 3}, "fork_point_invalid", None),
        ({"max_output_tokens": 1 << 20}, "context_length_exceeded", "max_output_tokens"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"input": "x"}, "unknown_parameter", "input"),
        ({"logit_bias": {"300": 1}}, "invalid_value", "logit_bias"),
    ],
)
async def test_a_fork_that_cannot_be_disturbs_nobody(
    change: dict[str, Any], code: str, param: str | None
) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=50)
    await bench.until(lambda: len(told(socket, "a")) > 10)
    verb = {"type": "x.fork", "response_id": created(socket, "a")["id"], "at_token": 5, "stream_id": "b"}
    socket.send({**verb, **change, "event_id": "e"})
    bench.flush()
    (error,) = of(socket, "x.error")
    assert (error["error"]["code"], error["error"]["param"], error["event_id"]) == (code, param, "e")
    await socket.until_over()
    assert text(final(socket, "a")) == answer(bench.prompts[0], 50, 1).decode()
    socket.drop(1000)
    bench.clock.advance(200.0)
    await bench.baseline()


async def test_a_fork_can_be_cut_resumed_and_forked_again() -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=200)
    await bench.until(lambda: len(told(socket, "a")) > 40)
    verb = {"type": "x.fork", "at_token": 30, "seed": 7, "max_output_tokens": 100}
    socket.send({**verb, "response_id": created(socket, "a")["id"], "stream_id": "b"})
    await bench.until(lambda: len(told(socket, "b")) > 50)
    child = created(socket, "b")
    socket.drop(1006)
    new = bench.socket(ext="1")
    new.send(
        {
            "type": "x.resume", "response_id": child["id"], "resume_token": child["x_resume_token"],
            "starting_after": -1,
        }
    )  # fmt: skip
    new.send({**verb, "response_id": child["id"], "at_token": 45, "seed": 3, "stream_id": "c"})
    await new.until_over(2)
    prompt = bench.prompts[0]
    kept = answer(prompt, 30, 1)
    second = kept + answer(prompt + list(kept), 70, 7)
    assert text(final(new, "b")).encode() == second
    assert text(final(new, "c")).encode() == second[:45] + answer(prompt + list(second[:45]), 55, 3)
    assert bench.scheduler.counters.prefill_tokens_computed == len(prompt)
    new.drop(1000)
    bench.clock.advance(200.0)
    await bench.baseline()
