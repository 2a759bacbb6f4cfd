"""A scripted server that speaks the golden sequences of protocols.md 3.3 over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

Reply = Callable[["Asked"], Awaitable[None]]


def response_object(id: str, status: str, text: str = "", **changes: Any) -> dict[str, Any]:
    output = []
    if text:
        item_status = "completed" if status == "completed" else "incomplete"
        output = [message_item(id, text, item_status)]
    return {
        **{"id": id, "object": "response", "created_at": 1764000000, "output": output, "model": "scripted"},
        **{"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "status": status, "error": None},
        **{
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "temperature": 1.0,
            "top_p": 1.0,
        },
        **{"top_logprobs": 0, "previous_response_id": None, "max_output_tokens": None, "store": True},
        **{"reasoning": {"effort": None, "summary": None}, "text": {"format": {"type": "text"}}},
        **{"truncation": "disabled", "usage": None},
        **changes,
    }


def message_item(id: str, text: str, status: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    content = [part] if text or status != "in_progress" else []
    return {"id": f"msg_{id}", "type": "message", "role": "assistant", "status": status, "content": content}


class Asked:
    """One `response.create` that arrived, with the means to answer it event by event."""

    def __init__(self, socket: ServerConnection, fields: dict[str, Any], number: int) -> None:
        self.socket = socket
        self.fields = fields
        self.id = f"resp_{number}"
        self.said: list[str] = []
        self.cancelled = asyncio.Event()
        self._number = 0

    async def event(self, kind: str, **fields: Any) -> None:
        message = {"type": kind, "sequence_number": self._number, **fields}
        if "stream_id" in self.fields:
            message["stream_id"] = self.fields["stream_id"]
        self._number += 1
        await self.socket.send(json.dumps(message))
        await asyncio.sleep(0)  # a send that finds room does not yield; a server has other sockets too

    async def begin(self) -> None:
        await self.event("response.created", response=response_object(self.id, "in_progress"))
        await self.event("response.in_progress", response=response_object(self.id, "in_progress"))
        item = message_item(self.id, "", "in_progress")
        await self.event("response.output_item.added", output_index=0, item=item)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        await self.event("response.content_part.added", **self._place, part=part)

    async def say(self, delta: str) -> None:
        self.said.append(delta)
        await self.event("response.output_text.delta", **self._place, delta=delta, logprobs=[])

    async def finish(self, status: str = "completed", **changes: Any) -> None:
        item = message_item(self.id, self.text, "completed" if status == "completed" else "incomplete")
        part = {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}
        await self.event("response.output_text.done", **self._place, text=self.text, logprobs=[])
        await self.event("response.content_part.done", **self._place, part=part)
        await self.event("response.output_item.done", output_index=0, item=item)
        kind = {"completed": "completed", "failed": "failed"}.get(status, "incomplete")
        words = len(self.text.split())
        usage = {
            **{"input_tokens": 5, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}},
            **{"output_tokens": words, "output_tokens_details": {"reasoning_tokens": 0}},
            **{"total_tokens": 5 + words},
        }
        response = response_object(self.id, status, self.text, usage=usage, **changes)
        await self.event(f"response.{kind}", response=response)

    @property
    def text(self) -> str:
        return "".join(self.said)

    async def refuse(self, code: str, message: str, param: str | None = None, status: int = 400) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": param}
        frame = {"type": "error", "status": status, "error": error}
        if "stream_id" in self.fields:
            frame["stream_id"] = self.fields["stream_id"]
        await self.socket.send(json.dumps(frame))

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}


async def echo(request: Asked) -> None:
    """Answers with the words of the question."""
    await request.begin()
    question = request.fields["input"]
    for word in (question if isinstance(question, str) else question[-1]["content"]).split(" "):
        await request.say(word + " ")
    await request.finish()


class ScriptedServer:
    """`reply(request)` runs as a task for each `response.create`; a cancel sets `request.cancelled`."""

    def __init__(self) -> None:
        self.reply: Reply = echo
        self.requests: list[Asked] = []
        self.cancels: list[str | None] = []
        self.sockets: list[ServerConnection] = []
        self.refuse_upgrade: tuple[int, dict[str, str], bytes] | None = None
        self.keys: list[str | None] = []
        self.port = 0
        self._server: Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await serve(
            self._session, "127.0.0.1", self.port, process_request=self._http, compression=None
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        for task in self._tasks:
            task.cancel()

    def break_sockets(self) -> None:
        """Every connection is reset, without a close frame."""
        for socket in self.sockets:
            socket.transport.abort()

    async def _http(self, socket: ServerConnection, request: Request) -> Response | None:
        self.keys.append(request.headers.get("Authorization"))
        if request.path == "/v1/models":
            body = json.dumps({"object": "list", "data": [{"id": "scripted", "object": "model"}]})
            return socket.respond(HTTPStatus.OK, body)
        if self.refuse_upgrade is not None:
            status, headers, content = self.refuse_upgrade
            headers = {**headers, "Content-Length": str(len(content)), "Connection": "close"}
            return Response(status, HTTPStatus(status).phrase, Headers(headers), content)
        return None

    async def _session(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        assert socket.request.path == "/v1/responses?ext=1"
        self.sockets.append(socket)
        async for message in socket:
            fields = json.loads(message)
            if fields["type"] == "response.cancel":
                self.cancels.append(fields.get("response_id"))
                for request in self.requests:
                    if request.id == fields.get("response_id"):
                        request.cancelled.set()
                continue
            assert fields["type"] == "response.create", fields
            request = Asked(socket, fields, len(self.requests))
            self.requests.append(request)
            task = asyncio.create_task(self.reply(request))  # type: ignore[arg-type]
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    await server.start()
    yield server
    await server.stop()
