"""Unmodified clients in their tool loops: openai, openai-agents and langchain-openai against the running server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_openai import ChatOpenAI
from live_server import WAIT, LiveServer
from pydantic import SecretStr
from scripted_model import END, Script, call

KEY = "sk-test"
AGENTS = Path(sys.prefix) / "agents" / "bin" / "python"
CALLS = "\n".join(call("weather", json.dumps({"at": at})) for at in ("Rome", "Oslo"))
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "what it is like", "parameters": SCHEMA},
}


def reply(prompt: str) -> str:
    """Two calls, then what came of them; without tools just words."""
    if "offers weather" not in prompt:
        return "<think>no tools</think>Nobody knows."
    if "rain in Rome" in prompt and "rain in Oslo" in prompt:
        return "<think>wet</think>It rains in both."
    return f"<think>two places</think>Looking.\n{CALLS}"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    form = {"tools": "hermes", "reasoning": "think"}
    running = LiveServer(choose=Script(reply), eos=frozenset({END}), keys=(KEY,), form=form)
    yield running
    running.baseline()
    running.stop()


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def results(calls: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "role": "tool",
            "tool_call_id": each.id,
            "content": f"rain in {json.loads(each.function.arguments)['at']}",
        }
        for each in calls
    ]


def test_openai_chat_runs_the_loop(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "weather?"}]
    first = client.chat.completions.create(model="fake", messages=messages, tools=[TOOL], seed=1)
    (choice,) = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Looking.")
    assert choice.message.tool_calls is not None and len(choice.message.tool_calls) == 2
    messages += [choice.message, *results(choice.message.tool_calls)]
    second = client.chat.completions.create(model="fake", messages=messages, tools=[TOOL], seed=1)
    assert (second.choices[0].finish_reason, second.choices[0].message.content) == (
        "stop",
        "It rains in both.",
    )
    assert second.usage is not None and second.usage.completion_tokens_details is not None
    assert second.usage.completion_tokens_details.reasoning_tokens


def test_openai_chat_streams_calls(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "weather?"}]
    with client.chat.completions.stream(model="fake", messages=messages, tools=[TOOL], seed=1) as stream:
        kinds = [event.type for event in stream]
        whole = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert "tool_calls.function.arguments.delta" in kinds and "content.delta" in kinds
    (choice,) = whole.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Looking."
    assert [each.function.arguments for each in choice.message.tool_calls or ()] == [
        '{"at": "Rome"}',
        '{"at": "Oslo"}',
    ]


def test_openai_responses_run_the_loop_and_stream(client: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
    first = client.responses.create(model="fake", input="weather?", tools=tools)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call", "function_call"]
    outputs: list[Any] = [
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": f"rain in {json.loads(item.arguments)['at']}",
        }
        for item in first.output
        if item.type == "function_call"
    ]
    with client.responses.stream(
        model="fake", input=outputs, previous_response_id=first.id, tools=tools
    ) as stream:
        kinds = [event.type for event in stream]
        second = stream.get_final_response()
    assert second.output_text == "It rains in both."
    assert "response.reasoning_text.delta" in kinds
    with pytest.raises(openai.BadRequestError) as lost:
        client.responses.create(model="fake", input=outputs, tools=tools)
    call_id = outputs[0]["call_id"]
    assert (
        lost.value.body["message"] == f"No tool call found for function call output with call_id {call_id}."
    )  # type: ignore[index]


def test_openai_agents_run_the_loop(server: LiveServer) -> None:
    script = Path(__file__).with_name("agents_run.py")
    assert AGENTS.exists(), "openai-agents is missing: .ci/agents installs it beside this interpreter"
    ran = subprocess.run(
        [AGENTS, "-P", script, f"{server.url}/v1", KEY], capture_output=True, text=True, timeout=4 * WAIT
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout)
    assert set(told) == {
        *("socket items", "socket chained", "socket streamed"),
        *("http items", "http chained", "http streamed"),
        *("chat items", "chat streamed"),
    }
    for name, run in told.items():
        assert run["final"] == "It rains in both.", name
        assert sorted(run["asked"]) == ["Oslo", "Rome"], name
        assert run["responses"] == 2, name
        assert run["items"].count("tool_call_item") == run["items"].count("tool_call_output_item") == 2, name
        assert "reasoning_item" in run["items"], name
    for name in ("socket streamed", "http streamed"):
        assert "response.function_call_arguments.delta" in told[name]["kinds"]


def test_langchain_binds_tools_and_streams(server: LiveServer) -> None:
    for responses in (False, True):
        model = ChatOpenAI(
            base_url=f"{server.url}/v1",
            api_key=SecretStr(KEY),
            model="fake",
            max_retries=0,
            use_responses_api=responses,
            stream_usage=True,
        )
        bound = model.bind_tools([TOOL])
        first = bound.invoke([("user", "weather?")])
        assert [each["args"] for each in first.tool_calls] == [{"at": "Rome"}, {"at": "Oslo"}]
        history: list[Any] = [("user", "weather?"), first]
        history += [
            ToolMessage(f"rain in {each['args']['at']}", tool_call_id=each["id"]) for each in first.tool_calls
        ]
        whole: AIMessageChunk | None = None
        for chunk in bound.stream(history):
            assert isinstance(chunk, AIMessageChunk)
            whole = chunk if whole is None else whole + chunk
        assert whole is not None and whole.text == "It rains in both."
        assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] > 0
        streamed: AIMessageChunk | None = None
        for chunk in bound.stream([("user", "weather?")]):
            assert isinstance(chunk, AIMessageChunk)
            streamed = chunk if streamed is None else streamed + chunk
        assert streamed is not None
        assert [each["args"] for each in streamed.tool_calls] == [{"at": "Rome"}, {"at": "Oslo"}]
