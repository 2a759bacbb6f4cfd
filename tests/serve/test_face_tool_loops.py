"""Tool loops as users of other clients write them: anthropic, ollama and litellm, unmodified, on a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import pytest
from live_server import LiveServer
from scripted_model import END, Script, call

FORM = {"tools": "hermes", "reasoning": "think"}


def weather_first(prompt: str) -> str:
    """Thinks, asks for the weather, and says what it was told."""
    told = [line for line in prompt.splitlines() if line.startswith("tool of ")]
    if told:
        return f"In Rome it is {told[-1].partition(': ')[2]}."
    return "<think>where?</think>" + call("weather", '{"city": "Rome"}')


def weather(city: str) -> str:
    """The weather of a city.

    Args:
      city: its name
    """
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    running = LiveServer(choose=Script(weather_first), eos=frozenset({END}), form=FORM, page_count=512)
    yield running
    running.baseline()
    running.stop()


def test_anthropic_s_tool_runner(server: LiveServer) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        runner = client.beta.messages.tool_runner(
            model="fake",
            max_tokens=500,
            tools=[anthropic.beta_tool(weather)],
            messages=[{"role": "user", "content": "hot?"}],
        )
        messages = list(runner)
    assert [message.stop_reason for message in messages] == ["tool_use", "end_turn"]
    assert [block.type for block in messages[0].content] == ["thinking", "tool_use"]
    assert messages[1].content[-1].text == "In Rome it is sunny in Rome."  # type: ignore[union-attr]


async def test_anthropic_s_stream_with_a_call(server: LiveServer) -> None:
    tools: Any = [
        {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    ]
    turns: Any = [{"role": "user", "content": "hot?"}]
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        async with client.messages.stream(
            model="fake", max_tokens=500, tools=tools, messages=turns
        ) as stream:
            kinds = {event.type async for event in stream}
            message = await stream.get_final_message()
        assert {"thinking", "input_json", "content_block_stop", "message_stop"} <= kinds
        thought, used = message.content
        assert thought.type == "thinking" and thought.thinking == "where?"
        assert used.type == "tool_use" and used.input == {"city": "Rome"}
        result: Any = {"type": "tool_result", "tool_use_id": used.id, "content": "hot"}
        turns += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        final = await client.messages.create(model="fake", max_tokens=500, tools=tools, messages=turns)
    assert final.content[-1].type == "text" and final.content[-1].text == "In Rome it is hot."


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_with_a_function_as_a_tool(server: LiveServer, stream: bool) -> None:
    turns: list[Any] = [{"role": "user", "content": "hot?"}]
    with ollama.Client(host=server.url, trust_env=False) as client:
        for _ in range(2):
            reply = client.chat(model="fake", messages=turns, tools=[weather], stream=stream)
            parts = list(reply) if stream else [reply]
            calls = [each for part in parts for each in part.message.tool_calls or []]
            content = "".join(part.message.content or "" for part in parts)
            thinking = "".join(part.message.thinking or "" for part in parts)
            turns.append({"role": "assistant", "content": content, "thinking": thinking, "tool_calls": calls})
            for each in calls:
                assert thinking == "where?" and each.function.name == "weather"
                said = weather(**each.function.arguments)
                turns.append({"role": "tool", "content": said, "tool_name": each.function.name})
    assert content == "In Rome it is sunny in Rome."


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama_chat"])
@pytest.mark.parametrize("stream", [False, True])
def test_litellm(server: LiveServer, provider: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    base = f"{server.url}/v1" if provider == "openai" else server.url
    asked: dict[str, Any] = {"model": f"{provider}/fake", "api_base": base, "api_key": "none", "tools": tools}
    turns: list[Any] = [{"role": "user", "content": "hot?"}]
    reply = litellm.completion(**asked, messages=turns, max_tokens=500, stream=stream)
    if stream:
        reply = litellm.stream_chunk_builder(list(reply), messages=turns)
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls"
    (called,) = message.tool_calls
    assert called.function.name == "weather" and json.loads(called.function.arguments) == {"city": "Rome"}
    turns += [message.model_dump(), {"role": "tool", "tool_call_id": called.id, "content": weather("Rome")}]
    final = litellm.completion(**asked, messages=turns, max_tokens=500)
    assert final.choices[0].message.content.strip() == "In Rome it is sunny in Rome."
