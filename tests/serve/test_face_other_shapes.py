"""JSON on demand and forced calls on Anthropic's and Ollama's faces, against a model that would rather not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from face_bench import FaceBench
from fake_engine import next_token
from jsonschema import validate
from scripted_model import END, always
from strict_messages import check_error, check_events, check_message

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"type": "string", "maxLength": 8}, "kind": {"enum": ["rain", "sun"]}},
    "required": ["at", "kind"],
    "additionalProperties": False,
}
USER = [{"role": "user", "content": "x"}]
ANTHROPIC_TOOLS = [
    {"name": "weather", "input_schema": SCHEMA},
    {"name": "clock", "input_schema": {"type": "object"}},
]


def unwilling(tokens: list[int], seed: int, width: int) -> int:
    """A model that would only ever say quotation marks and braces: whatever else it says, it was made to."""
    return b'"}'[next_token(tokens, seed, 2)]


def bench_of(choose: Any = unwilling) -> FaceBench:
    return FaceBench(choose=choose, eos=frozenset({END}), form={"tools": "hermes", "reasoning": ""})


def messages(bench: FaceBench, **fields: Any) -> Any:
    return bench.fetch("/v1/messages", {"model": "fake", "max_tokens": 900, "messages": USER, **fields})


async def test_anthropic_s_output_format() -> None:
    bench = bench_of()
    form = {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"}
    whole = check_message((await messages(bench, output_config=form, seed=1).done()).json)
    streamed = check_events((await messages(bench, output_config=form, seed=1, stream=True).done()).body)
    for message in (whole, streamed):
        validate(json.loads(message["content"][0]["text"]), SCHEMA)
        assert message["stop_reason"] == "end_turn"
    count = {"model": "fake", "messages": USER, "output_config": form}
    assert (await bench.fetch("/v1/messages/count_tokens", count).done()).json["input_tokens"] > 0
    await bench.baseline()


@pytest.mark.parametrize(
    ("choice", "names"),
    [({"type": "any"}, {"weather", "clock"}), ({"type": "tool", "name": "weather"}, {"weather"})],
)
async def test_anthropic_s_forced_calls(choice: dict[str, Any], names: set[str]) -> None:
    bench = bench_of()
    choice = {**choice, "disable_parallel_tool_use": True}
    for seed in range(3):
        fetch = await messages(bench, tools=ANTHROPIC_TOOLS, tool_choice=choice, seed=seed).done()
        message = check_message(fetch.json)
        (call,) = [block for block in message["content"] if block["type"] == "tool_use"]
        assert message["stop_reason"] == "tool_use" and call["name"] in names
        if call["name"] == "weather":
            validate(call["input"], SCHEMA)
    await bench.baseline()


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_ollama_s_format(path: str) -> None:
    bench = bench_of()
    asked: dict[str, Any] = {"messages": USER} if path == "/api/chat" else {"prompt": "x"}
    asked |= {"model": "fake", "stream": False, "options": {"num_predict": 900, "seed": 1}}
    reply = (await bench.fetch(path, {**asked, "format": SCHEMA}).done()).json
    text = reply["message"]["content"] if path == "/api/chat" else reply["response"]
    validate(json.loads(text), SCHEMA)
    assert reply["done_reason"] == "stop"
    bench = bench_of(always('{"a": [1, true]} and so on'))
    reply = (await bench.fetch(path, {**asked, "format": "json"}).done()).json
    text = reply["message"]["content"] if path == "/api/chat" else reply["response"]
    assert json.loads(text) == {"a": [1, True]}
    await bench.baseline()


async def test_what_cannot_be_enforced_is_refused_by_name() -> None:
    bench = bench_of()
    bad = {"type": "object", "properties": {"a": {"type": "zork"}}}
    fetch = await messages(bench, output_config={"format": {"type": "json_schema", "schema": bad}}).done()
    assert fetch.status == 400
    assert "output_config.format" in check_error(fetch.json, "invalid_request_error")
    fetch = await messages(bench, tool_choice={"type": "any"}).done()
    assert fetch.status == 400 and "tool_choice" in check_error(fetch.json, "invalid_request_error")
    asked = {"model": "fake", "messages": USER, "format": bad}
    fetch = await bench.fetch("/api/chat", asked).done()
    assert fetch.status == 400 and "format" in fetch.json["error"]
    bench.engine.masks = False  # as on a device that cannot
    good = {"format": {"type": "json_schema", "schema": SCHEMA}}
    fetch = await messages(bench, output_config=good).done()
    assert fetch.status == 400
    assert "output_config.format" in check_error(fetch.json, "invalid_request_error")
    await bench.baseline()
