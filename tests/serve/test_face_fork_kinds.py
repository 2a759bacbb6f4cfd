"""Forks of answers that follow a grammar, that tell logprobs, and that have ended."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from face_bench import FaceBench, Socket
from face_said import finals, text
from fake_engine import likely, replay
from fake_prompter import letters
from jsonschema import validate
from scripted_model import END, always

from headrace.runtime.request import SamplingParams

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"type": "string", "maxLength": 40}, "kind": {"enum": ["rain", "sun"]}},
    "required": ["at", "kind"],
    "additionalProperties": False,
}
SHAPE = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}}
RAIN = '{"at": "Rome", "kind": "rain"}'


def answer(prompt: list[int], count: int, seed: int) -> bytes:
    return bytes(replay(prompt, count, SamplingParams(seed=seed), 256, letters))


def deltas(socket: Socket, lane: str) -> list[dict[str, Any]]:
    return [e for e in socket.said if e["type"] == "response.output_text.delta" and e["stream_id"] == lane]


def final(socket: Socket, lane: str) -> dict[str, Any]:
    ends = ("response.completed", "response.incomplete")
    (event,) = [e for e in socket.said if e.get("stream_id") == lane and e["type"] in ends]
    return dict(event["response"])


def fork(parent: str, lane: str, **fields: Any) -> dict[str, Any]:
    return {"type": "x.fork", "response_id": parent, "stream_id": lane, **fields}


async def at_rest(bench: FaceBench, *sockets: Socket) -> None:
    for socket in sockets:
        socket.drop(1000)
    bench.clock.advance(200.0)
    await bench.baseline()


def guided(**fields: Any) -> tuple[FaceBench, Socket]:
    bench = FaceBench(gated=True, choose=always(RAIN), eos=frozenset({END}), form={"reasoning": ""})
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", text=SHAPE, max_output_tokens=200, **fields)
    return bench, socket


@pytest.mark.parametrize("ended", [False, True])
async def test_a_guided_answer_is_forked_at_every_token(ended: bool) -> None:
    bench, socket = guided()
    if ended:
        await socket.until_over()
    else:
        await bench.until(lambda: len(text_of(socket, "a")) == len(RAIN) - 1)
    parent = socket.said[0]["response"]["id"]
    spent = bench.scheduler.counters.prefill_tokens_computed
    for at in range(0, len(RAIN), 3):
        socket.send(fork(parent, f"f{at}", at_token=at, seed=at))
        await bench.until(lambda n=at: any(e.get("stream_id") == f"f{n}" for e in finals_of(socket)))  # type: ignore[misc]
        said = text(final(socket, f"f{at}"))
        assert said[:at] == RAIN[:at]
        validate(json.loads(said), SCHEMA)
    assert bench.scheduler.counters.prefill_tokens_computed == spent
    await at_rest(bench, socket)


def finals_of(socket: Socket) -> list[dict[str, Any]]:
    return [e for e in socket.said if e["type"] in ("response.completed", "response.incomplete", "x.error")]


def text_of(socket: Socket, lane: str) -> str:
    return "".join(event["delta"] for event in deltas(socket, lane))


async def test_what_is_written_into_a_guided_answer_must_fit_it() -> None:
    bench, socket = guided()
    await bench.until(lambda: len(text_of(socket, "a")) >= 12)
    parent = socket.said[0]["response"]["id"]
    cut = RAIN.index("Rome")
    socket.send(fork(parent, "good", at_char=cut, force_text='Paris", "kind": "su'))
    socket.send({**fork(parent, "bad", at_char=cut, force_text='Paris" ]'), "event_id": "e"})
    socket.send({**fork(parent, "beyond", at_char=0, force_text=RAIN + " and more"), "event_id": "f"})
    await bench.until(lambda: any(e.get("stream_id") == "good" for e in finals_of(socket)))
    assert json.loads(text(final(socket, "good"))) == {"at": "Paris", "kind": "sun"}
    errors = [e for e in socket.said if e["type"] == "x.error"]
    assert [(e["event_id"], e["error"]["code"]) for e in errors] == [
        ("e", "fork_point_invalid"), ("f", "fork_point_invalid"),
    ]  # fmt: skip
    await at_rest(bench, socket)


async def test_guided_branches() -> None:
    bench, socket = guided(x_branches={"n": 3, "at": 8})
    await socket.until_over(3)
    for k in range(3):
        validate(json.loads(text(final(socket, f"a#{k}"))), SCHEMA)
    await at_rest(bench, socket)


@pytest.mark.parametrize(("top", "ended"), [(0, False), (3, False), (20, True)])
async def test_logprobs_of_what_is_kept_are_told_again(top: int, ended: bool) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket(ext="1")
    include = ["message.output_text.logprobs"]
    socket.create("q", stream_id="a", max_output_tokens=40, include=include, top_logprobs=top)
    await bench.until(lambda: len(text_of(socket, "a")) >= (40 if ended else 25))
    if ended:
        await socket.until_over()
    parent = socket.said[0]["response"]["id"]
    for lane, at in (("b", 25), ("c", 24)):
        socket.send(fork(parent, lane, at_token=at, force_text="So, " if lane == "b" else None, seed=7))
        parent = (await created(bench, socket, lane))["id"]  # a fork of a fork
        await bench.until(lambda name=lane: any(e.get("stream_id") == name for e in finals_of(socket)))  # type: ignore[misc]
    prompt = bench.prompts[0]
    forced = list(b"So, ")
    kept = list(answer(prompt, 25, 1))
    one = kept + forced + list(answer(prompt + kept + forced, 11, 7))
    two = kept[:24] + list(answer(prompt + kept[:24], 16, 7))
    for lane, said, silent in (("b", one, range(25, 29)), ("c", two, range(0))):
        told = [each for event in deltas(socket, lane) for each in event["logprobs"]]
        found = final(socket, lane)["output"][0]["content"][0]["logprobs"]
        assert len(told) == len(found) == len(said) - len(silent)
        expected = []
        for place, token in enumerate(said):
            if place not in silent:
                ranked = likely([*prompt, *said[:place]], 256)
                expected.append((chr(token), dict(ranked)[token], [value for _, value in ranked[:top]]))
        assert [
            (each["token"], each["logprob"], [rank["logprob"] for rank in each["top_logprobs"]])
            for each in found
        ] == expected
    await at_rest(bench, socket)


async def created(bench: FaceBench, socket: Socket, lane: str) -> dict[str, Any]:
    def events() -> list[dict[str, Any]]:
        return [e for e in socket.said if e["type"] == "response.created" and e["stream_id"] == lane]

    await bench.until(lambda: bool(events()))
    return dict(events()[0]["response"])


async def test_an_answer_that_has_ended_is_forked_at_any_token_without_computing_it_again() -> None:
    rng = random.Random(11)
    bench = FaceBench(gated=True, page_count=1024, slots=40)
    socket = bench.socket(ext="1")
    for number, length in enumerate((3, 47, 60, 61, 62, 63, 64, 65)):
        count = length - len(bench.prompts[-1]) % 16 if number else length
        socket.create(f"question {number}", stream_id="a", max_output_tokens=max(2, count))
        await bench.until(lambda n=number: len(finals(socket)) > n)  # type: ignore[misc]
    spent = bench.scheduler.counters.prefill_tokens_computed
    parents = list(finals(socket))
    for number in range(40):
        which = rng.randrange(len(parents))
        parent, prompt = parents[which], bench.prompts[which]
        size = parent["usage"]["output_tokens"]
        at = rng.choice((size, size, size - 1, rng.randint(0, size)))
        before, steps = len(finals(socket)), len(bench.engine.plans)
        socket.send(fork(parent["id"], f"f{number % 15}", at_token=at, seed=number, max_output_tokens=at + 3))
        await bench.until(lambda n=before: len(finals(socket)) > n)  # type: ignore[misc]
        assert len(bench.engine.plans) - steps <= 3 + bench.engine.depth, "it says its first word at once"
        kept = list(answer(prompt, at, 1))
        assert text(finals(socket)[-1]).encode() == bytes(kept) + answer(prompt + kept, 3, number)
    assert bench.scheduler.counters.prefill_tokens_computed == spent, "nothing was computed again"
    assert len(bench.scheduler.remnants) >= 1 and bench.scheduler.pages_in_use == 0
    bench.runtime.flush_cache()
    parent, prompt = parents[3], bench.prompts[3]
    socket.send(fork(parent["id"], "late", at_token=5, max_output_tokens=9))
    await bench.until(lambda: len(finals(socket)) > 48)
    assert text(finals(socket)[-1]).encode() == answer(prompt, 9, 1), "what is gone is computed again"
    await at_rest(bench, socket)


async def test_what_an_answer_left_behind_goes_before_anything_else() -> None:
    bench = FaceBench(gated=True, page_count=24, slots=4)
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=25)
    await socket.until_over()
    assert len(bench.scheduler.remnants) == 1
    socket.create("w" * 200, stream_id="b", max_output_tokens=120)
    socket.create("v" * 200, stream_id="c", max_output_tokens=120)
    await socket.until_over(3)
    parent = socket.said[0]["response"]["id"]
    socket.send(fork(parent, "d", at_token=24, max_output_tokens=40))
    await socket.until_over(4)
    assert text(final(socket, "d")).encode() == answer(bench.prompts[0], 40, 1)
    await at_rest(bench, socket)


async def test_characters_are_counted_in_what_was_said() -> None:
    bench = FaceBench(
        gated=True, choose=always("<think>let me see</think>The rain in Spain"), form={"reasoning": "think"}
    )
    socket = bench.socket(ext="1")
    socket.create("q", stream_id="a", max_output_tokens=43)
    await bench.until(lambda: text_of(socket, "a").endswith("Spain"))
    parent = socket.said[0]["response"]["id"]
    for at in (0, 4, 17):
        socket.send(fork(parent, f"f{at}", at_char=at, force_text="!", max_output_tokens=50))
        await bench.until(lambda n=at: any(e.get("stream_id") == f"f{n}" for e in finals_of(socket)))  # type: ignore[misc]
        found = final(socket, f"f{at}")
        assert found["output"][0]["type"] == "reasoning", "what was thought is kept"
        assert found["output"][-1]["content"][0]["text"].startswith("The rain in Spain"[:at] + "!")
        assert found["x_forked_from"]["at_token"] == len("<think>let me see</think>") + at
    socket.send(fork(parent, "g", at_char=18))
    bench.flush()
    assert socket.said[-1]["error"]["code"] == "fork_point_invalid"
    await at_rest(bench, socket)
