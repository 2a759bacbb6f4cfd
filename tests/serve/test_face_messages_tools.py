"""Tools and thinking on Anthropic's /v1/messages: blocks, history, and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from face_bench import FaceBench, Fetch
from face_said import prompt_of
from scripted_model import END, Script, always, call
from strict_messages import check_error, check_events, check_message, events_of

from headrace.server.faces.tool_items import opened

FORM = {"tools": "hermes", "reasoning": "think"}
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
TOOLS = [
    {"name": "weather", "description": "what it is like", "input_schema": SCHEMA},
    {
        "type": "custom",
        "name": "clock",
        "input_schema": {"type": "object"},
        "cache_control": {"type": "ephemeral"},
    },
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
]
ROME = call("weather", '{"at": "Rome"}')
NOW = call("clock", "{}")
USER = [{"role": "user", "content": "hello"}]


def bench_of(script: Script | str) -> FaceBench:
    script = always(script) if isinstance(script, str) else script
    return FaceBench(choose=script, eos=frozenset({END}), form=FORM)


def ask(bench: FaceBench, messages: Any = USER, **fields: Any) -> Fetch:
    body = {"model": "fake", "max_tokens": 500, "messages": messages, "tools": TOOLS, **fields}
    return bench.fetch("/v1/messages", body)


async def said(bench: FaceBench, **fields: Any) -> dict[str, Any]:
    """The message of one answer, whole and streamed alike."""
    whole = check_message((await ask(bench, **fields).done()).json)
    streamed = check_events((await ask(bench, stream=True, **fields).done()).body)
    for message in (whole, streamed):
        for block in message["content"]:
            if block["type"] == "tool_use":
                assert block["id"].startswith("toolu_")
    assert [without_id(block) for block in whole["content"]] == [
        without_id(block) for block in streamed["content"]
    ]
    assert whole["stop_reason"] == streamed["stop_reason"]
    return whole


def without_id(block: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key != "id"}


def tool_use(name: str, given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "name": name, "input": given}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


WEATHER = tool_use("weather", {"at": "Rome"})
CLOCK = tool_use("clock", {})


@pytest.mark.parametrize(
    ("answer", "blocks", "reason"),
    [
        (ROME, [WEATHER], "tool_use"),
        (f"Wait.{ROME}{NOW}", [text("Wait."), WEATHER, CLOCK], "tool_use"),
        ("plain", [text("plain")], "end_turn"),
        (call("unknown", "{}"), [text(call("unknown", "{}"))], "end_turn"),
        (call("weather", '{"at": [1.50, "é\\n", {"a": null}]}'),
         [tool_use("weather", {"at": [1.5, "é\n", {"a": None}]})], "tool_use"),
    ],
)  # fmt: skip
async def test_calls_are_blocks(answer: str, blocks: list[dict[str, Any]], reason: str) -> None:
    message = await said(bench_of(answer))
    assert [without_id(block) for block in message["content"]] == blocks
    assert message["stop_reason"] == reason


async def test_thoughts_are_blocks_with_a_signature() -> None:
    bench = bench_of(f"<think>\nhm\n</think>\n\nYes.{ROME}")
    message = await said(bench)
    thought, answer, call_ = message["content"]
    assert thought["type"] == "thinking" and thought["thinking"].strip() == "hm" and thought["signature"]
    assert answer == text("Yes.") and without_id(call_) == WEATHER
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] > 0
    hidden = await said(bench, thinking={"type": "adaptive", "display": "omitted"})
    thought = hidden["content"][0]
    assert thought["thinking"] == "" and opened(thought["signature"]).strip() == "hm"
    events = events_of(
        (await ask(bench, thinking={"type": "adaptive", "display": "omitted"}, stream=True).done()).body
    )
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas[0] == "signature_delta" and "thinking_delta" not in deltas


async def test_an_answer_cut_inside_of_a_call() -> None:
    bench = bench_of(call("weather", '{"at": "a very long name of a city"}'))
    whole = check_message((await ask(bench, max_tokens=60).done()).json)
    assert whole["stop_reason"] == "max_tokens"
    (block,) = whole["content"]
    assert block["type"] == "tool_use" and block["input"]["x_partial_json"].startswith('{"at": "a')
    events = events_of((await ask(bench, max_tokens=60, stream=True).done()).body)
    told = "".join(e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta")
    assert told == block["input"]["x_partial_json"]
    assert [event["type"] for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]


async def test_one_call_only_if_parallel_ones_are_not_wanted() -> None:
    bench = bench_of(f"{ROME}{NOW}")
    message = await said(bench, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [without_id(block) for block in message["content"]] == [WEATHER]
    assert message["stop_reason"] == "tool_use"


async def test_no_calls_are_looked_for_if_none_are_wanted() -> None:
    message = await said(bench_of(ROME), tool_choice={"type": "none"})
    assert message["content"] == [text(ROME)] and message["stop_reason"] == "end_turn"


async def test_calls_and_results_become_the_prompt() -> None:
    bench = bench_of("ok")
    messages = [
        *USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Wait."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"at": "Rome"}},
                {"type": "tool_use", "id": "toolu_2", "name": "clock", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "on"}],
                    "is_error": False,
                },
                {"type": "text", "text": "and?"},
            ],
        },
    ]
    fetch = await ask(bench, messages).done()
    assert fetch.status == 200, fetch.body
    assert fetch.headers["x-ignored-fields"] == "tools[2].max_uses"
    assert prompt_of(bench) == (
        "offers weather\noffers clock\nuser: hello\n"
        'assistant: Wait. [weather {"at": "Rome"}] [clock {}]\n'
        "tool of toolu_1: sunny\ntool of toolu_2: noon\nuser: and?\nassistant: "
    )
    assert bench.asks[-1].messages is not None and bench.asks[-1].messages[1].reasoning == "hm"
    counted = bench.fetch(
        "/v1/messages/count_tokens", {"model": "fake", "messages": messages, "tools": TOOLS}
    )
    assert (await counted.done()).json["input_tokens"] == len(prompt_of(bench))


USED = {"type": "tool_use", "id": "a", "name": "b"}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_9", "content": "x"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"name": "a b", "input_schema": SCHEMA}]}, "tools[0].name"),
        ({"tools": [{"input_schema": SCHEMA}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a", "input_schema": {"type": "string"}}]}, "tools[0].input_schema"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "tool", "name": "zork"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "zork"}}, "tool_choice.type"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "toolu_9"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a"}]}]},
            "messages[0].content[0]",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{**USED, "input": 5}],
                    }
                ]
            },
            "messages[0].content[0].input",
        ),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "b"}]}]}, "id"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    bench = bench_of("ok")
    fetch = ask(bench, **fields)
    assert fetch.status == 400 and named in check_error(fetch.json, "invalid_request_error")
    assert not bench.asks


async def test_a_model_without_tools_says_so() -> None:
    bench = FaceBench()
    fetch = await ask(bench).done()
    assert fetch.status == 400 and "tools" in check_error(fetch.json, "invalid_request_error")
