"""Responses that others than their owner look at: read, followed from any number, cancelled, in the background."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import BOB, FaceBench, Fetch
from face_said import prompt_of, text
from hypothesis import given
from hypothesis import strategies as st
from strict_responses import check_response, check_sequence

from headrace.runtime.plan import NON_FINITE
from headrace.server.faces import following
from headrace.server.faces import tape as tape_module
from headrace.server.faces.tape import Tape


def raws_of(fetch: Fetch) -> list[str]:
    """The events of a streamed reply as JSON, each under its own name."""
    raws = []
    for block in fetch.body.decode().split("\n\n"):
        if block.startswith("event: "):
            name, _, data = block.partition("\n")
            raw = data.removeprefix("data: ")
            assert json.loads(raw)["type"] == name.removeprefix("event: ")
            raws.append(raw)
    return raws


def follow(bench: FaceBench, response_id: str, after: int | None = None, **query: str) -> Fetch:
    query = {"stream": "true", **({} if after is None else {"starting_after": str(after)}), **query}
    return bench.fetch(f"/v1/responses/{response_id}", query=query)


def post(bench: FaceBench, response_id: str, verb: str = "cancel", **options: Any) -> Fetch:
    return bench.fetch(f"/v1/responses/{response_id}/{verb}", method="POST", **options)


# -- the tape --------------------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.one_of(st.binary(max_size=5).map(lambda b: json.dumps(b.hex()).encode()), st.text(max_size=9))
)


@given(EVENTS, st.integers(0, 40))
def test_a_tape_says_the_same_before_and_after_it_was_packed(events: list[bytes | str], start: int) -> None:
    tape, said = Tape(), []
    templates = [('{"n":', ',"d":', "}"), ('{"m":', ',"t":', "}")]
    for number, event in enumerate(events):
        if isinstance(event, bytes):
            tape.event(number, event)
            said.append(event.decode())
        else:
            begin, middle, end = template = templates[number // 5 % 2]
            tape.delta(template, event)
            said.append(f"{begin}{number}{middle}{json.dumps(event, ensure_ascii=False)}{end}")
    assert [json.loads(raw) for raw in tape.since(start)] == [json.loads(raw) for raw in said[start:]]
    again = Tape.unpack(tape.pack())
    assert again.since(start) == tape.since(start) and len(again) == len(events)


# -- following -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["socket", "sse", "whole"])
@pytest.mark.parametrize("joins", [0, 1, 7])
async def test_a_running_response_is_followed_by_the_same_bytes(owner: str, joins: int) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    if owner == "socket":
        socket.create("hello", max_output_tokens=30)
    else:
        mine = bench.respond("hello", max_output_tokens=30, stream=owner == "sse")
    await bench.until(lambda: bool(bench.routes) and len(_running(bench)) == 1)
    response = next(iter(_running(bench)))
    await bench.until(lambda: len(response.tape) >= 2 + joins)
    early, late = follow(bench, response.run.id), follow(bench, response.run.id, 4)
    await bench.until(lambda: response.over)
    after = follow(bench, response.run.id), follow(bench, response.run.id, 4)
    for fetch in (early, late, *after):
        await fetch.done()
        assert fetch.status == 200 and fetch.body.endswith(b"data: [DONE]\n\n")
    raws = raws_of(early)
    check_sequence(raws)
    assert raws == raws_of(after[0])
    assert raws_of(late) == raws_of(after[1]) == raws[5:]
    if owner == "socket":
        await socket.until_over()
        assert socket.raw == raws
    else:
        await mine.done()
        assert (raws_of(mine) == raws) if owner == "sse" else (mine.json == json.loads(raws[-1])["response"])
    assert not response.followers
    await bench.baseline()


def _running(bench: FaceBench) -> list[Any]:
    return list(bench.running._by_id.values())


async def test_a_long_response_is_told_again_piece_by_piece() -> None:
    bench = FaceBench()
    mine = await bench.respond("hello", stream=True, max_output_tokens=1500).done()
    raws = raws_of(mine)
    assert len(raws) > 3 * following.AT_ONCE
    fetch = follow(bench, json.loads(raws[0])["response"]["id"])
    assert not fetch.chunks
    fetch.pump()
    assert len(fetch.chunks) == following.AT_ONCE and not fetch.over
    assert raws_of(await fetch.done()) == raws


def test_a_very_long_tape_is_packed_too() -> None:
    tape = Tape()
    for number in range(3):
        tape.event(number, json.dumps("x" * tape_module.SQUEEZED).encode())
    assert Tape.unpack(tape.pack()).since(0) == tape.since(0)


async def test_every_place_of_a_finished_response() -> None:
    bench = FaceBench()
    mine = await bench.respond("hello", stream=True).done()
    raws = raws_of(mine)
    response_id = json.loads(raws[0])["response"]["id"]
    for after in range(-1, len(raws) + 2):
        fetch = await follow(bench, response_id, after).done()
        assert raws_of(fetch) == raws[after + 1 :] and fetch.body.endswith(b"data: [DONE]\n\n")
    assert bench.fetch(f"/v1/responses/{response_id}", query={"stream": "false"}).json["id"] == response_id


@pytest.mark.parametrize("after", ["x", "", "1.5", "-2", "9" * 30, "\u0663", "0x1"])
async def test_a_bad_place(after: str) -> None:
    bench = FaceBench()
    response_id = (await bench.respond("hello").done()).json["id"]
    fetch = bench.fetch(f"/v1/responses/{response_id}", query={"stream": "true", "starting_after": after})
    assert fetch.status == 400 and fetch.error["param"] == "starting_after"


async def test_a_follower_neither_holds_the_response_up_nor_stops_it() -> None:
    bench = FaceBench(gated=True)
    mine = bench.respond("hello", max_output_tokens=600, stream=True)
    await bench.until(lambda: len(mine.chunks) > 5)
    (response,) = _running(bench)
    leaver, sleeper = follow(bench, response.run.id), follow(bench, response.run.id)
    sleeper.wire.reading = False
    await bench.until(lambda: bool(leaver.chunks))
    leaver.drop()
    await mine.done()
    check_sequence(raws_of(mine))
    sleeper.wire.reading = True
    await sleeper.done()
    assert raws_of(sleeper) == raws_of(mine)
    await bench.baseline()


async def test_a_follower_of_an_abandoned_response_is_told_its_end() -> None:
    bench = FaceBench(gated=True)
    mine = bench.respond("hello", max_output_tokens=600, stream=True)
    await bench.until(lambda: len(mine.chunks) > 5)
    (response,) = _running(bench)
    follower = follow(bench, response.run.id)
    mine.drop()
    await follower.done()
    assert check_sequence(raws_of(follower))[-1]["response"]["status"] == "cancelled"
    assert bench.fetch(f"/v1/responses/{response.run.id}").status == 404, "nothing of it is kept"
    await bench.baseline()
    assert bench.store.bytes == 0


async def test_a_follower_gets_pings_and_a_head() -> None:
    bench = FaceBench(gated=True)
    background = bench.respond("hello", background=True, max_output_tokens=5)
    follower = follow(bench, background.json["id"])
    follower.ping()
    assert follower.status == 200 and follower.body == b": ping\n\n"
    await follower.done()
    check_sequence(raws_of(follower))


async def test_others_and_the_unstored_are_not_found() -> None:
    bench = FaceBench(gated=True)
    shown = bench.respond("hello", max_output_tokens=50)
    hidden = bench.respond("hello", max_output_tokens=50, store=False)
    shown_id, hidden_id = (response.run.id for response in _running(bench))
    for path in ("", "/input_items"):
        assert bench.fetch(f"/v1/responses/{shown_id}{path}", tenant=BOB).status == 404
        assert bench.fetch(f"/v1/responses/{hidden_id}{path}").status == 404
        assert bench.fetch(f"/v1/responses/{shown_id}{path}").status == 200
    assert post(bench, shown_id, tenant=BOB).status == 404
    assert bench.fetch(f"/v1/responses/{hidden_id}", method="DELETE").status == 404
    assert bench.fetch(f"/v1/responses/{shown_id}").json["status"] == "in_progress"
    assert post(bench, hidden_id).json["status"] == "cancelled", "whoever knows the id may stop it"
    assert (await hidden.done()).json["status"] == "cancelled"
    assert (await shown.done()).status == 200
    await bench.baseline()


# -- cancel and delete -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["socket", "sse", "whole", "background"])
async def test_cancel_over_http(owner: str) -> None:
    bench = FaceBench(gated=True)
    socket = bench.socket()
    if owner == "socket":
        socket.create("hello", max_output_tokens=600)
        socket.wire.reading = False
        socket.session.render()
    else:
        mine = bench.respond(
            "hello", max_output_tokens=600, stream=owner == "sse", background=owner == "background"
        )
    (response,) = _running(bench) if owner != "socket" else (None,)
    if response is None:
        await bench.until(lambda: bool(_running(bench)))
        (response,) = _running(bench)
    await bench.until(lambda: response.run.stream.head >= 9)
    cancelled = post(bench, response.run.id)
    body = check_response(cancelled.json) or cancelled.json
    assert cancelled.status == 200 and body["status"] == "cancelled" and body["id"] == response.run.id
    assert len(text(body)) == body["usage"]["output_tokens"] >= 9
    assert post(bench, response.run.id).json == body, "again is the same"
    assert bench.fetch(f"/v1/responses/{response.run.id}").json == body
    if owner == "socket":
        socket.wire.reading = socket.wire.marked = True
        await socket.until_over()
        assert socket.said[-1]["response"] == body
    elif owner == "sse":
        assert check_sequence(raws_of(await mine.done()))[-1]["response"] == body
    elif owner == "whole":
        assert (await mine.done()).json == body and mine.status == 200
    more = await bench.respond("more", previous_response_id=body["id"]).done()
    assert more.status == 200 and prompt_of(bench).startswith(f"user: hello\nassistant: {text(body)}\n")
    await bench.baseline()


async def test_cancel_of_what_has_ended_or_never_was() -> None:
    bench = FaceBench()
    done = (await bench.respond("hello").done()).json
    assert post(bench, done["id"]).json == done
    assert post(bench, "resp_unknown").status == 404


async def test_delete_of_a_running_response_stops_it_and_stores_nothing() -> None:
    bench = FaceBench(gated=True)
    mine = bench.respond("hello", max_output_tokens=600)
    (response,) = _running(bench)
    await bench.until(lambda: response.run.stream.head >= 3)
    deleted = bench.fetch(f"/v1/responses/{response.run.id}", method="DELETE")
    assert deleted.json == {"id": response.run.id, "object": "response", "deleted": True}
    assert (await mine.done()).json["status"] == "cancelled"
    assert bench.fetch(f"/v1/responses/{response.run.id}").status == 404
    await bench.baseline()
    assert bench.store.bytes == 0


# -- background ------------------------------------------------------------------------------------------------


async def test_a_background_response_runs_without_a_connection() -> None:
    bench = FaceBench(gated=True)
    created = bench.respond("hello", background=True, max_output_tokens=40)
    assert created.over and created.status == 200
    check_response(created.json)
    assert created.json["status"] == "queued"
    response_id = created.json["id"]
    assert bench.fetch(f"/v1/responses/{response_id}").json["status"] == "queued"
    (response,) = _running(bench)
    await bench.until(lambda: response.run.stream.head >= 3)
    running = bench.fetch(f"/v1/responses/{response_id}").json
    check_response(running)
    assert running["status"] == "in_progress"
    await bench.until(lambda: response.over)
    final = bench.fetch(f"/v1/responses/{response_id}").json
    check_response(final)
    assert final["incomplete_details"] == {"reason": "max_output_tokens"} and len(text(final)) == 40
    check_sequence(raws_of(await follow(bench, response_id).done()))
    await bench.baseline()
    assert response.turn is None


async def test_a_streamed_background_response_outlives_its_reader() -> None:
    bench = FaceBench(gated=True)
    first = bench.respond("hello", background=True, stream=True, max_output_tokens=40)
    await bench.until(lambda: len(raws_of(first)) >= 6)
    seen = raws_of(first)
    first.drop()
    last = json.loads(seen[-1])["sequence_number"]
    second = await follow(bench, json.loads(seen[0])["response"]["id"], last).done()
    events = check_sequence(seen + raws_of(second))
    assert len(text(events[-1]["response"])) == 40
    await bench.baseline()


@pytest.mark.parametrize("how", ["too long", "not finite"])
async def test_a_background_response_that_fails_says_so_when_asked(how: str) -> None:
    bench = FaceBench(choose=lambda tokens, seed, width: NON_FINITE if len(tokens) > 25 else 97)
    created = bench.respond("x" * 9000 if how == "too long" else "hello", background=True)
    assert created.json["status"] == "queued"
    response_id = created.json["id"]
    await bench.until(lambda: bench.fetch(f"/v1/responses/{response_id}").json["status"] == "failed")
    failed = bench.fetch(f"/v1/responses/{response_id}").json
    check_response(failed)
    assert failed["error"]["code"] == ("invalid_prompt" if how == "too long" else "server_error")
    assert check_sequence(raws_of(await follow(bench, response_id).done()))[-1]["response"] == failed
    await bench.baseline()


async def test_a_background_response_must_be_stored_and_is_none_of_a_sockets() -> None:
    bench = FaceBench()
    assert bench.respond("x", background=True, store=False).error["param"] == "background"
    assert bench.respond("", background=True).status == 400, "what is wrong at once is said at once"


# -- input items -----------------------------------------------------------------------------------------------


async def test_input_items_in_pages() -> None:
    bench = FaceBench()
    asked = [{"role": "user", "content": f"q{n}"} for n in range(5)]
    asked[1] = {
        "type": "message",
        "id": "msg_mine",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "a"}],  # type: ignore[dict-item]
    }
    response_id = (await bench.respond(asked).done()).json["id"]

    def page(**query: str) -> dict[str, Any]:
        return bench.fetch(f"/v1/responses/{response_id}/input_items", query=query).json

    def texts(body: dict[str, Any]) -> list[str]:
        return [item["content"][0]["text"] for item in body["data"]]

    assert texts(page()) == ["q4", "q3", "q2", "a", "q0"]
    assert texts(page(order="asc")) == ["q0", "a", "q2", "q3", "q4"]
    first = page(limit="2", order="asc")
    assert texts(first) == ["q0", "a"] and first["has_more"] is True and first["last_id"] == "msg_mine"
    rest = page(limit="5", order="asc", after="msg_mine")
    assert texts(rest) == ["q2", "q3", "q4"] and rest["has_more"] is False
    assert first["data"][1]["content"] == [{"type": "output_text", "text": "a", "annotations": []}]
    assert first["data"][0]["status"] == "completed" and first["data"][0]["type"] == "message"
    for query in ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"order": "up"}, {"after": "msg_none"}):
        reply = bench.fetch(f"/v1/responses/{response_id}/input_items", query=query)
        assert reply.status == 400 and reply.error["param"] == next(iter(query))


async def test_input_tokens_are_those_that_the_response_will_have() -> None:
    bench = FaceBench()
    first = (await bench.respond("one").done()).json
    body = {"model": "fake", "input": "two", "previous_response_id": first["id"], "instructions": "be kind"}
    counted = await bench.fetch("/v1/responses/input_tokens", body).done()
    second = (await bench.fetch("/v1/responses", {**body, "max_output_tokens": 2}).done()).json
    assert counted.json == {
        "input_tokens": second["usage"]["input_tokens"],
        "object": "response.input_tokens",
    }
    refused = bench.fetch("/v1/responses/input_tokens", {"model": "gpt-9", "input": "x"})
    assert refused.status == 404 and refused.error["param"] == "model"
    await bench.baseline()
