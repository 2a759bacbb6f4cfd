"""Prompts typed ahead on the Responses socket (`x.input.…`): edits, commits, mistakes and ends (P6.3, M5)."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from face_bench import BOB, FaceBench, Socket
from face_said import by_lane, finals, text
from fake_engine import replay
from fake_prompter import CARD, letters
from strict_responses import check_sequence
from typing_scripts import script

from headrace.runtime.request import SamplingParams

WORDS = "the water of the river turns the wheel of the mill "


def of(socket: Socket, kind: str) -> list[dict[str, Any]]:
    return [event for event in socket.said if event["type"] == kind]


def append(socket: Socket, words: str, **fields: Any) -> None:
    socket.send({"type": "x.input.append", "text": words, **fields})


def commit(socket: Socket, **fields: Any) -> None:
    socket.send({"type": "x.input.commit", "seed": 1, "max_output_tokens": 5, **fields})


def newest_ack(bench: FaceBench, socket: Socket) -> dict[str, Any]:
    bench.clock.advance(1.0)
    bench.flush()
    return of(socket, "x.input.ack")[-1]


async def rested(bench: FaceBench, socket: Socket) -> dict[str, Any]:
    """The newest ack, when everything that is certain has been computed and nobody reads any more."""

    def idle() -> bool:
        drafts = [*bench.runtime.drafting._all]
        done = all(not d.reading and d.read == d.text for d in drafts)
        return done and not bench.scheduler.drafts.due and not bench.loop.flight

    await bench.until(idle)
    return newest_ack(bench, socket)


def plain(socket: Socket, lane: str) -> list[str]:
    """A lane as a stock client would have been told it."""
    rows = [raw for raw in by_lane(socket, lane) if '"type":"x.' not in raw]
    return [re.sub(r'"x_resume_token":"[^"]*",', "", raw) for raw in rows]


def errors(socket: Socket) -> list[tuple[str, str | None]]:
    return [(event["error"]["code"], event["error"]["param"]) for event in of(socket, "x.error")]


@pytest.fixture
async def bench() -> Any:
    made = FaceBench(gated=True, page_count=512)
    yield made
    await made.baseline()
    assert made.runtime.stats()["drafts"] == 0 and not made.scheduler.drafts.held
    made.runtime.close()


async def test_a_typed_prompt_is_answered_as_a_plain_one(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    append(socket, WORDS * 6, stream_id="a", model="fake", instructions="be brief", event_id="e1")
    bench.flush()
    first = of(socket, "x.input.ack")[0]
    assert (first["rev"], first["chars"], first["event_id"], first["stream_id"]) == (
        1,
        6 * len(WORDS),
        "e1",
        "a",
    )
    append(socket, "and why?", stream_id="a")
    socket.send({"type": "x.input.replace", "stream_id": "a", "from_char": 4, "to_char": 9, "text": "ice"})
    ack = await rested(bench, socket)
    assert ack["rev"] == 3 and ack["chars"] == 6 * len(WORDS) + 8 - 2
    assert ack["tokens_prefilled"] == ack["tokens_stable"] > 6 * len(WORDS) - 20 and ack["settled"]
    assert not first["settled"]
    steps = len(bench.engine.plans)
    commit(socket, stream_id="a", metadata={"k": "v"}, event_id="e2")
    await socket.until(lambda: bool(of(socket, "response.output_text.delta")))
    assert len(bench.engine.plans) - steps <= 2, "the answer began within two steps"
    await socket.until_over()
    typed = "the ice of the river turns the wheel of the mill " + WORDS * 5 + "and why?"
    (said,) = finals(socket)
    prompt = list(f"system: be brief\nuser: {typed}\nassistant: ".encode())
    assert bench.prompts == [prompt]
    assert text(said).encode() == bytes(replay(prompt, 5, SamplingParams(seed=1), 256, letters))
    assert said["metadata"] == {"k": "v"} and said["instructions"] == "be brief"
    check_sequence(plain(socket, "a"))
    (told,) = of(socket, "x.input.committed")
    assert told["response_id"] == said["id"] and told["event_id"] == "e2" and told["stream_id"] == "a"
    cached = said["usage"]["input_tokens_details"]["cached_tokens"]
    assert told["tokens_ready"] == told["tokens_ahead"] == cached > 300
    stats = bench.runtime.stats()
    assert stats["draft_tokens_wasted"] == told["tokens_wasted"] >= 0
    assert stats["draft_tokens_computed"] == told["tokens_ahead"] + told["tokens_wasted"]


async def test_a_typed_turn_continues_a_conversation(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    socket.create(WORDS * 8, stream_id="a")
    await socket.until_over(1)
    previous = finals(socket)[-1]["id"]
    append(socket, "go on", stream_id="a", model="fake", previous_response_id=previous)
    ack = await rested(bench, socket)
    assert ack["tokens_prefilled"] > 8 * len(WORDS)
    assert bench.scheduler.drafts.computed < 64, "the conversation was in the cache"
    commit(socket, stream_id="a")
    await socket.until_over(2)
    said = finals(socket)[-1]
    assert said["previous_response_id"] == previous
    assert bytes(bench.prompts[-1]).decode().endswith("\nuser: go on\nassistant: ")
    (told,) = of(socket, "x.input.committed")
    assert told["tokens_ready"] > 8 * len(WORDS) > 64 > told["tokens_ahead"]


async def test_typing_may_begin_while_the_answer_before_is_written(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    socket.create("one", stream_id="a", max_output_tokens=30)
    await socket.until(lambda: bool(of(socket, "response.created")))
    previous = of(socket, "response.created")[0]["response"]["id"]
    append(socket, "and th", stream_id="a", model="fake", previous_response_id=previous)
    bench.flush()
    assert of(socket, "x.input.ack")[-1]["tokens_stable"] == 0
    await socket.until_over(1)
    append(socket, "en? " + WORDS, stream_id="a")
    assert (await rested(bench, socket))["tokens_prefilled"] > 60
    commit(socket, stream_id="a")
    await socket.until_over(2)
    assert bytes(bench.prompts[-1]).decode().endswith(f"\nuser: and then? {WORDS}\nassistant: ")


async def test_a_commit_waits_for_its_lane_and_another_draft_may_be_typed_behind_it(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    socket.create("one", stream_id="a", max_output_tokens=20)
    await socket.until(lambda: bool(of(socket, "response.created")))
    append(socket, WORDS, stream_id="a", model="fake")
    await bench.until(lambda: not bench.scheduler.drafts.due)
    commit(socket, stream_id="a")
    append(socket, "the third " + WORDS, stream_id="a", model="fake")
    await socket.until_over(2)
    await rested(bench, socket)
    commit(socket, stream_id="a")
    await socket.until_over(3)
    assert [bytes(prompt).decode().split("\n")[0] for prompt in bench.prompts] == [
        "user: one",
        f"user: {WORDS}",
        f"user: the third {WORDS}",
    ]
    assert len(of(socket, "x.input.committed")) == 2


async def test_scripts_of_edits_leave_the_text_that_a_person_sees(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    for seed in range(6):
        rng = random.Random(seed)
        seen = ""
        append(socket, "", stream_id="a", model="fake")
        for now in script(rng, 12):
            start = kept = 0
            while start < min(len(seen), len(now)) and seen[start] == now[start]:
                start += 1
            while kept < min(len(seen), len(now)) - start and seen[-1 - kept] == now[-1 - kept]:
                kept += 1
            verb = {"type": "x.input.replace", "stream_id": "a", "from_char": start}
            verb |= {"to_char": len(seen) - kept, "text": now[start : len(now) - kept]}
            socket.send(verb)
            seen = now
            bench.flush()
            bench.engine.land(1)
        if not seen:
            socket.send({"type": "x.input.discard", "stream_id": "a"})
            continue
        commit(socket, stream_id="a")
        over = len(finals(socket))
        await bench.until(lambda n=over: len(finals(socket)) > n)  # type: ignore[misc]
        assert bytes(bench.prompts[-1]).decode() == f"user: {seen}\nassistant: "
    assert not of(socket, "x.error")


async def test_acks_come_ten_times_a_second_at_most(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    append(socket, "x", model="fake")
    for _ in range(50):
        append(socket, "x")
        bench.flush()
    assert len(of(socket, "x.input.ack")) == 1
    bench.clock.advance(0.1)
    bench.flush()
    second = of(socket, "x.input.ack")[1:]
    assert [(ack["rev"], ack["chars"]) for ack in second] == [(51, 51)] and "stream_id" not in second[0]
    bench.clock.advance(0.05)
    append(socket, "x")
    bench.flush()
    assert len(of(socket, "x.input.ack")) == 2
    socket.send({"type": "x.input.discard"})
    bench.clock.advance(1.0)
    bench.flush()
    assert len(of(socket, "x.input.ack")) == 2, "nothing is said of what is gone"


@pytest.mark.parametrize("end", ["discard", "cancel", "close", "lost", "idle", "drain"])
async def test_what_is_not_sent_leaves_nothing(bench: FaceBench, end: str) -> None:
    socket = bench.socket(ext="1")
    cached = bench.scheduler.tree.cached_pages
    for moment in ("read", "in a chunk", "at rest"):
        if socket.gone:
            socket = bench.socket(ext="1")
        append(socket, WORDS * 10, stream_id="a", model="fake")
        if moment == "in a chunk":
            await bench.until(lambda: bool(bench.engine.held))
        elif moment == "at rest":
            await rested(bench, socket)
            assert bench.scheduler.pages_in_use > 20
        if end == "discard":
            socket.send({"type": "x.input.discard", "stream_id": "a"})
        elif end == "cancel":
            socket.send({"type": "response.cancel", "stream_id": "a"})
        elif end in ("close", "lost"):
            socket.drop(1000 if end == "close" else 1006)
        elif end == "idle":
            bench.clock.advance(118.0)
            append(socket, ".", stream_id="a")
            bench.clock.advance(118.0)
            assert bench.runtime.stats()["drafts"] == 1
            bench.clock.advance(3.0)
            bench.flush()
            assert of(socket, "x.input.ended")[-1] == {
                "type": "x.input.ended",
                "reason": "idle",
                "stream_id": "a",
            }
        else:
            socket.session.drain()
        assert bench.runtime.stats()["drafts"] == 0
        await bench.baseline()
        assert bench.scheduler.tree.cached_pages == cached
        assert bench.scheduler.pool.used_count == cached
        if end == "drain":
            assert socket.wire.close_code == 1012
    stats = bench.runtime.stats()
    assert stats["draft_tokens_wasted"] == stats["draft_tokens_computed"] > 500


async def test_mistakes_are_typed_and_change_nothing(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    append(socket, "abcdef", stream_id="a", model="fake")
    opens = {"stream_id": "b", "text": "x", "model": "fake"}
    none = {"previous_response_id": "resp_no"}
    edit = {"stream_id": "a", "from_char": 3, "text": ""}
    wrong: list[tuple[str, dict[str, Any], str, str | None]] = [
        ("append", {**opens, "model": "other"}, "model_not_found", "model"),
        ("append", {"stream_id": "b", "text": "x"}, "missing_required_parameter", "model"),
        ("append", {"stream_id": "a"}, "invalid_value", "text"),
        ("append", {"stream_id": "a", "text": "x", "image_ref": "y"}, "invalid_value", "text"),
        ("append", {"stream_id": "a", "text": "x", "model": "fake"}, "invalid_value", "model"),
        ("append", {"stream_id": "a", "text": "x", "tools": []}, "invalid_value", "tools"),
        ("append", {"stream_id": "a", "text": 5}, "invalid_value", "text"),
        ("append", {"stream_id": "a", "text": "x", "y": 1}, "unknown_parameter", "y"),
        ("append", {**opens, "stream_id": "a b"}, "invalid_stream_id", "stream_id"),
        ("append", {**opens, **none}, "previous_response_not_found", "previous_response_id"),
        ("append", {"stream_id": "a", "image_ref": "sha256:none"}, "invalid_value", None),
        ("replace", {**edit, "stream_id": "b"}, "draft_not_found", "stream_id"),
        ("replace", {**edit, "from_char": 7}, "invalid_value", "from_char"),
        ("replace", {**edit, "from_char": -1}, "invalid_value", "from_char"),
        ("replace", {**edit, "to_char": 2}, "invalid_value", "to_char"),
        ("replace", {**edit, "to_char": 9}, "invalid_value", "to_char"),
        ("replace", {"stream_id": "a", "from_char": 3}, "missing_required_parameter", "text"),
        ("discard", {"stream_id": "b"}, "draft_not_found", "stream_id"),
        ("commit", {"stream_id": "b"}, "draft_not_found", "stream_id"),
        ("commit", {"stream_id": "a", "input": "x"}, "invalid_value", "input"),
        ("commit", {"stream_id": "a", "rev": 2}, "draft_changed", "rev"),
        ("commit", {"stream_id": "a", "temperature": 9}, "invalid_value", "temperature"),
        ("commit", {"stream_id": ""}, "invalid_stream_id", "stream_id"),
    ]
    for verb, fields, code, param in wrong:
        before = len(of(socket, "x.error"))
        socket.send({"type": f"x.input.{verb}", **fields, "event_id": "mine"})
        bench.flush()
        told = of(socket, "x.error")
        assert len(told) == before + 1, (verb, fields)
        error = told[-1]["error"]
        assert error["code"] == code, (verb, fields, error)
        if param is not None:
            assert error["param"] == param, (verb, fields, error)
        assert told[-1]["event_id"] == "mine"
    assert not of(socket, "error") and bench.runtime.stats()["drafts"] == 1
    commit(socket, stream_id="a")
    await socket.until_over()
    assert bytes(bench.prompts[-1]).decode() == "user: abcdef\nassistant: ", "it is as it was"


async def test_a_connection_that_drains_takes_no_draft(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    socket.create("hello")
    append(socket, "x", stream_id="a", model="fake")
    socket.session.drain()
    append(socket, "x", stream_id="a", model="fake")
    bench.flush()
    assert errors(socket) == [("server_is_overloaded", None)]
    await socket.until_over()


async def test_nothing_typed_is_nothing_to_send(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    append(socket, "", model="fake")
    commit(socket)
    bench.flush()
    assert errors(socket) == [("invalid_value", "stream_id")] and bench.runtime.stats()["drafts"] == 1
    append(socket, "hi")
    commit(socket)
    await socket.until_over()
    assert bytes(bench.prompts[-1]).decode() == "user: hi\nassistant: "


async def test_drafts_are_few_and_bounded() -> None:
    bench = FaceBench(gated=True, settings={"drafts": 2, "waiting_bytes": 1 << 12})
    socket = bench.socket(ext="1")
    for lane in "abc":
        append(socket, "x", stream_id=lane, model="fake")
    append(socket, "x" * (1 << 20), stream_id="a")
    append(socket, "x" * (1 << 13), stream_id="a")
    bench.flush()
    assert errors(socket) == [
        ("draft_limit_reached", "stream_id"),
        ("draft_too_long", "text"),
        ("server_is_overloaded", None),
    ]
    socket.send({"type": "x.input.discard", "stream_id": "a"})
    append(socket, "x", stream_id="c", model="fake")
    append(socket, "x" * 4000, stream_id="c")
    socket.send({"type": "x.input.replace", "stream_id": "c", "from_char": 2, "text": ""})
    append(socket, "y" * 4000, stream_id="b")
    bench.flush()
    assert len(of(socket, "x.error")) == 3, "what was let go counts no more"
    socket.drop(1006)
    assert socket.session._lanes.budget.used == 0
    await bench.baseline()


async def test_a_commit_that_is_refused_leaves_the_draft_or_ends_it() -> None:
    bench = FaceBench(gated=True, waiting_limit=1)
    socket = bench.socket(ext="1")
    append(socket, WORDS, stream_id="a", model="fake")
    await rested(bench, socket)
    commit(socket, stream_id="a", background=True)
    bench.flush()
    assert of(socket, "error")[-1]["error"]["param"] == "background", "the request was taken, and refused"
    assert bench.runtime.stats()["drafts"] == 0
    append(socket, WORDS, stream_id="a", model="fake")
    socket.create("waits", stream_id="b")
    commit(socket, stream_id="a")
    await bench.until(lambda: bool(finals(socket)) and len(finals(socket)) + len(of(socket, "error")) == 3)
    assert bench.runtime.stats()["drafts"] == 0
    await bench.baseline()


async def test_the_commit_may_change_what_the_draft_was_opened_with(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    append(socket, WORDS * 4, stream_id="a", model="fake", instructions="one")
    await rested(bench, socket)
    commit(socket, stream_id="a", instructions="two")
    await socket.until_over()
    assert bytes(bench.prompts[-1]).decode() == f"system: two\nuser: {WORDS * 4}\nassistant: "
    (told,) = of(socket, "x.input.committed")
    assert told["tokens_ready"] < 20 and told["tokens_wasted"] > 150


async def test_a_commit_for_branches_is_told_with_the_first_of_them(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    append(socket, WORDS * 4, stream_id="a", model="fake")
    await rested(bench, socket)
    commit(socket, stream_id="a", x_branches={"n": 2}, event_id="e")
    await socket.until_over(2)
    (told,) = of(socket, "x.input.committed")
    (first,) = [e for e in of(socket, "response.created") if e["stream_id"] == "a#0"]
    assert (told["response_id"], told["stream_id"], told["event_id"]) == (first["response"]["id"], "a", "e")
    assert told["tokens_ahead"] > 150
    socket.drop(1000)
    bench.clock.advance(200.0)


async def test_a_commit_that_is_refused_hears_of_no_response(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    append(socket, WORDS, stream_id="a", model="fake")
    await rested(bench, socket)
    commit(socket, stream_id="a", max_output_tokens=1 << 20)
    await socket.until_over()
    (error,) = of(socket, "error")
    assert error["error"]["code"] == "context_length_exceeded" and not of(socket, "x.input.committed")


async def test_a_salt_parts_drafts_as_it_parts_requests(bench: FaceBench) -> None:
    one, other = bench.socket(ext="1"), bench.socket(BOB, ext="1")
    append(one, WORDS * 10, model="fake", cache_salt="s")
    await rested(bench, one)
    append(other, WORDS * 10, model="fake")
    assert (await rested(bench, other))["tokens_prefilled"] > 400
    assert bench.scheduler.drafts.computed > 800, "nobody reads what another tenant typed"
    commit(one)
    await one.until_over()
    (told,) = of(one, "x.input.committed")
    assert told["tokens_ahead"] > 400
    other.send({"type": "x.input.discard"})


async def test_a_picture_is_typed_by_its_name() -> None:
    sees = FaceBench(gated=True, card=CARD.__class__(**{**_card(), "sees": True}))
    socket = sees.socket(ext="1")
    socket.send(PNG)
    sees.flush()
    (held,) = of(socket, "x.image")
    append(socket, "what is ", stream_id="a", model="fake")
    socket.send({"type": "x.input.append", "stream_id": "a", "image_ref": held["image_ref"]})
    append(socket, " doing?", stream_id="a")
    socket.send({"type": "x.input.replace", "stream_id": "a", "from_char": 0, "to_char": 4, "text": "Who"})
    await rested(sees, socket)
    commit(socket, stream_id="a")
    await socket.until_over()
    (ask,) = sees.asks
    (message,) = ask.messages or ()
    assert message.content == "Who is  doing?" and [picture.at for picture in message.pictures] == [7]
    assert not of(socket, "x.error")
    socket.drop(1000)
    await sees.baseline()


async def test_a_draft_takes_the_pictures_that_a_request_may_show(bench: FaceBench) -> None:
    socket = bench.socket(ext="1")
    socket.send({"type": "x.input.append", "image_ref": "sha256:0", "model": "fake"})
    bench.flush()
    assert errors(socket) == [("invalid_value", "image_ref")]
    socket.send(PNG)
    bench.flush()
    (held,) = of(socket, "x.image")
    append(socket, "", model="fake")
    for _ in range(9):
        socket.send({"type": "x.input.append", "image_ref": held["image_ref"]})
    bench.flush()
    assert errors(socket)[1:] == [("draft_too_long", "image_ref")]
    socket.send({"type": "x.input.discard"})
    socket.drop(1000)


async def test_a_key_does_not_cost_what_its_pictures_weigh(monkeypatch: pytest.MonkeyPatch) -> None:
    sees = FaceBench(gated=True, card=CARD.__class__(**{**_card(), "sees": True}))
    socket = sees.socket(ext="1")
    socket.send(PNG)
    sees.flush()
    (held,) = of(socket, "x.image")
    append(socket, "what", stream_id="a", model="fake")
    socket.send({"type": "x.input.append", "stream_id": "a", "image_ref": held["image_ref"]})
    resolved: list[Any] = []
    pictures = socket.session._pictures
    whole = pictures.resolved
    monkeypatch.setattr(pictures, "resolved", lambda request: resolved.append(request) or whole(request))
    for key in " is this?":
        append(socket, key, stream_id="a")
    socket.send({"type": "x.input.replace", "stream_id": "a", "from_char": 0, "to_char": 4, "text": "Who"})
    await rested(sees, socket)
    assert not resolved and not errors(socket)
    commit(socket, stream_id="a")
    await socket.until_over()
    (ask,) = sees.asks
    (message,) = ask.messages or ()
    assert message.content == "Who is this?" and [picture.at for picture in message.pictures] == [3]
    socket.drop(1000)
    await sees.baseline()


def _card() -> dict[str, Any]:
    return {name: getattr(CARD, name) for name in CARD.__dataclass_fields__}


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 24


async def test_stock_clients_never_hear_of_it(bench: FaceBench) -> None:
    socket = bench.socket()
    socket.create("hello")
    await socket.until_over()
    assert not [event for event in socket.said if event["type"].startswith("x.")]
