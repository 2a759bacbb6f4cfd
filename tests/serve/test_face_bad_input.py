"""Bad requests by the thousand, over HTTP and the socket: each gets one well-formed 4xx and nothing else moves."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import msgspec.inspect as shapes
import pytest
from bad_values import FREE, NUMBERS, TEXTS, kinds, mutate
from face_bench import ALICE, BOB, FaceBench, Fetch, Socket
from strict_responses import check_error_frame, check_sequence

from headrace.runtime.interface import Tenant
from headrace.server.protocol.chat import ChatRequest
from headrace.server.protocol.responses import ResponseRequest

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
BASE: dict[str, dict[str, Any]] = {
    CHAT: {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    RESPONSES: {"model": "fake", "input": "x", "max_output_tokens": 1},
}
TYPES: dict[str, type[msgspec.Struct]] = {CHAT: ChatRequest, RESPONSES: ResponseRequest}


def raw_body(path: str, field: str, value: str) -> bytes:
    """A good request with one field set to this JSON text."""
    rest = {key: v for key, v in BASE[path].items() if key != field}
    return json.dumps(rest)[:-1].encode() + b', "%s": %s}' % (
        field.encode(),
        value.encode("utf-8", "surrogatepass"),
    )


def cases(path: str) -> Iterator[tuple[str, str]]:
    families = {"number": NUMBERS, "text": TEXTS, "free": FREE}
    for field in shapes.type_info(TYPES[path]).fields:  # type: ignore[attr-defined]
        for kind in sorted(kinds(field.type)):
            for value in families[kind]:
                yield field.name, value


def check_reply(fetch: Fetch, where: Any) -> None:
    """200, or exactly one OpenAI-shaped 4xx without our insides."""
    assert fetch.over, where
    if fetch.status == 200:
        return
    assert 400 <= fetch.status < 500, (where, fetch.body)
    error = fetch.error
    assert error["type"] == "invalid_request_error" and isinstance(error["code"], str), where
    assert error["message"] and len(error["message"]) <= 600, where
    assert not re.search(r"0x[0-9a-f]{6}|Traceback|\.py\b|object at", error["message"]), error
    assert error["param"] is None or len(error["param"]) <= 260, error


async def settle(bench: FaceBench, fetch: Fetch) -> None:
    if not fetch.over:
        await fetch.done()
    bench.readers.remove(fetch)


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_every_field_against_the_grid_over_http(path: str) -> None:
    bench = FaceBench(store={"count_limit": 50}, eos=frozenset({0}))  # a guided answer needs an end
    counts = {200: 0, 400: 0, 404: 0}
    for field, value in cases(path):
        fetch = bench.fetch(path, raw_body(path, field, value))
        await settle(bench, fetch)
        check_reply(fetch, (field, value[:60]))
        counts[fetch.status] += 1
        if value == "null" and field not in ("model", "messages", "input"):
            assert fetch.status == 200, (field, "null means absent")
        if fetch.status == 400 and fetch.error["code"] in ("invalid_value", "unsupported_parameter"):
            param = fetch.error["param"]
            assert param is None or param.startswith(field) or field in ("messages", "input"), (
                field,
                value[:60],
                param,
            )
    assert counts[400] > 900 and counts[200] > 150, counts
    await bench.baseline()


async def test_every_field_against_the_grid_over_the_socket() -> None:
    bench = FaceBench(store={"count_limit": 50})
    socket = bench.socket()
    refused = served = 0
    # Both faces decode alike, so every second case is enough to prove that the socket lives through it.
    for field, value in itertools.islice(cases(RESPONSES), 0, None, 2):
        socket.raw.clear()
        socket.said.clear()
        body = raw_body(RESPONSES, field, value).decode("utf-8", "surrogatepass")
        socket.send('{"type":"response.create",' + body[1:])
        await socket.until_over()
        if socket.said[0]["type"] == "error":
            (raw,) = socket.raw
            frame = check_error_frame(raw)
            assert 400 <= frame["status"] < 500, (field, value[:60], raw)
            refused += 1
        else:
            served += 1
            # The shape of good answers is proved elsewhere; every tenth is looked at here.
            if served % 10 == 0:
                check_sequence(socket.raw)
    assert refused > 450
    assert socket.wire.close_code is None
    socket.drop()
    await bench.baseline()


@pytest.mark.parametrize(
    "value",
    ["0", "-1", "17", "1e6", "2147483648", "9223372036854775808", "1" + "0" * 400, '"1"', "1.0", "true"],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_n_is_bounded_before_anything_is_made(path: str, value: str) -> None:
    bench = FaceBench()
    for field in ("n", "best_of"):
        fetch = bench.fetch(path, raw_body(path, field, value))
        assert fetch.status == 400 and fetch.error["param"] == field
    assert not bench.asks


@pytest.mark.parametrize("value", ["-1", "21", "1000000000"])
@pytest.mark.parametrize("field", ["top_logprobs", "prompt_logprobs", "logprobs"])
def test_logprobs_are_bounded(field: str, value: str) -> None:
    bench = FaceBench()
    fetch = bench.fetch(CHAT, raw_body(CHAT, field, value))
    assert fetch.status == 400 and fetch.error["param"] == field


@pytest.mark.parametrize("token", [-1, -(1 << 63), 256, 257, (1 << 31) - 1, 1 << 31, 1 << 63])
async def test_ids_outside_the_logits_are_refused(token: int) -> None:
    bench = FaceBench()
    for fields in ({"stop_token_ids": [token]}, {"logit_bias": {str(token): 1}}):
        for fetch in (bench.chat(**fields), bench.respond(**fields)):
            await fetch.done()
            assert fetch.status == 400, (fields, fetch.body)
            assert next(iter(fields)) in fetch.error["param"]
    assert not bench.engine.plans, "nothing reached the engine"
    good = await bench.chat(stop_token_ids=[255], logit_bias={"0": -100, "255": 100}).done()
    assert good.status == 200


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "zork", "content": "x"}],
        [{"role": "user", "content": [{"type": "zork"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}] * 65}],
        [{"role": "user", "content": "x"}] * 1025,
        [{"role": "user", "content": [[["x"]]]}],
        [{"role": "user", "content": {"a": 1}}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}],
        [{"role": "tool", "content": "x", "tool_call_id": "call_1"}],
        [{"role": "assistant", "tool_calls": [{"id": "a"}]}],
        "x",
        [["x"]] * 50_000,
    ],
)
def test_bad_messages(messages: Any) -> None:
    bench = FaceBench()
    fetch = bench.fetch(CHAT, {**BASE[CHAT], "messages": messages})
    check_reply(fetch, messages)
    assert fetch.status == 400 and fetch.error["param"].startswith("messages")
    assert not bench.asks


def test_a_hundred_thousand_prompts_are_not_even_decoded() -> None:
    bench = FaceBench()
    for messages in ([["x"]] * 100_000, BASE[CHAT]["messages"] * 100_000):
        fetch = bench.fetch(CHAT, {**BASE[CHAT], "messages": messages})
        assert fetch.status == 400 and "fields and list entries" in fetch.error["message"]


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"role": "user"},
        {"role": "tool", "content": "x"},
        {"type": "message", "content": "x"},
        {"type": "zork", "role": "user", "content": "x"},
        {"type": "function_call", "call_id": "c", "name": "f"},
        {"type": "function_call", "call_id": "c", "arguments": "{}"},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": 3},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_image", "image_url": "x"}],
        },
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        {"type": "custom_tool_call_output", "output": "x"},
        {"type": "item_reference", "id": "msg_1"},
        {"type": "compaction", "encrypted_content": "x"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1/x"}]},
        {"role": "user", "content": [{"type": "input_text"}]},
        {"role": "user", "content": 5},
    ],
)
async def test_bad_items(item: Any) -> None:
    bench = FaceBench()
    fetch = bench.fetch(RESPONSES, {**BASE[RESPONSES], "input": [{"role": "user", "content": "x"}, item]})
    check_reply(fetch, item)
    assert fetch.status == (404 if item.get("type") == "item_reference" else 400)
    assert fetch.error["param"].startswith("input")
    socket = bench.socket()
    socket.create([{"role": "user", "content": "x"}, item])
    await socket.until_over()
    (raw,) = socket.raw
    assert check_error_frame(raw)["error"] == fetch.error
    assert not bench.asks


@pytest.mark.parametrize(
    "name",
    [
        "chat_template",
        "tokenize",
        "add_generation_prompt",
        "tools",
        "return_tensors",
        "__class__",
        "messages",
        "x",
    ],
)
def test_nothing_is_smuggled_through_template_options(name: str) -> None:
    bench = FaceBench()
    for path in (CHAT, RESPONSES):
        fetch = bench.fetch(path, {**BASE[path], "chat_template_kwargs": {name: True}})
        assert fetch.status == 400
        assert (fetch.error["code"], fetch.error["param"]) == (
            "unknown_parameter",
            f"chat_template_kwargs.{name}",
        )
    assert not bench.asks


async def test_harmless_hosted_tools_pass_where_functions_do_not() -> None:
    bench = FaceBench()
    hosted = [{"type": "web_search"}, {"type": "mcp", "server_label": "x", "require_approval": {"never": {}}}]
    fetch = await bench.respond(tools=hosted).done()
    assert fetch.status == 200 and fetch.json["tools"] == []
    for tools in ([*hosted, {"type": "function", "name": "f"}], [{"type": "custom", "name": "f"}]):
        fetch = await bench.respond(tools=tools).done()  # this model knows no tools
        assert (fetch.error["code"], fetch.error["param"]) == ("unsupported_parameter", "tools")
    assert (await bench.respond(tools=[]).done()).status == 200
    assert (await bench.chat(tools=[]).done()).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True, "store": False}, "background"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
def test_what_would_change_the_answer_is_refused(fields: dict[str, Any], param: str) -> None:
    bench = FaceBench()
    fetch = bench.respond(**fields)
    assert (fetch.status, fetch.error["code"], fetch.error["param"]) == (400, "unsupported_parameter", param)


async def test_what_codex_and_others_always_send_is_taken() -> None:
    bench = FaceBench()
    fetch = await bench.respond(
        store=False,
        stream=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="0195-abc",
        parallel_tool_calls=False,
        reasoning={"effort": "high", "summary": "auto"},
        text={"verbosity": "low"},
        service_tier="auto",
        stream_options={"include_usage": True},
        stop=None,
        ignore_eos=True,
        max_tool_calls=3,
        truncation="disabled",
        tool_choice="auto",
        metadata={},
    ).done()
    assert fetch.status == 200 and "x-ignored-fields" not in fetch.headers
    body = fetch.json
    assert body["reasoning"] == {"effort": "high", "summary": "auto"} and body["parallel_tool_calls"] is False
    assert body["service_tier"] == "default"


async def test_effort_none_turns_thinking_off() -> None:
    bench = FaceBench()
    for fetch in (bench.respond(reasoning={"effort": "none"}), bench.chat(reasoning_effort="none")):
        await fetch.done()
        assert bench.asks[-1].template_options == {"enable_thinking": False}
    bench.chat(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert bench.asks[-1].template_options == {"enable_thinking": True}
    bench.chat()
    assert bench.asks[-1].template_options == {}
    await bench.idle()


async def test_a_cache_salt_narrows_what_is_shared() -> None:
    bench = FaceBench()
    prompt = "a long shared beginning " * 8

    async def cached(tenant: Tenant = ALICE, **fields: Any) -> int:
        messages = [{"role": "user", "content": prompt}]
        reply = await bench.fetch(CHAT, {**BASE[CHAT], "messages": messages, **fields}, tenant=tenant).done()
        return reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert await cached() == 0
    assert await cached() > 100
    assert await cached(cache_salt="mine") == 0
    assert await cached(cache_salt="mine") > 100
    assert await cached(cache_salt="other") == 0
    assert await cached(BOB) == 0
    assert await cached(BOB, cache_salt="mine") == 0, "a salt never opens another tenant's cache"


RICH: dict[str, dict[str, Any]] = {
    CHAT: {
        **BASE[CHAT],
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b", "tool_calls": None},
            {"role": "user", "content": "c"},
        ],
        "stop": ["a"], "temperature": 0.5, "logit_bias": {"1": 2}, "stream_options": {"include_usage": True},
        "response_format": {"type": "text"}, "metadata": {"a": "b"}, "chat_template_kwargs": {"thinking": True},
    },
    RESPONSES: {
        **BASE[RESPONSES],
        "input": [
            {"role": "developer", "content": "s"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
            {"role": "user", "content": "c"},
        ],
        "stop": ["a"], "temperature": 0.5, "text": {"format": {"type": "text"}}, "tools": [{"type": "web_search"}],
        "reasoning": {"effort": "low"}, "metadata": {"a": "b"}, "include": ["x"], "store": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_mutated_requests_never_break_anything(path: str) -> None:
    """A thousand seeds; half as bytes with random damage. A failing seed is in the assertion."""
    bench = FaceBench(store={"count_limit": 20})
    socket: Socket | None = bench.socket() if path == RESPONSES else None
    good = 0
    for seed in range(1000):
        rng = random.Random(seed)
        body = RICH[path]
        for _ in range(rng.randint(1, 3)):
            mutated = mutate(rng, body)
            body = mutated if isinstance(mutated, dict) else body
        data = json.dumps(body).encode()
        if seed % 2:
            damaged = bytearray(data)
            for _ in range(rng.randint(0, 3)):
                damaged[rng.randrange(len(damaged))] = rng.choice(b'{}[]",:0eE-\\n\xff\x00')
            data = bytes(damaged)
        fetch = bench.fetch(path, data)
        await settle(bench, fetch)
        check_reply(fetch, (path, seed))
        good += fetch.status == 200
        if socket is not None and seed % 4 == 0:
            before = len(socket.said)
            socket.send('{"type":"response.create",' + data.decode()[1:])
            await socket.until(lambda: len(socket.said) > before)  # noqa: B023
    assert good > 50, "some of them must still be good"
    if socket is not None:
        await bench.idle()
        bench.flush()
        socket.drop()
    bench.readers.clear()
    await bench.baseline()
