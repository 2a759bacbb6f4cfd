"""Anthropic's /v1/messages and count_tokens: whole, as events, refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import FaceBench, Fetch
from strict_messages import check_error, check_events, check_message, events_of

from headrace.runtime.plan import NON_FINITE
from headrace.server.exchange import HttpReply
from headrace.server.faces.messages_http import restated
from headrace.server.replies import error_reply

END = 10


def alphabet(count: int) -> Any:
    """`count` letters, then the end-of-text token."""

    def choose(tokens: list[int], seed: int, width: int) -> int:
        at = len(tokens) - bytes(tokens).rindex(b"assistant: ") - 11
        return END if at >= count else 97 + at % 26

    return choose


def ask(bench: FaceBench, messages: Any = "hello", path: str = "/v1/messages", **fields: Any) -> Fetch:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = {"model": "fake", "messages": messages, **fields}
    if path == "/v1/messages":
        body = {"max_tokens": 5, "seed": 1, **body}
    return bench.fetch(path, body)


def prompt(bench: FaceBench) -> str:
    return bytes(bench.prompts[-1]).decode()


async def test_whole_and_streamed_say_the_same() -> None:
    bench = FaceBench()
    whole = check_message((await ask(bench).done()).json)
    fetch = await ask(bench, stream=True).done()
    assert b"[DONE]" not in fetch.body
    streamed = check_events(fetch.body)
    for message in (whole, streamed):
        assert message["stop_reason"] == "max_tokens" and message["stop_sequence"] is None
        assert message["usage"]["output_tokens"] == 5
        (block,) = message["content"]
        assert block["type"] == "text" and len(block["text"]) == 5
    assert whole["content"] == streamed["content"]
    assert fetch.headers["request-id"] == "req-1"
    await bench.baseline()


async def test_the_input_counts_add_up_to_the_prompt() -> None:
    bench = FaceBench()
    length = len("user: hello, this is more than one page\nassistant: ")
    for cached in (0, length // 16 * 16):
        message = (await ask(bench, "hello, this is more than one page").done()).json
        usage = message["usage"]
        assert usage["cache_read_input_tokens"] == cached
        assert usage["input_tokens"] + cached + usage["cache_creation_input_tokens"] == length
    streamed = events_of((await ask(bench, "hello, this is more than one page", stream=True).done()).body)
    assert streamed[0]["message"]["usage"]["cache_read_input_tokens"] == cached


@pytest.mark.parametrize("stream", [True, False])
async def test_why_an_answer_ended(stream: bool) -> None:
    bench = FaceBench(choose=alphabet(20), eos=frozenset({END}))

    async def ended(**fields: Any) -> dict[str, Any]:
        fetch = await ask(bench, stream=stream, **{"max_tokens": 50, **fields}).done()
        return check_events(fetch.body) if stream else check_message(fetch.json)

    message = await ended()
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    assert message["content"][0]["text"] == "abcdefghijklmnopqrst"
    message = await ended(stop_sequences=["zz", "fgh"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "fgh")
    assert message["content"][0]["text"] == "abcde"
    message = await ended(max_tokens=3)
    assert message["stop_reason"] == "max_tokens" and message["content"][0]["text"] == "abc"
    message = await ended(stop_sequences=["a"])
    assert message["stop_reason"] == "stop_sequence" and message["content"] == []
    await bench.baseline()


@pytest.mark.parametrize("stream", [True, False])
async def test_more_tokens_than_the_context_has_room_for(stream: bool) -> None:
    bench = FaceBench(page_count=4)
    fetch = await ask(bench, max_tokens=32000, stream=stream).done()
    message = check_events(fetch.body) if stream else check_message(fetch.json)
    assert message["stop_reason"] == "model_context_window_exceeded"
    assert message["usage"]["output_tokens"] == 64 - len("user: hello\nassistant: ")
    fetch = await ask(bench, "x" * 100, stream=stream).done()
    assert fetch.status == 400
    assert "messages" not in fetch.json and "the prompt has" in check_error(
        fetch.json, "invalid_request_error"
    )


async def test_turns_become_the_prompt() -> None:
    bench = FaceBench()
    cached = {"type": "ephemeral"}
    fetch = await ask(
        bench,
        [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": cached}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hmm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "xx"},
                    {"type": "text", "text": "c"},
                    {"type": "text", "text": "d"},
                ],
            },
            {"role": "user", "content": "e"},
        ],
        system=[{"type": "text", "text": "one", "cache_control": cached}, {"type": "text", "text": "two"}],
        metadata={"user_id": "u"},
    ).done()
    assert fetch.status == 200 and "x-ignored-fields" not in fetch.headers
    assert prompt(bench) == "system: one\n\ntwo\nuser: a\n\nb\nassistant: cd\nuser: e\nassistant: "
    await ask(bench, system="plain").done()
    assert prompt(bench) == "system: plain\nuser: hello\nassistant: "


@pytest.mark.parametrize(
    ("thinking", "told"),
    [
        (None, {}),
        ({"type": "enabled", "budget_tokens": 2048}, {"enable_thinking": True}),
        ({"type": "adaptive"}, {"enable_thinking": True}),
        ({"type": "disabled"}, {"enable_thinking": False}),
    ],
)
async def test_thinking_reaches_the_template(thinking: Any, told: dict[str, bool]) -> None:
    bench = FaceBench()
    assert (await ask(bench, thinking=thinking).done()).status == 200
    assert bench.asks[-1].template_options == told


async def test_sampling_fields_reach_the_ask() -> None:
    bench = FaceBench()
    await ask(bench, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, max_tokens=3).done()
    given = bench.asks[-1]
    assert (given.temperature, given.top_p, given.top_k, given.min_p) == (0.5, 0.9, 7, 0.1)
    assert given.max_tokens == 3 and given.seed == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"container": "c"}, "container"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"format": {"type": "zork"}}}, "output_config.format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "zork"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}]},
            "messages",
        ),
        ({"x_zork": 1}, "x_zork"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], named: str, path: str) -> None:
    bench = FaceBench()
    if path.endswith("count_tokens") and named in ("max_tokens", "temperature", "container"):
        fields = {"x_zork": 1}  # what makes no prompt is not among these fields
        named = "x_zork"
    fetch = ask(bench, path=path, **fields)
    assert fetch.status == 400
    assert named in check_error(fetch.json, "invalid_request_error")
    assert fetch.json["request_id"] == fetch.headers["request-id"] == "req-1"
    await bench.baseline()


async def test_an_unknown_model_and_bad_json() -> None:
    bench = FaceBench()
    fetch = ask(bench, model="claude-9")
    assert fetch.status == 404 and "claude-9" in check_error(fetch.json, "not_found_error")
    fetch = bench.fetch("/v1/messages", b"{", method="POST")
    assert fetch.status == 400
    check_error(fetch.json, "invalid_request_error")


async def test_count_tokens_counts_the_prompt() -> None:
    bench = FaceBench()
    fetch = await ask(bench, path="/v1/messages/count_tokens", system="s").done()
    assert fetch.json == {"input_tokens": len("system: s\nuser: hello\nassistant: ")}
    long = await ask(bench, "x" * 100_000, path="/v1/messages/count_tokens").done()
    assert long.json == {"input_tokens": 100_000 + len("user: \nassistant: ")}
    assert not bench.prompts, "nothing was generated"
    bench.runtime.drain()
    fetch = ask(bench, path="/v1/messages/count_tokens")
    assert fetch.status == 503 and "retry-after" in fetch.headers
    check_error(fetch.json, "overloaded_error")


async def test_a_count_that_fails_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FaceBench()

    def broken(ask: Any) -> Any:
        raise ValueError("a fault")

    monkeypatch.setattr(bench.runtime.prompter, "prepare", broken)
    fetch = await ask(bench, path="/v1/messages/count_tokens").done()
    assert fetch.status == 500
    check_error(fetch.json, "api_error")


async def test_failures_before_and_after_the_first_event() -> None:
    def broken(after: int) -> Any:
        return lambda tokens, seed, width: NON_FINITE if len(tokens) >= 23 + after else 97

    bench = FaceBench(choose=broken(0))
    for stream in (False, True):
        fetch = await ask(bench, stream=stream).done()
        assert fetch.status == 500
        check_error(fetch.json, "api_error")
    bench = FaceBench(choose=broken(3))
    fetch = await ask(bench, stream=True).done()
    *events, last = events_of(fetch.body)
    assert fetch.status == 200 and events[0]["type"] == "message_start"
    check_error(last, "api_error")
    await bench.baseline()


async def test_a_silence_is_broken_by_a_ping_event() -> None:
    bench = FaceBench(gated=True)
    fetch = ask(bench, stream=True)
    fetch.ping()
    assert fetch.status == 200 and fetch.body == b'event: ping\ndata: {"type":"ping"}\n\n'
    await fetch.done()
    check_events(fetch.body)
    whole = ask(bench)
    whole.ping()
    check_message((await whole.done()).json)


async def test_unknown_fields_are_named_or_refused() -> None:
    bench = FaceBench()
    fetch = await ask(bench, zork=1).done()
    assert fetch.headers["x-ignored-fields"] == "zork" and bench.ignored == [("messages", 1)]
    strict = ask(FaceBench(settings={"strict_fields": True}), zork=1)
    assert strict.status == 400 and "zork" in check_error(strict.json, "invalid_request_error")


async def test_a_client_that_goes_is_cancelled() -> None:
    bench = FaceBench(gated=True)
    leaving = [ask(bench, stream=stream, max_tokens=1000) for stream in (True, False)]
    await bench.until(lambda: bool(leaving[0].chunks))
    for fetch in leaving:
        fetch.drop()
    await bench.baseline()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "authentication_error"),
        (413, "request_too_large"),
        (405, "invalid_request_error"),
        (503, "overloaded_error"),
    ],
)
def test_refusals_of_the_front_have_the_same_shape(status: int, kind: str) -> None:
    reply: HttpReply = restated(error_reply(status, "a sentence", headers={"retry-after": "1"}), "req-7")
    body = json.loads(reply.body)
    assert reply.status == status and check_error(body, kind) == "a sentence"
    assert body["request_id"] == "req-7"
    assert reply.headers == {"retry-after": "1", "request-id": "req-7"}
