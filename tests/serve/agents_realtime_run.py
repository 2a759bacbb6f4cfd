"""A RealtimeRunner of openai-agents against a server, told as one JSON line.

Started by test_realtime_tools.py with an interpreter of its own: the package wants another version of websockets
than the server does."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner


def texts(history: list[Any]) -> list[str]:
    """What the assistant said, oldest first."""
    said = []
    for item in history:
        if item.type == "message" and item.role == "assistant":
            said.append("".join(getattr(part, "text", "") or "" for part in item.content))
    return said


async def main(url: str, key: str) -> dict[str, Any]:
    asked: list[str] = []

    @function_tool
    def weather(at: str) -> str:
        """What it is like somewhere."""
        asked.append(at)
        return f"rain in {at}"

    errors: list[str] = []
    exceptions: list[str] = []

    async def run(tools: list[Any], messages: list[str], turns: int) -> list[Any]:
        agent = RealtimeAgent(name="guide", instructions="Be short.", tools=tools)
        config: Any = {"model_settings": {"model_name": "fake", "modalities": ["text"]}}
        address = url.replace("http://", "ws://") + "/v1/realtime?model=fake"
        runner = RealtimeRunner(starting_agent=agent, config=config)
        session = await runner.run(model_config={"api_key": key, "url": address})
        waiting = list(messages)
        async with session:
            await session.send_message(waiting.pop(0))
            async for event in session:
                if event.type == "error":
                    errors.append(str(event.error))
                elif event.type == "raw_model_event" and event.data.type == "exception":
                    exceptions.append(str(event.data))
                elif event.type == "agent_end":
                    turns -= 1
                    if not turns:
                        break
                    if waiting:
                        await session.send_message(waiting.pop(0))
            return list(session._history)

    called = await run([weather], ["weather?"], 2)
    plain = await run([], ["hello", "and again"], 2)
    return {
        "asked": asked,
        "errors": errors,
        "exceptions": exceptions,
        "texts": texts(called),
        "roles": [getattr(item, "role", item.type) for item in called],
        "plain": texts(plain),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
