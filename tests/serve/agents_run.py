"""Runs of openai-agents against a server, told as one JSON line.

Started by test_tool_clients.py with an interpreter of its own: the package wants another version of websockets than
the server does."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from agents import Agent, ModelSettings, RunConfig, Runner, function_tool, set_tracing_disabled
from agents.models.openai_provider import OpenAIProvider


async def main(url: str, key: str) -> dict[str, Any]:
    set_tracing_disabled(True)
    asked: list[str] = []

    @function_tool
    def weather(at: str) -> str:
        """What it is like somewhere."""
        asked.append(at)
        return f"rain in {at}"

    async def run(streamed: bool = False, **how: Any) -> dict[str, Any]:
        asked.clear()
        agent = Agent(name="guide", instructions="Be short.", model="fake", tools=[weather])
        settings = ModelSettings(max_tokens=600, parallel_tool_calls=True)
        config = RunConfig(model_provider=provider, model_settings=settings)
        if streamed:
            result = Runner.run_streamed(agent, "weather?", run_config=config, **how)
            kinds = [
                event.data.type
                async for event in result.stream_events()
                if event.type == "raw_response_event"
            ]
        else:
            result = await Runner.run(agent, "weather?", run_config=config, **how)
            kinds = []
        return {
            "final": result.final_output,
            "asked": list(asked),
            "items": [item.type for item in result.new_items],
            "kinds": sorted(set(kinds)),
            "responses": len(result.raw_responses),
        }

    told = {}
    for transport in (True, False):
        name = "socket" if transport else "http"
        provider = OpenAIProvider(
            base_url=url, api_key=key, use_responses=True, use_responses_websocket=transport
        )
        told[f"{name} items"] = await run()
        told[f"{name} chained"] = await run(auto_previous_response_id=True)
        told[f"{name} streamed"] = await run(streamed=True)
    provider = OpenAIProvider(base_url=url, api_key=key, use_responses=False)
    told["chat items"] = await run()
    told["chat streamed"] = await run(streamed=True)
    return told


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
