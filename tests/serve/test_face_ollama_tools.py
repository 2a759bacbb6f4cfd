"""Tools and thinking on Ollama's /api: lines, history, and mistakes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import FaceBench, Fetch
from face_said import prompt_of
from ollama import ChatResponse
from scripted_model import END, Script, always, call

FORM = {"tools": "hermes", "reasoning": "think"}
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "what it is like", "parameters": SCHEMA},
    },
    {"type": "function", "function": {"name": "clock"}},
]
ROME = call("weather", '{"at": "Rome"}')
NOW = call("clock", "{}")
USER = [{"role": "user", "content": "hello"}]
WEATHER = {"name": "weather", "arguments": {"at": "Rome"}, "index": 0}


def bench_of(script: Script | str) -> FaceBench:
    script = always(script) if isinstance(script, str) else script
    return FaceBench(choose=script, eos=frozenset({END}), form=FORM)


def ask(bench: FaceBench, messages: Any = USER, **fields: Any) -> Fetch:
    return bench.fetch("/api/chat", {"model": "fake", "messages": messages, "tools": TOOLS, **fields})


async def said(bench: FaceBench, **fields: Any) -> tuple[str, str, list[dict[str, Any]]]:
    """Content, thinking and functions of one answer, whole and streamed alike."""
    whole = (await ask(bench, stream=False, **fields).done()).json
    lines = [json.loads(line) for line in (await ask(bench, **fields).done()).body.splitlines()]
    found = []
    for messages in ([whole["message"]], [line["message"] for line in lines]):
        calls = [each for message in messages for each in message.get("tool_calls", [])]
        assert all(each["id"].startswith("call_") for each in calls)
        found.append(
            (
                "".join(message["content"] for message in messages),
                "".join(message.get("thinking", "") for message in messages),
                [each["function"] for each in calls],
            )
        )
    for line in (whole, *lines):
        ChatResponse.model_validate_json(json.dumps(line), strict=True)
        for name in ("thinking", "tool_calls"):
            assert line["message"].get(name, "x"), "left out, never empty"
    assert found[0] == found[1]
    assert lines[-1]["done_reason"] == whole["done_reason"]
    return found[0]


def test_what_the_model_can_is_shown() -> None:
    for bench, able in ((bench_of("ok"), ["completion", "thinking", "tools"]), (FaceBench(), ["completion"])):
        assert bench.fetch("/api/show", {"model": "fake"}).json["capabilities"] == able


async def test_calls_come_whole() -> None:
    content, thinking, calls = await said(bench_of(f"Wait.{ROME}{NOW}"))
    assert (content, thinking) == ("Wait.", "")
    assert calls == [WEATHER, {"name": "clock", "arguments": {}, "index": 1}]
    assert await said(bench_of("plain")) == ("plain", "", [])


async def test_thoughts_come_apart() -> None:
    bench = bench_of(f"<think>\nhm\n</think>\n\nYes.{ROME}")
    content, thinking, calls = await said(bench)
    assert content == "Yes." and thinking.strip() == "hm" and calls == [WEATHER]
    fields = {"model": "fake", "prompt": "x", "stream": False}
    reply = (await bench_of("<think>hm</think>Yes.").fetch("/api/generate", fields).done()).json
    assert reply["response"] == "Yes." and reply["thinking"].strip() == "hm"


async def test_a_call_that_is_cut_off_is_told_as_text() -> None:
    bench = bench_of(call("weather", '{"at": "a very long name of a city"}'))
    content, _, calls = await said(bench, options={"num_predict": 60})
    assert not calls and content.startswith('weather({"at": "a')


async def test_calls_and_results_become_the_prompt() -> None:
    bench = bench_of("ok")
    messages = [
        *USER,
        {
            "role": "assistant",
            "content": "Wait.",
            "thinking": "hm",
            "tool_calls": [
                {"function": {"name": "weather", "arguments": {"at": "Rome"}}},
                {"id": "call_7", "type": "function", "function": {"name": "clock", "index": 1}},
                {"function": {"name": "weather", "arguments": {"at": "Oslo"}}},
            ],
        },
        {"role": "tool", "content": "noon", "tool_name": "clock"},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "snow", "tool_name": "weather"},
        {"role": "user", "content": "and?"},
    ]
    fetch = await ask(bench, messages).done()
    assert fetch.status == 200 and "x-ignored-fields" not in fetch.headers, fetch.body
    given = bench.asks[-1].messages
    assert given is not None
    ids = [each.id for each in given[1].calls]
    assert ids[1] == "call_7" and given[1].reasoning == "hm"
    assert [message.call_id for message in given[2:5]] == [ids[1], ids[0], ids[2]]
    assert prompt_of(bench).startswith(
        "offers weather\noffers clock\nuser: hello\nassistant: Wait. [weather {"
    )
    assert prompt_of(bench).endswith(f"tool of {ids[2]}: snow\nuser: and?\nassistant: ")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x", "tool_name": "clock"}]}, "messages[0]"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": 5}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
async def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    bench = bench_of("ok")
    fetch = ask(bench, **fields)
    assert fetch.status == 400 and named in fetch.json["error"]
    assert not bench.asks
