"""The golden evaluation: questions with exact answers, asked through a running server over websocket.

    headrace bench eval http://127.0.0.1:8000

The questions are those of the demo model (headrace.bench.demo), with values that its training never saw, the same
ones every time; pictures and tools included. Greedy answers are compared to the letter. Batches, chunks, prefix
hits and pauses must not change the result, so a server is as right with `--at-once 64` as with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect

from headrace.bench.demo.dialogue import Dialogue
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.kinds import KINDS, question

SEED = 99_000_000
MOST_TOKENS = 200
MOST_MESSAGE = 64 << 20
PATIENCE = 600.0  # seconds for one answer; only a hang takes as long


def items(dialogue: Dialogue) -> list[dict[str, Any]]:
    """All messages but the last one, as the input of a response."""
    found: list[dict[str, Any]] = []
    calls = 0
    for message in dialogue.messages[:-1]:
        if message.role == "tool":
            found.append({"type": "function_call_output", "call_id": f"call_{calls}", "output": message.text})
            continue
        if message.pictures:
            parts = [
                *({"type": "input_image", "image_url": data_url(each)} for each in message.pictures),
                *([{"type": "input_text", "text": message.text}] if message.text else []),
            ]
            found.append({"role": message.role, "content": parts})
        elif message.text:
            found.append({"role": message.role, "content": message.text})
        if message.call is not None:
            calls += 1
            name, arguments = message.call
            written = json.dumps(arguments, ensure_ascii=False)
            found.append(
                {"type": "function_call", "call_id": f"call_{calls}", "name": name, "arguments": written}
            )
    return found


def data_url(picture: Any) -> str:
    """A picture without loss."""
    kept = io.BytesIO()
    picture.save(kept, "PNG")
    return "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()


def create(dialogue: Dialogue) -> dict[str, Any]:
    """The request for the last message of `dialogue`, answered greedily."""
    request: dict[str, Any] = {
        "type": "response.create",
        "model": "default",
        "input": items(dialogue),
        "temperature": 0,
        "max_output_tokens": MOST_TOKENS,
        "store": False,
    }
    if dialogue.tools:
        request["tools"] = [{"type": "function", **tool["function"]} for tool in dialogue.tools]
    return request


def spoken(response: dict[str, Any]) -> str:
    """All that an answer says, calls as the model writes them."""
    parts = []
    for item in response["output"]:
        if item["type"] == "message":
            parts.append("".join(part["text"] for part in item["content"] if part["type"] == "output_text"))
        elif item["type"] == "function_call":
            arguments = json.dumps(json.loads(item["arguments"]), ensure_ascii=False)
            parts.append(f'<tool_call>\n{{"name": "{item["name"]}", "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(part for part in parts if part)


async def answer(socket: ClientConnection, dialogue: Dialogue) -> str:
    """The whole answer; a refusal or a failure is a RuntimeError with the server's words."""
    await socket.send(json.dumps(create(dialogue)))
    while True:
        event = json.loads(await asyncio.wait_for(socket.recv(), PATIENCE))
        if event["type"] in ("response.completed", "response.incomplete"):
            return spoken(event["response"])
        if event["type"] in ("error", "response.failed", "response.cancelled"):
            raise RuntimeError(f"the server did not answer: {json.dumps(event)[:500]}")


async def ask_all(url: str, asked: Sequence[Dialogue], at_once: int, key: str | None) -> list[str]:
    """The answer to every dialogue, `at_once` of them on their way, each way with a connection of its own."""
    parts = urlsplit(url)
    address = f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}/v1/responses"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    said = [""] * len(asked)
    waiting = iter(range(len(asked)))

    async def ask() -> None:
        async with connect(address, additional_headers=headers, max_size=MOST_MESSAGE) as socket:
            for at in waiting:
                said[at] = await answer(socket, asked[at])

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(ask())
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """0 if at least the asked for share of the answers is right, else 1."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="headrace bench eval", description=__doc__.splitlines()[0])
    parser.add_argument("url", help="the server, as it prints it when it is ready")
    parser.add_argument("--count", type=int, default=6, help="questions of each kind [6]")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help="only these kinds"
    )
    parser.add_argument("--at-once", type=int, default=8, help="questions on their way at a time [8]")
    parser.add_argument("--at-least", type=float, default=0.9, help="share that must be right [0.9]")
    parser.add_argument("--key", help="the server's key")
    parser.add_argument("--wrong", action="store_true", help="show every wrong answer")
    given = parser.parse_args(argv)
    asked: list[tuple[str, Dialogue]] = []
    for kind in given.kinds:
        draw = Draw(SEED + KINDS.index(kind) * 1000, evaluation=True)
        asked += [(kind, question(kind, draw)) for _ in range(given.count)]
    begun = time.monotonic()
    said = asyncio.run(ask_all(given.url, [dialogue for _, dialogue in asked], given.at_once, given.key))
    seconds = time.monotonic() - begun
    right: dict[str, int] = dict.fromkeys(given.kinds, 0)
    for (kind, dialogue), text in zip(asked, said, strict=True):
        right[kind] += dialogue.score(text)
        if given.wrong and not dialogue.score(text):
            print(
                f"wrong ({kind}): {dialogue.messages[-2].text!r} -> {text!r}, expected {dialogue.expected!r}"
            )
    for kind in given.kinds:
        print(f"{right[kind]:4} of {given.count}  {kind}")
    share = sum(right.values()) / len(asked)
    print(json.dumps({"bench": "eval", "share": round(share, 4), "asked": len(asked), "seconds": round(seconds, 1),
                      "at_once": given.at_once, "right": right}))  # fmt: skip
    return 0 if share >= given.at_least else 1
