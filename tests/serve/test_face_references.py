"""Items that a request names instead of repeating them: `item_reference`, on the socket and over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from face_bench import ALICE, BOB, FaceBench, Socket
from face_said import by_lane, errors, finals, prompt_of, text
from live_server import LiveServer
from scripted_model import END, Script, always, call
from strict_responses import check_response, check_sequence

from headrace.server.faces.item_ids import input_id, output_id, response_of

WEATHER = {"type": "function", "name": "weather", "parameters": None}
ROME = call("weather", '{"at": "Rome"}')


def named(item_id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "item_reference", "id": item_id, **fields}


async def answered(socket: Socket, input: Any, **fields: Any) -> dict[str, Any]:
    before = len(finals(socket))
    socket.create(input, **fields)
    await socket.until(lambda: len(finals(socket)) > before)
    return finals(socket)[-1]


def bench_of(reply: Any = None, **how: Any) -> FaceBench:
    script = reply or always("Yes.")
    script = always(script) if isinstance(script, str) else script
    return FaceBench(
        choose=script, eos=frozenset({END}), form={"tools": "hermes", "reasoning": "think"}, **how
    )


def test_an_id_names_its_response_and_nothing_else_does() -> None:
    response = "resp_" + "0af" * 10 + "00"
    assert response_of(output_id("rs", response, 7)) == response_of(input_id(None, response, 0)) == response
    assert output_id("msg", response, 1) != input_id("message", response, 1)
    for other in ("", "msg_1", "resp_" + "0" * 32, "msg_" + "0" * 32, "msg_" + "G" * 32 + "o0", "msg_o1"):
        assert response_of(other) is None


async def test_what_was_said_is_said_again_by_its_id_alone() -> None:
    """A conversation kept by its client as ids: no previous_response_id, everything else named."""
    bench = bench_of("<think>hm</think>Yes.")
    socket = bench.socket()
    first = await answered(socket, "one", max_output_tokens=100)
    thought, message = [item["id"] for item in first["output"]]
    listed = (await bench.fetch(f"/v1/responses/{first['id']}/input_items").done()).json["data"]
    ids = [listed[0]["id"], thought, message]
    await answered(socket, [*map(named, ids), {"role": "user", "content": "two"}], stream_id="b")
    assert prompt_of(bench) == "user: one\nassistant: Yes.\nuser: two\nassistant: "
    assert bench.asks[-1].messages is not None and bench.asks[-1].messages[1].reasoning == "hm"
    check_sequence(by_lane(socket, "b"))
    # Over HTTP, by ids alone, and with the type left out.
    reply = await bench.respond([{"id": ids[0]}, named(message), named(listed[0]["id"])]).done()
    check_response(reply.json)
    assert prompt_of(bench) == "user: one\nassistant: Yes.\nuser: one\nassistant: "
    # What was named is listed as what it is.
    listed = (await bench.fetch(f"/v1/responses/{reply.json['id']}/input_items").done()).json["data"]
    assert [item["id"] for item in reversed(listed)] == [ids[0], message, ids[0]]
    assert listed[1]["content"][0]["text"] == "Yes."
    counted = bench.fetch("/v1/responses/input_tokens", {"model": "fake", "input": [named(ids[0])]})
    assert (await counted.done()).json["input_tokens"] == len("user: one\nassistant: ")
    await bench.baseline()


async def test_a_call_is_named_and_its_output_is_sent() -> None:
    bench = bench_of(Script(lambda prompt: "Sunny." if "of call" in prompt else ROME))
    first = (await bench.respond("how is it?", tools=[WEATHER], max_output_tokens=200).done()).json
    (called,) = first["output"]
    output = {"type": "function_call_output", "call_id": called["call_id"], "output": "sun"}
    expected = f'assistant:  [weather {{"at": "Rome"}}]\ntool of {called["call_id"]}: sun\nassistant: '
    reply = await bench.respond(
        [{"role": "user", "content": "how is it?"}, named(called["id"]), output], tools=[WEATHER]
    ).done()
    assert text(reply.json) == "Sunny" and prompt_of(bench).endswith(expected)
    # In the conversation that is continued it stands already: it is not there twice.
    reply = await bench.respond(
        [named(called["id"]), output], previous_response_id=first["id"], tools=[WEATHER]
    ).done()
    assert reply.status == 200 and prompt_of(bench).count("[weather") == 1
    assert prompt_of(bench).endswith(expected)


async def test_a_connection_knows_the_items_of_what_was_not_stored() -> None:
    bench = bench_of()
    socket = bench.socket()
    first = await answered(socket, [{"role": "user", "content": "one", "id": "mine"}], store=False)
    (item,) = first["output"]
    await answered(socket, [named(item["id"]), {"role": "user", "content": "two"}], stream_id="b")
    assert prompt_of(bench) == "assistant: Yes.\nuser: two\nassistant: "
    # The client's own id names an item of the response that is continued, and only there.
    again = await answered(
        socket, [named("mine"), {"role": "user", "content": "three"}], previous_response_id=first["id"]
    )
    assert prompt_of(bench) == "user: one\nassistant: Yes.\nuser: three\nassistant: "
    socket.create([named("mine")])
    await socket.until(lambda: len(errors(socket)) == 1)
    # The lane has moved on, and nothing else remembers the first response.
    for other in (socket, bench.socket()):
        count = len(errors(other))
        other.create([named(item["id"]), {"role": "user", "content": "x"}])
        await other.until(lambda o=other, n=count: len(errors(o)) > n)
        check_not_found(errors(other)[-1], item["id"])
    assert again["status"] == "completed"
    socket.drop()
    await bench.baseline()


def check_not_found(frame: dict[str, Any], item_id: str) -> None:
    assert frame["status"] == 404
    error = frame["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "item_not_found",
        "input",
    )
    assert error["message"].startswith(f"Item with id '{item_id}' not found. Items are not persisted when")


@pytest.mark.parametrize(
    "unknown",
    ["msg_1", "x" * 512, "msg_" + "0" * 32 + "o0", "rs_" + "a" * 32 + "i5", "", "../resp", "\u00fc'"],
)
async def test_an_unknown_item_is_an_error_to_that_request_alone(unknown: str) -> None:
    bench = bench_of()
    socket = bench.socket()
    socket.create([named(unknown), {"role": "user", "content": "x"}])
    await socket.until_over()
    (frame,) = errors(socket)
    assert (
        frame["status"] == 404
        and frame["error"]["param"] == "input"
        and len(frame["error"]["message"]) <= 600
    )
    fetch = await bench.respond([named(unknown)]).done()
    assert fetch.status == 404 and fetch.error == frame["error"]
    assert not bench.asks
    assert (await answered(socket, "x"))["status"] == "completed"


async def test_nobody_names_the_items_of_others() -> None:
    bench = bench_of()
    mine = (await bench.respond("secret").done()).json["output"][0]["id"]
    theirs = {"model": "fake", "input": [named(mine)]}
    assert (await bench.fetch("/v1/responses", theirs, tenant=BOB).done()).status == 404
    assert (await bench.fetch("/v1/responses", theirs, tenant=ALICE).done()).status == 200
    gone = mine.removeprefix("msg_").partition("o")[0]
    await bench.fetch(f"/v1/responses/resp_{gone}", method="DELETE").done()
    assert (await bench.fetch("/v1/responses", theirs).done()).status == 404


async def test_a_reference_without_an_id_is_a_mistake() -> None:
    bench = bench_of()
    fetch = await bench.respond([{"type": "item_reference"}]).done()
    assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (
        400,
        "missing_required_parameter",
        "input[0].id",
    )


async def test_a_steer_joins_a_request_that_names_items() -> None:
    """References are looked up behind the steers that were put before them, in their order."""
    bench = bench_of(Script(lambda prompt: "Done." if "of call" in prompt else ROME), gated=True)
    socket = bench.socket()
    socket.create("go", tools=[WEATHER], max_output_tokens=200)
    await socket.until(lambda: "response.function_call_arguments.delta" in socket.types())
    target = socket.said[0]["response"]["id"]
    socket.send({"type": "response.steer", "previous_response_id": target, "input": "be brief"})
    await socket.until(lambda: "response.steer.pending" in socket.types())
    (called,) = finals(socket)[-1]["output"]
    output = {"type": "function_call_output", "call_id": called["call_id"], "output": "sun"}
    socket.create([output, named(called["id"])], previous_response_id=target, tools=[WEATHER])
    await socket.until(lambda: len(finals(socket)) == 2)
    assert prompt_of(bench).endswith("of " + called["call_id"] + ": sun\nuser: be brief\nassistant: ")


def test_a_stored_item_is_named_after_a_restart_by_the_unmodified_client(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    server = LiveServer(choose=always("Yes."), eos=frozenset({END}), store=path)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(model="fake", input="one")
    server.stop()
    server = LiveServer(choose=always("Yes."), eos=frozenset({END}), store=path)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = [
            {"type": "item_reference", "id": first.output[0].id},
            {"role": "user", "content": "two"},
        ]
        second = client.responses.create(model="fake", input=asked)
        listed = list(client.responses.input_items.list(second.id, order="asc"))
        assert listed[0].id == first.output[0].id
        with client.responses.connect() as socket:
            socket.response.create(model="fake", input=asked)
            for event in socket:
                assert event.type != "error", event
                if event.type == "response.completed":
                    break
            socket.response.create(model="fake", input=[{"type": "item_reference", "id": "msg_nowhere"}])
            refused = socket.recv()
            assert refused.type == "error" and refused.error.code == "item_not_found"
        with pytest.raises(openai.NotFoundError) as unknown:
            client.responses.create(model="fake", input=[{"type": "item_reference", "id": "msg_nowhere"}])
        assert unknown.value.param == "input" and "not found" in str(unknown.value)
    server.baseline()
    server.stop()
