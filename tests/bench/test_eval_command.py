"""The golden evaluation: what it sends, how it counts, and when it fails."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from headrace.bench import eval as evaluation
from headrace.bench.demo.dialogue import Dialogue, Message
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.kinds import KINDS, question

Reply = Callable[[dict[str, Any]], list[dict[str, Any]]]


class Oracle:
    """A server that answers each request with the events of `reply`."""

    def __init__(self, reply: Reply) -> None:
        self.asked: list[dict[str, Any]] = []
        self._reply = reply
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._up.wait(120)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self._talk, "127.0.0.1", 0, max_size=None) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self._up.set()
            await self._over.wait()

    async def _talk(self, socket: ServerConnection) -> None:
        async for frame in socket:
            request = json.loads(frame)
            self.asked.append(request)
            for event in self._reply(request):
                await socket.send(json.dumps(event))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(120)


def completed(*output: dict[str, Any]) -> list[dict[str, Any]]:
    deltas = [{"type": "response.created"}, {"type": "response.output_text.delta", "delta": "x"}]
    return [*deltas, {"type": "response.completed", "response": {"output": list(output)}}]


def text(said: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": said}]}


def known(kinds: tuple[str, ...], count: int) -> dict[str, Dialogue]:
    """What will be asked, by its input."""
    found = {}
    for kind in kinds:
        draw = Draw(evaluation.SEED + KINDS.index(kind) * 1000, evaluation=True)
        for _ in range(count):
            dialogue = question(kind, draw)
            found[json.dumps(evaluation.items(dialogue))] = dialogue
    return found


ASKED = ("addition", "calling a tool", "using a tool's result", "read a number")


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    """Knows every answer but those about numbers in pictures."""
    answers = known(ASKED, 3)

    def reply(request: dict[str, Any]) -> list[dict[str, Any]]:
        last = answers[json.dumps(request["input"])].messages[-1]
        if any(isinstance(item.get("content"), list) for item in request["input"]):
            return completed(text("I see nothing."))
        if last.call is not None:
            name, arguments = last.call
            return completed({"type": "function_call", "name": name, "arguments": json.dumps(arguments)})
        return completed(text(last.text))

    server = Oracle(reply)
    yield server
    server.stop()


@pytest.mark.parametrize(("at_least", "status"), [("0.75", 0), ("0.8", 1)])
def test_it_counts_what_is_right(
    at_least: str, status: int, oracle: Oracle, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [oracle.url, "--count", "3", "--kinds", *ASKED, "--at-once", "2", "--at-least", at_least]
    assert evaluation.main(command) == status
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["right"] == {
        "addition": 3, "calling a tool": 3, "using a tool's result": 3, "read a number": 0,
    }  # fmt: skip
    assert result["share"] == 0.75 and result["asked"] == 12
    assert len(oracle.asked) == 12
    assert all(request["temperature"] == 0 for request in oracle.asked)
    assert any("tools" in request for request in oracle.asked)


def test_a_failure_is_told_with_the_servers_words() -> None:
    server = Oracle(lambda request: [{"type": "error", "error": {"message": "the mill stands still"}}])
    with pytest.raises(ExceptionGroup) as raised:
        evaluation.main([server.url, "--count", "1", "--kinds", "addition", "--at-once", "1"])
    assert "the mill stands still" in str(raised.value.exceptions[0])
    server.stop()


def test_messages_become_items() -> None:
    dialogue = Dialogue(
        [
            Message("system", "Be brief."),
            Message("user", "What is the weather?"),
            Message("assistant", "", call=("get_weather", {"city": "Lima"})),
            Message("tool", '{"sky": "sunny"}'),
            Message("assistant", "Sunny."),
        ]
    )
    assert evaluation.items(dialogue) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the weather?"},
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "get_weather",
            "arguments": '{"city": "Lima"}',
        },
        {"type": "function_call_output", "call_id": "call_1", "output": '{"sky": "sunny"}'},
    ]
