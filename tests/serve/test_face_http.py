"""The HTTP faces: chat and responses, whole and streamed, and the small routes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from face_bench import BOB, FaceBench, Fetch
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model
from strict_responses import check_response, check_sequence

from headrace.runtime.interface import ModelCard
from headrace.runtime.plan import NON_FINITE
from headrace.server.protocol.chat import ChatChunk

END = 10


def words_then_end(count: int) -> Any:
    """`count` letters, then the end-of-text token."""

    def choose(tokens: list[int], seed: int, width: int) -> int:
        start = bytes(tokens).rindex(b"assistant: ") + 11
        return END if len(tokens) - start >= count else 97 + (len(tokens) - start) % 26

    return choose


def check_chunk(chunk: dict[str, Any], raw: str = "") -> None:
    assert {"id", "object", "created", "model", "choices"} <= set(chunk) <= {
        "id", "object", "created", "model", "choices", "usage",
    }  # fmt: skip
    assert chunk["object"] == "chat.completion.chunk" and chunk["id"].startswith("chatcmpl-")
    for choice in chunk["choices"]:
        assert set(choice) == {"index", "delta", "finish_reason"}
        assert set(choice["delta"]) <= {"role", "content"}
        assert None not in choice["delta"].values(), "never a null where a client merges"
    assert chunk.get("usage", {}) is not None
    ChatCompletionChunk.model_validate_json(json.dumps(chunk), strict=True)


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])


# -- chat ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 5])
async def test_a_streamed_chat_that_meets_its_limit(limit: int) -> None:
    bench = FaceBench()
    fetch = await bench.chat(stream=True, max_tokens=limit).done()
    chunks = fetch.data
    for chunk in chunks:
        check_chunk(chunk)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len(chunks) == limit, "one chunk a token: no empty first one, no separate last one"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (limit - 1) + ["length"]
    assert all("usage" not in chunk for chunk in chunks)
    assert fetch.body.endswith(b"data: [DONE]\n\n") and b"event:" not in fetch.body
    await bench.baseline()


async def test_an_end_token_gets_a_chunk_of_its_own_without_text() -> None:
    bench = FaceBench(choose=words_then_end(3), eos=frozenset({END}))
    chunks = (await bench.chat(stream=True, max_tokens=50).done()).data
    assert text_of(chunks) == "abc"
    last = chunks[-1]["choices"][0]
    assert last == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * 3


async def test_an_empty_answer_still_says_who_speaks() -> None:
    bench = FaceBench(choose=words_then_end(0), eos=frozenset({END}))
    (chunk,) = (await bench.chat(stream=True, max_tokens=50).done()).data
    check_chunk(chunk)
    assert chunk["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": "stop",
    }
    whole = (await bench.chat(max_tokens=50).done()).json
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": ""}


async def test_a_stop_string_ends_on_the_last_text_and_is_left_out() -> None:
    bench = FaceBench(choose=words_then_end(26), eos=frozenset({END}))
    for stop in ("fgh", ["zzz", "fgh"]):
        chunks = (await bench.chat(stream=True, max_tokens=50, stop=stop).done()).data
        assert text_of(chunks) == "abcde"
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        whole = (await bench.chat(max_tokens=50, stop=stop).done()).json
        assert whole["choices"][0]["message"]["content"] == "abcde"
    await bench.baseline()


async def test_a_held_back_beginning_of_a_stop_string_is_told_at_the_end() -> None:
    bench = FaceBench(choose=words_then_end(7), eos=frozenset({END}))
    chunks = (await bench.chat(stream=True, max_tokens=50, stop=["fgx"]).done()).data
    assert text_of(chunks) == "abcdefg"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"][0]["delta"] == {"content": "fg"}


async def test_usage_only_where_it_was_asked_for() -> None:
    bench = FaceBench()
    asked = (await bench.chat(stream=True, stream_options={"include_usage": True}).done()).data
    for chunk in asked:
        check_chunk(chunk)
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["completion_tokens"] == 5
    assert all("usage" not in chunk and chunk["choices"] for chunk in asked[:-1])
    always = (
        await bench.chat(
            stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
        ).done()
    ).data
    assert [chunk["usage"]["completion_tokens"] for chunk in always] == [1, 2, 3, 4, 5, 5]
    assert [len(chunk["choices"]) for chunk in always] == [1] * 5 + [0]
    only = (await bench.chat(stream=True, stream_options={"continuous_usage_stats": True}).done()).data
    assert [chunk["usage"]["completion_tokens"] for chunk in only] == [1, 2, 3, 4, 5]


async def test_chunks_from_the_template_are_the_encoded_objects() -> None:
    answer = 'a"b\\c\nd\x00"content":""é€😀e'.encode()
    bench = FaceBench(choose=lambda tokens, seed, width: answer[len(tokens) % len(answer)])
    fetch = await bench.chat(stream=True, max_tokens=3 * len(answer)).done()
    blocks = fetch.body.split(b"\n\n")
    assert blocks[-2:] == [b"data: [DONE]", b""]
    texts = []
    for block in blocks[:-2]:
        chunk = msgspec.json.decode(block.removeprefix(b"data: "), type=ChatChunk)
        assert b"data: " + msgspec.json.encode(chunk) == block
        texts.append(chunk.choices[0].delta.content)
    assert len(texts) > len(answer) and "".join(text for text in texts if text).count('"content":""') >= 2
    await bench.baseline()


async def test_a_whole_chat() -> None:
    bench = FaceBench()
    fetch = await bench.chat(max_completion_tokens=4, max_tokens=9).done()
    assert fetch.status == 200
    body = fetch.json
    ChatCompletion.model_validate_json(fetch.body, strict=True)
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {
        "prompt_tokens": len("user: hello\nassistant: "),
        "completion_tokens": 4,
        "total_tokens": len("user: hello\nassistant: ") + 4,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    streamed = (await bench.chat(stream=True, max_completion_tokens=4, max_tokens=9).done()).data
    assert text_of(streamed) == body["choices"][0]["message"]["content"]


async def test_messages_become_the_prompt() -> None:
    bench = FaceBench()
    fetch = bench.fetch(
        "/v1/chat/completions",
        {
            "model": "fake",
            "max_tokens": 1,
            "messages": [
                {"role": "system", "content": "one"},
                {"role": "developer", "content": [{"type": "text", "text": "two"}]},
                {"role": "user", "name": "kim", "content": [{"type": "text", "text": x} for x in "ab"]},
                {"role": "assistant", "content": None, "refusal": "no", "tool_calls": []},
                {"role": "assistant", "content": "c", "reasoning_content": "hmm", "tool_calls": None},
                {"role": "user", "content": "d"},
            ],
        },
    )  # fmt: skip
    await fetch.done()
    assert fetch.status == 200 and "x-ignored-fields" not in fetch.headers
    assert bytes(bench.prompts[-1]).decode() == (
        "system: one\n\ntwo\nuser: ab\nassistant: no\nassistant: c\nuser: d\nassistant: "
    )


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_is_cancelled_within_one_step(steps: int, stream: bool) -> None:
    bench = FaceBench(gated=True)
    fetch = bench.chat(stream=stream, max_tokens=1000)
    other = bench.respond(max_output_tokens=1000, stream=stream)
    await bench.until(lambda: len(bench.engine.plans) >= steps)
    fetch.drop()
    other.drop()
    at = len(bench.engine.plans)
    await bench.idle()
    assert len(bench.engine.plans) <= at + 1
    await bench.baseline()
    assert len(bench.store) == 0 and bench.store.bytes == 0


async def test_a_failure_before_the_first_byte_is_a_status_and_later_an_event() -> None:
    def broken(after: int) -> Any:
        return lambda tokens, seed, width: NON_FINITE if len(tokens) >= 23 + after else 97

    for stream in (False, True):
        bench = FaceBench(choose=broken(0))
        fetch = await bench.chat(stream=stream).done()
        assert fetch.status == 500 and fetch.error["code"] == "server_error"
    bench = FaceBench(choose=broken(3))
    fetch = await bench.chat(stream=True).done()
    assert fetch.status == 200
    *chunks, failure = fetch.data
    assert text_of(chunks) == "aaa"
    assert set(failure) == {"error"} and failure["error"]["code"] == "server_error"
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks)
    fetch = await bench.chat().done()
    assert fetch.status == 500
    await bench.baseline()


async def test_a_ping_opens_the_stream_and_errors_follow_inside() -> None:
    bench = FaceBench(gated=True)
    fetch = bench.chat("x" * 5000, stream=True)
    fetch.ping()
    assert fetch.status == 200 and fetch.body == b": ping\n\n"
    await fetch.done()
    (failure,) = fetch.data
    assert failure["error"]["code"] == "context_length_exceeded"
    flat = bench.respond("x" * 5000, stream=True)
    flat.ping()
    await flat.done()
    (event,) = flat.data
    assert event == {
        "type": "error",
        "code": "context_length_exceeded",
        "message": event["message"],
        "param": "input",
        "sequence_number": 0,
    }
    whole = bench.chat()
    whole.ping()
    await whole.done()
    assert whole.status == 200 and whole.json["object"] == "chat.completion"


async def test_the_server_stopping_ends_requests_with_an_answer() -> None:
    bench = FaceBench(gated=True)
    asked: list[Fetch] = [
        bench.chat(max_tokens=500),
        bench.chat(stream=True, max_tokens=500),
        bench.respond(max_output_tokens=500),
        bench.respond(stream=True, max_output_tokens=500),
    ]
    await bench.until(lambda: bool(asked[1].chunks) and bool(asked[3].chunks))
    bench.runtime.cancel_all()
    for fetch in asked:
        await fetch.done()
    assert asked[0].status == asked[2].status == 503
    assert asked[0].error["code"] == "server_is_overloaded" and "retry-after" in asked[0].headers
    assert asked[1].data[-1]["error"]["code"] == "server_is_overloaded"
    assert asked[3].data[-1]["response"]["status"] == "cancelled"
    await bench.baseline()


async def test_overload_is_503_with_advice() -> None:
    bench = FaceBench(gated=True, waiting_limit=1)
    first = bench.chat(max_tokens=5)
    second = bench.chat(max_tokens=5)
    assert second.status == 503 and second.error["code"] == "server_is_overloaded"
    assert second.error["type"] == "server_error"
    assert int(second.headers["retry-after-ms"]) > 0 and int(second.headers["retry-after"]) > 0
    await first.done()
    assert first.status == 200


async def test_a_slow_reader_of_events_pauses_its_request_only() -> None:
    bench = FaceBench()
    slow = bench.chat(stream=True, max_tokens=1500)
    slow.wire.reading = False
    fast = bench.chat(stream=True, max_tokens=700)
    await fast.done()
    assert len(bench.scheduler.paused) == 1
    slow.wire.reading = True
    await slow.done()
    assert slow.data[-1]["choices"][0]["finish_reason"] == "length"
    assert len(text_of(slow.data)) == 1500
    await bench.baseline()


async def test_a_whole_reply_is_not_paused_by_its_own_length() -> None:
    bench = FaceBench()
    fetch = await bench.chat(max_tokens=2000).done()
    assert fetch.json["usage"]["completion_tokens"] == 2000


# -- responses -------------------------------------------------------------------------------------------------


async def test_stored_and_not_stored() -> None:
    bench = FaceBench()
    stored = (await bench.respond(metadata={"a": "b"}, instructions="i").done()).json
    check_response(stored)
    hidden = (await bench.respond(store=False).done()).json
    assert hidden["store"] is False and stored["store"] is True
    assert bench.fetch(f"/v1/responses/{stored['id']}").json == stored
    for response_id, tenant in ((hidden["id"], "alice"), ("resp_unknown", "alice"), (stored["id"], "bob")):
        options = {"tenant": BOB} if tenant == "bob" else {}
        for path, method in (("", "GET"), ("", "DELETE"), ("/input_items", "GET")):
            reply = bench.fetch(f"/v1/responses/{response_id}{path}", method=method, **options)
            assert reply.status == 404 and reply.error["code"] == "response_not_found", (path, method)
    items = bench.fetch(f"/v1/responses/{stored['id']}/input_items").json
    assert [item["content"] for item in items["data"]] == [[{"type": "input_text", "text": "hello"}]]
    assert items["first_id"] == items["last_id"] == items["data"][0]["id"] and items["has_more"] is False
    deleted = bench.fetch(f"/v1/responses/{stored['id']}", method="DELETE")
    assert deleted.json == {"id": stored["id"], "object": "response", "deleted": True}
    assert bench.fetch(f"/v1/responses/{stored['id']}").status == 404
    assert bench.store.bytes == 0
    replay = bench.fetch(f"/v1/responses/{stored['id']}", query={"stream": "true"})
    assert replay.status == 404


async def test_the_sse_response_is_the_golden_sequence() -> None:
    bench = FaceBench(choose=words_then_end(4), eos=frozenset({END}))
    fetch = await bench.respond(stream=True, max_output_tokens=50).done()
    raws = [line[6:] for line in fetch.body.decode().split("\n") if line.startswith("data: {")]
    events = check_sequence(raws)
    assert events[-1]["type"] == "response.completed" and fetch.body.endswith(b"data: [DONE]\n\n")
    stored = bench.fetch(f"/v1/responses/{events[-1]['response']['id']}").json
    assert stored == events[-1]["response"]


async def test_a_failed_response_over_http() -> None:
    bench = FaceBench(choose=lambda tokens, seed, width: NON_FINITE if len(tokens) > 25 else 97)
    streamed = await bench.respond(stream=True).done()
    assert streamed.data[-1]["type"] == "response.failed"
    whole = await bench.respond().done()
    assert whole.status == 500 and whole.error["code"] == "server_error"
    assert len(bench.store) == 0 and bench.store.bytes == 0
    await bench.baseline()


async def test_continuation_over_http_and_from_a_socket() -> None:
    bench = FaceBench()
    first = (await bench.respond("one").done()).json
    second = (await bench.respond("two", previous_response_id=first["id"]).done()).json
    answer = first["output"][0]["content"][0]["text"]
    assert bytes(bench.prompts[-1]).decode() == f"user: one\nassistant: {answer}\nuser: two\nassistant: "
    socket = bench.socket()
    socket.create("three", previous_response_id=second["id"])
    await socket.until_over()
    assert socket.said[-1]["type"] == "response.incomplete"
    assert bytes(bench.prompts[-1]).decode().startswith(f"user: one\nassistant: {answer}\nuser: two\n")
    missing = await bench.respond("two", previous_response_id="resp_none").done()
    assert missing.status == 400
    assert missing.error == {
        "message": "Previous response with id 'resp_none' not found.",
        "type": "invalid_request_error",
        "param": "previous_response_id",
        "code": "previous_response_not_found",
    }


async def test_deleting_a_parent_while_its_child_runs() -> None:
    bench = FaceBench(gated=True)
    first = (await bench.respond("one").done()).json
    child = bench.respond("two", previous_response_id=first["id"], stream=True)
    await bench.until(lambda: bool(child.chunks))
    assert bench.fetch(f"/v1/responses/{first['id']}", method="DELETE").status == 200
    await child.done()
    grandchild = (
        await bench.respond("three", previous_response_id=child.data[0]["response"]["id"]).done()
    ).json
    assert bytes(bench.prompts[-1]).decode().startswith("user: one\nassistant: ")
    for response_id in (child.data[0]["response"]["id"], grandchild["id"]):
        bench.fetch(f"/v1/responses/{response_id}", method="DELETE")
    assert bench.store.bytes == 0
    await bench.baseline()


# -- headers and small routes ----------------------------------------------------------------------------------


async def test_unknown_fields_are_named_counted_or_refused() -> None:
    bench = FaceBench()
    fetch = await bench.chat(zork=1, **{"né\r\nw": 2}).done()
    assert fetch.status == 200 and fetch.headers["x-ignored-fields"] == "zork, n???w"
    fetch = await bench.chat(stream=True, stream_options={"zork": 1}).done()
    assert fetch.headers["x-ignored-fields"] == "stream_options.zork"
    fetch = bench.fetch("/v1/responses", {"model": "fake", "input": "x", "zork": 1, "temperature": 9})
    assert fetch.status == 400
    fetch = await bench.respond([{"role": "user", "content": "x", "zork": 1}]).done()
    assert fetch.headers["x-ignored-fields"] == "input[0].zork"
    many = await bench.chat(**{f"zork{i}": i for i in range(500)}).done()
    assert many.status == 200 and many.headers["x-ignored-fields"].count(",") == 31
    assert [endpoint for endpoint, _ in bench.ignored] == ["chat", "chat", "responses", "chat"]
    strict = FaceBench(settings={"strict_fields": True})
    for fetch in (strict.chat(zork=1), strict.respond(zork=1), strict.chat(stream_options={"zork": 1})):
        assert fetch.status == 400 and fetch.error["code"] == "unknown_parameter"
        assert fetch.error["param"].endswith("zork")


async def test_small_routes() -> None:
    card = ModelCard("org/model", "Llama", 600, "float32", 2048, 256, 1764000000, True, "a notice")
    bench = FaceBench(card=card)
    (model,) = bench.fetch("/v1/models").json["data"]
    Model.model_validate_json(json.dumps(model), strict=True)
    assert (model["id"], model["root"], model["parent"], model["max_model_len"]) == (
        "org/model", "org/model", None, bench.runtime.max_context,
    )  # fmt: skip
    assert bench.fetch("/v1/models/org/model").json == model
    assert bench.fetch("/v1/models/default").json == model
    assert bench.fetch("/v1/models/other").error["code"] == "model_not_found"
    for path in ("/health", "/healthz", "/ready", "/readyz"):
        assert bench.fetch(path).status == 200
        assert bench.routes.http[path].public
    assert bench.fetch("/version").json == {"version": "1.2.3"}
    metrics = bench.fetch("/metrics")
    assert metrics.body == b"up 1\n" and not bench.routes.http["/metrics"].public
    bench.runtime.drain()
    assert bench.fetch("/ready").status == 503 and bench.fetch("/health").status == 200
    bench.runtime.draining = False
    bench.runtime.ready = False
    assert bench.fetch("/readyz").status == 503
    assert bench.chat(model="default").status == 503


def test_only_health_and_the_page_are_public() -> None:
    bench = FaceBench()
    public = {path for path, route in bench.routes.http.items() if route.public}
    assert public == {"/", "/health", "/healthz", "/health_generate", "/ping", "/ready", "/readyz"}
