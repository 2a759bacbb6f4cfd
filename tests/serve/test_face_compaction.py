"""POST /v1/responses/compact and the `compaction` items that it makes: what is kept, what is summed up, who may
send it back."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from face_bench import ALICE, FaceBench, Fetch, Tenant
from face_said import errors, finals, prompt_of, text
from live_server import LiveServer
from openai.types.responses import ResponseCompactionItem, ResponseInputMessageItem, ResponseUsage
from pydantic import TypeAdapter
from scripted_model import END, Script, call
from strict_responses import check_response, check_sequence, check_usage

from headrace.runtime.interface import Message, Picture, ToolCall
from headrace.server.faces import compaction
from headrace.server.faces.compaction import Summary, seal, unseal
from headrace.server.protocol.errors import WireError

COMPACT = "/v1/responses/compact"
SUMMARY = "They greeted; the answer was 42."
HEAD = "Summary of the conversation so far:\n\n"
WEATHER = {"type": "function", "name": "weather", "parameters": None}
ROME = call("weather", '{"at": "Rome"}')
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def reply(prompt: str) -> str:
    """A model that sums up when it is asked to."""
    last = prompt.rpartition("user: ")[2]
    if compaction._ASKED in last:
        return f"<think>what was it?</think>\n {SUMMARY}\n"
    return ROME if "weather?" in last else "Fine."


def bench_of(**how: Any) -> FaceBench:
    return FaceBench(
        choose=Script(reply), eos=frozenset({END}), form={"tools": "hermes", "reasoning": "think"}, **how
    )


async def compacted(bench: FaceBench, input: Any, **fields: Any) -> Fetch:
    return await bench.fetch(COMPACT, {"model": "fake", "input": input, **fields}).done()


def check_compacted(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of a reply that the SDK's own models take, each in the place that the reference gives it: the
    messages as the input that they are, because the output's model knows none of a user's."""
    assert set(body) == {"id", "object", "created_at", "output", "usage"}
    assert body["object"] == "response.compaction" and body["id"].startswith("resp_")
    assert isinstance(body["created_at"], int)
    check_usage(body["usage"])
    TypeAdapter(ResponseUsage).validate_json(json.dumps(body["usage"]), strict=True)
    *messages, last = body["output"]
    for message in messages:
        ResponseInputMessageItem.model_validate_json(json.dumps(message), strict=True)
        assert message["id"].startswith("msg_") and message["status"] == "completed"
    assert set(last) == {"id", "type", "encrypted_content"} and last["id"].startswith("cmp_")
    ResponseCompactionItem.model_validate_json(json.dumps(last), strict=True)
    return body["output"]


async def test_the_users_words_stay_and_the_rest_becomes_a_summary() -> None:
    bench = bench_of()
    said = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "secret words"},
        {"role": "user", "content": [{"type": "input_text", "text": "and?"}]},
        {"role": "assistant", "content": "more words"},
    ]
    fetch = await compacted(bench, said, instructions="in English")
    output = check_compacted(fetch.json)
    assert prompt_of(bench) == (
        "system: in English\n\nbe brief\nuser: hi\nassistant: secret words\nuser: and?\nassistant: more words\n"
        f"user: {compaction._ASKED}\nassistant: "
    )
    assert [(item["role"], item["content"]) for item in output[:-1]] == [
        ("system", [{"type": "input_text", "text": "be brief"}]),
        ("user", [{"type": "input_text", "text": "hi"}]),
        ("user", [{"type": "input_text", "text": "and?"}]),
    ]
    assert b" words" not in fetch.body and SUMMARY.encode() not in fetch.body, "the summary is opaque"
    usage = fetch.json["usage"]
    assert usage["input_tokens"] == len(prompt_of(bench)) and usage["output_tokens"] > len(SUMMARY)
    # Sent back as it is, over both transports.
    again = await bench.respond([*output, {"role": "user", "content": "go on"}]).done()
    check_response(again.json)
    expected = f"system: be brief\nuser: hi\n\nand?\nassistant: {HEAD}{SUMMARY}\nuser: go on\nassistant: "
    assert text(again.json) == "Fine." and prompt_of(bench) == expected
    socket = bench.socket()
    socket.create([*output, {"role": "user", "content": "go on"}])
    await socket.until_over()
    check_sequence(socket.raw)
    assert prompt_of(bench) == expected
    # It is listed as what was sent, and its item can be named.
    listed = (await bench.fetch(f"/v1/responses/{again.json['id']}/input_items").done()).json["data"]
    assert listed[1] == output[-1]
    # A compacted conversation can be compacted again.
    second = check_compacted((await compacted(bench, [*output, {"role": "user", "content": "go on"}])).json)
    assert [item["type"] for item in second] == ["message"] * 3 + ["compaction"]
    assert second[1]["content"][0]["text"] == "hi\n\nand?"
    await bench.baseline()


async def test_a_stored_conversation_is_compacted_by_its_id() -> None:
    bench = bench_of()
    first = (await bench.respond("hi").done()).json
    second = (await bench.respond("and?", previous_response_id=first["id"]).done()).json
    for given in ({"input": "last"}, {"input": None}, {}):
        fetch = await bench.fetch(
            COMPACT, {"model": "fake", "previous_response_id": second["id"], **given}
        ).done()
        texts = [item["content"][0]["text"] for item in check_compacted(fetch.json)[:-1]]
        assert texts == ["hi", "and?"] + (["last"] if given.get("input") else [])
    assert prompt_of(bench).startswith("user: hi\nassistant: Fine.\nuser: and?\nassistant: Fine.\nuser: Summ")
    # The user's last words and the request are one turn: many templates let the roles change with every turn.
    await compacted(bench, "last")
    assert prompt_of(bench) == f"user: last\n\n{compaction._ASKED}\nassistant: "
    named = {"type": "item_reference", "id": second["output"][0]["id"]}
    await compacted(bench, [{"role": "user", "content": "q"}, named])
    assert prompt_of(bench).startswith("user: q\nassistant: Fine.\nuser: Summ")


async def test_a_call_that_waits_is_kept_and_can_be_answered() -> None:
    bench = bench_of()
    first = (await bench.respond("weather?", tools=[WEATHER], max_output_tokens=200).done()).json
    (called,) = first["output"]
    output = check_compacted((await compacted(bench, None, previous_response_id=first["id"])).json)
    assert "[weather" not in prompt_of(bench), "nobody can sum up what has no result yet"
    result = {"type": "function_call_output", "call_id": called["call_id"], "output": "sun"}
    await bench.respond([*output, result]).done()
    assert prompt_of(bench) == (
        f'user: weather?\nassistant: {HEAD}{SUMMARY} [weather {{"at": "Rome"}}]\n'
        f"tool of {called['call_id']}: sun\nassistant: "
    )
    answered = [{"role": "user", "content": "weather?"}, called, result]
    await compacted(bench, answered)
    assert f'[weather {{"at": "Rome"}}]\ntool of {called["call_id"]}: sun\nuser: Summ' in prompt_of(bench)
    for given in ({"input": answered}, {"input": [answered[0], result]}):
        fetch = await bench.fetch(COMPACT, {"model": "fake", **given}).done()
        assert fetch.status == (200 if called in given["input"] else 400)
    assert "No tool call found" in fetch.error["message"]


async def test_pictures_stay_where_they_were_shown() -> None:
    turns = [
        Message("user", "ab", pictures=(Picture(1, PIXEL, small=True),)),
        Message("user", "cd", pictures=(Picture(0, b"\x89PNGx"), Picture(2, PIXEL))),
    ]
    (joined,) = compaction.joined_users(list(turns))
    assert (joined.content, [picture.at for picture in joined.pictures]) == ("ab\n\ncd", [1, 4, 6])
    assert compaction.joined_users([Message("assistant", "x"), turns[0]]) == [
        Message("assistant", "x"),
        turns[0],
    ]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"input": "x", "model": "gpt-9"}, 404, "model_not_found", "model"),
        ({"input": "x", "model": None}, 400, "missing_required_parameter", "model"),
        ({}, 400, "missing_required_parameter", "input"),
        ({"input": ""}, 400, "missing_required_parameter", "input"),
        ({"input": []}, 400, "missing_required_parameter", "input"),
        ({"input": 5}, 400, "invalid_value", "input"),
        ({"input": [{"role": "user"}]}, 400, "missing_required_parameter", "input[0].content"),
        (
            {"previous_response_id": "resp_x"},
            400,
            "previous_response_not_found",
            "previous_response_id",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, 404, "item_not_found", "input"),
        ({"input": "x" * 5000}, 400, "context_length_exceeded", "input"),
    ],
)
async def test_mistakes_are_named(fields: dict[str, Any], status: int, code: str, param: str) -> None:
    bench = bench_of()
    fetch = await bench.fetch(COMPACT, {"model": "fake", **fields}).done()
    assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (status, code, param)
    await bench.baseline()


async def test_a_model_without_a_word_is_a_failure_not_an_empty_memory() -> None:
    bench = FaceBench(choose=Script(lambda prompt: " \n"), eos=frozenset({END}))
    fetch = await compacted(bench, "x")
    assert (fetch.status, fetch.error["code"]) == (500, "server_error")


async def test_a_client_that_goes_takes_its_compaction_along() -> None:
    bench = bench_of(gated=True)
    fetch = bench.fetch(COMPACT, {"model": "fake", "input": "x"})
    await bench.until(lambda: bool(bench.prompts))
    fetch.drop()
    await bench.baseline()


# -- the seal --------------------------------------------------------------------------------------------------

KEYED = Tenant("key-1", "salt", b"one")


def test_a_seal_opens_for_its_tenant_alone() -> None:
    summary = Summary("so", (ToolCall("c", "f", "{}"), ToolCall("d", "g", '{"input": "x"}', custom=True)))
    blob = seal(summary, KEYED)
    # The salt is another one in every process; what was sealed before a restart still opens.
    assert unseal(blob, None, "p", Tenant("key-1", "other salt", b"one")) == summary
    raw = base64.urlsafe_b64decode(blob.removeprefix("hrc1."))
    forged = [raw[:40] + b"!" + raw[41:], raw[:20], b"", raw + b" ", b"\x00" * 32 + raw[32:]]
    blobs = ["hrc1." + base64.urlsafe_b64encode(each).decode() for each in forged]
    for bad in (*blobs, "", "gAAAAABx==", "hr1.aGk=", "hrc1.%%%", "hrc1.\u00fc", blob[:-3], "x" * 9000):
        for item_id in (None, "cmp_1"):
            with pytest.raises(WireError) as refused:
                unseal(bad, item_id, "input[0].encrypted_content", KEYED)
            assert (refused.value.code, refused.value.status) == ("invalid_encrypted_content", 400)
            assert "could not be verified. Reason: Encrypted content could not be" in refused.value.message
    for other in (Tenant("key-2", "salt", b"two"), Tenant("public", "public")):
        with pytest.raises(WireError):
            unseal(blob, None, "p", other)


async def test_a_blob_of_somebody_else_ends_that_request_alone() -> None:
    bench = bench_of()
    item = {"type": "compaction", "encrypted_content": seal(Summary("x"), KEYED)}
    fetch = await bench.respond([item]).done()
    assert (fetch.status, fetch.error["code"]) == (400, "invalid_encrypted_content")
    assert fetch.error["param"] == "input[0].encrypted_content"
    socket = bench.socket()
    socket.create([{**item, "id": "cmp_7"}])
    await socket.until_over()
    (frame,) = errors(socket)
    assert (
        frame["error"]["code"] == "invalid_encrypted_content"
        and "for item cmp_7" in frame["error"]["message"]
    )
    fetch = await bench.respond([{"type": "compaction"}]).done()
    assert fetch.error["param"] == "input[0].encrypted_content"
    assert not bench.asks
    own = {"type": "compaction", "encrypted_content": seal(Summary("x"), ALICE)}
    socket.create([own, {"role": "user", "content": "go"}])
    await socket.until(lambda: bool(finals(socket)))
    assert prompt_of(bench) == f"assistant: {HEAD}x\nuser: go\nassistant: "


# -- the unmodified client -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(
        choose=Script(reply),
        eos=frozenset({END}),
        keys=("sk-test", "sk-other"),
        form={"tools": "hermes", "reasoning": "think"},
    )
    yield running
    running.baseline()
    running.stop()


def test_the_client_compacts_and_goes_on(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-test", max_retries=0) as client:
        first = client.responses.create(model="fake", input="hi")
        made = client.responses.compact(model="fake", previous_response_id=first.id, input="and?")
        assert made.object == "response.compaction" and made.usage.output_tokens > 0
        assert [item.type for item in made.output] == ["message", "message", "compaction"]
        asked: Any = [item.model_dump(exclude_none=True) for item in made.output]
        asked.append({"role": "user", "content": "go on"})
        assert client.responses.create(model="fake", input=asked).output_text == "Fine."
        with client.responses.connect() as socket:
            socket.response.create(model="fake", input=asked)
            kinds = []
            for event in socket:
                kinds.append(event.type)
                if event.type in ("response.completed", "error"):
                    break
            assert kinds[-1] == "response.completed"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-other", max_retries=0) as stranger:
        with pytest.raises(openai.BadRequestError) as refused:
            stranger.responses.create(model="fake", input=asked)
        assert refused.value.code == "invalid_encrypted_content"
