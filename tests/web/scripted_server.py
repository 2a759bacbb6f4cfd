"""A server with a scripted model: it speaks Responses over WebSocket as the protocol page has it, on loopback.

Tests hold answers at a chosen delta and let them go on, look at every frame that the page sent, and cut the
line. It serves the page with the headers of the real front.
"""

from __future__ import annotations

import asyncio
import http
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from headrace.server.replies import CONTENT_SECURITY_POLICY

TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
    "png": "image/png",
}
WAIT = 120.0  # seconds; only what never comes takes as long
Frame = dict[str, Any]


@dataclass
class Turn:
    """How one request is answered: deltas, then an end. `hold_at` waits before that delta until `release()`."""

    deltas: list[str]
    hold_at: int | None = None
    end: str = "completed"  # completed, length, failed, or drop (the connection is cut)
    error: Frame | None = None  # an error frame instead of a response
    reasoning: list[str] = field(default_factory=list)
    pace: float = 0.0  # seconds between deltas, for demonstrations only
    told: list[tuple[int, Frame]] = field(default_factory=list)  # events of ours, each before that delta
    gate: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let a held answer go on."""
        self.gate.set()


class _Run:
    """One response on its way out: numbers its events and answers a cancel."""

    def __init__(
        self, server: ScriptedServer, connection: ServerConnection, asked: Frame, number: int
    ) -> None:
        self.server, self.connection, self.asked = server, connection, asked
        self.id = f"resp_{number}"
        self.item = f"msg_{number}"
        self.sequence = 0
        self.cancelled = asyncio.Event()

    async def send(self, kind: str, **fields: Any) -> None:
        lane = {"stream_id": self.asked["stream_id"]} if "stream_id" in self.asked else {}
        frame = {"type": kind, "sequence_number": self.sequence, **lane, **fields}
        self.sequence += 1
        await self.connection.send(json.dumps(frame))

    async def tell(self, frame: Frame) -> None:
        """An event of ours: about a step, or about this answer alone."""
        if frame["type"] == "x.step":
            rows = [{**row, "response_id": self.id} for row in frame["streams"]]
            frame = {**frame, "streams": rows}
        else:
            frame = {**frame, "response_id": self.id, "stream_id": self.asked.get("stream_id")}
        await self.connection.send(json.dumps(frame))

    def response(self, status: str, **fields: Any) -> Frame:
        return {
            "id": self.id, "object": "response", "model": self.asked.get("model"), "status": status,
            "output": [], "error": None, "incomplete_details": None, "usage": None, **fields,
        }  # fmt: skip

    async def play(self, turn: Turn) -> None:
        await self.send("response.created", response=self.response("in_progress"))
        await self.send("response.in_progress", response=self.response("in_progress"))
        for delta in turn.reasoning:
            await self.send(
                "response.reasoning_text.delta", item_id="rs_1", output_index=0, content_index=0, delta=delta
            )
        place = {"item_id": self.item, "output_index": 0, "content_index": 0}
        item = {
            "id": self.item,
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        await self.send("response.output_item.added", output_index=0, item=item)
        part: Frame = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        await self.send("response.content_part.added", **place, part=part)
        text = ""
        count = 0
        for index, delta in enumerate(turn.deltas):
            for frame in [frame for before, frame in turn.told if before == index]:
                await self.tell(frame)
            if turn.hold_at == index:
                await self.server.passed(turn.gate, self.cancelled)
            if self.cancelled.is_set():
                break
            if turn.pace:
                await asyncio.sleep(turn.pace)
            text += delta
            count += 1
            await self.send("response.output_text.delta", **place, delta=delta, logprobs=[])
        if turn.end == "drop" and not self.cancelled.is_set():
            self.connection.transport.abort()
            return
        whole = turn.end == "completed" and not self.cancelled.is_set()
        status = "completed" if whole else "incomplete"
        part = {**part, "text": text}
        await self.send("response.output_text.done", **place, text=text, logprobs=[])
        await self.send("response.content_part.done", **place, part=part)
        item = {**item, "status": status, "content": [part]}
        await self.send("response.output_item.done", output_index=0, item=item)
        asked = sum(len(str(entry["content"]).split()) for entry in self.asked.get("input", ()))
        usage = {"input_tokens": asked, "output_tokens": count, "total_tokens": asked + count}
        ended = self.response(status, output=[item], usage=usage)
        self.server.known.add(self.id)
        if self.cancelled.is_set():
            await self.send("response.incomplete", response={**ended, "status": "cancelled"})
        elif turn.end == "length":
            details = {"reason": "max_output_tokens"}
            await self.send("response.incomplete", response={**ended, "incomplete_details": details})
        elif turn.end == "failed":
            why = {"code": "server_error", "message": "the model stumbled"}
            await self.send("response.failed", response={**ended, "status": "failed", "error": why})
        else:
            await self.send("response.completed", response=ended)


class ScriptedServer:
    """Runs in its own thread; every public method may be called from the test's thread."""

    def __init__(self) -> None:
        self.model: Frame = {"id": "river-1b", "object": "model", "root": "river-1b", "max_model_len": 4096}
        self.key: str | None = None
        self.respond: Callable[[Frame], Turn] = lambda asked: Turn(["All ", "is ", "well."])
        self.frames: list[Frame] = []
        self.known: set[str] = set()
        self.sockets_opened = 0
        self.changed = threading.Condition()
        self._connections: set[ServerConnection] = set()
        self._runs: dict[str, _Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        self._loop = asyncio.new_event_loop()
        self._server: Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted server", daemon=True)
        self._thread.start()
        # Bound for the whole test and never listening: while the server is away, nobody else gets its port.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self.listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def _call(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(WAIT)

    def listen(self) -> None:
        """Accept connections, after a `cut(listening=False)` on the same port as before."""

        async def start() -> None:
            self._server = await serve(
                self._session, "127.0.0.1", self.port, process_request=self._http,
                select_subprotocol=self._subprotocol, compression=None, max_size=1 << 25,
            )  # fmt: skip

        self._call(start())

    def cut(self, *, listening: bool = True) -> None:
        """Drop every socket without a close frame; with listening=False refuse new ones as well."""

        async def stop() -> None:
            if not listening and self._server is not None:
                self._server.close(close_connections=False)
                self._server = None
            for connection in list(self._connections):
                connection.transport.abort()

        self._call(stop())

    def close_sockets(self, code: int, reason: str = "") -> None:
        """Close every socket properly with `code`."""

        async def close() -> None:
            await asyncio.gather(*(c.close(code, reason) for c in list(self._connections)))

        self._call(close())

    def stop(self) -> None:
        """End of the test: nothing of this server is left."""
        self.cut(listening=False)

        async def end() -> None:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT)
        self._reserved.close()

    def wait(self, holds: Callable[[], Any], what: str) -> Any:
        """Block until `holds()` is truthy; it is looked at after every frame and connection."""
        with self.changed:
            if not self.changed.wait_for(holds, WAIT):
                raise AssertionError(f"the server never saw {what}; frames: {self.frames}")
            return holds()

    def of(self, kind: str) -> list[Frame]:
        """The frames of one type that the page sent so far."""
        return [frame for frame in self.frames if frame.get("type") == kind]

    async def passed(self, gate: threading.Event, cancelled: asyncio.Event) -> None:
        """Until the test opens the gate or the page cancels."""
        while not gate.is_set() and not cancelled.is_set():
            await asyncio.sleep(0.005)

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.split("?")[0]
        authorized = self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"
        if path == "/v1/responses":
            offered = request.headers.get("sec-websocket-protocol", "")
            if self.key is None or f"openai-insecure-api-key.{self.key}" in offered.replace(" ", "").split(
                ","
            ):
                return None
            return self._reply(401, b"{}", "application/json")
        if path == "/health":
            return self._reply(200, b"ok\n", "text/plain")
        if path == "/v1/models":
            if not authorized:
                return self._reply(401, b"{}", "application/json")
            return self._reply(
                200, json.dumps({"object": "list", "data": [self.model]}).encode(), "application/json"
            )
        name = path.removeprefix("/") or "index.html"
        page = files("headrace.clients").joinpath("web", name)
        if "/" in name or not page.is_file():
            return self._reply(404, b"not found\n", "text/plain")
        return self._reply(200, page.read_bytes(), TYPES[name.rsplit(".", 1)[1]])

    def _reply(self, status: int, body: bytes, content_type: str) -> Response:
        headers = Headers(
            {
                "content-type": content_type,
                "content-length": str(len(body)),
                "content-security-policy": CONTENT_SECURITY_POLICY,
                "x-content-type-options": "nosniff",
                "cache-control": "no-store",
                "connection": "close",
            }
        )
        return Response(status, http.HTTPStatus(status).phrase, headers, body)

    def _subprotocol(self, connection: ServerConnection, offered: Any) -> Any:
        return "openai-beta.responses.v1" if "openai-beta.responses.v1" in offered else None

    async def _session(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        with self.changed:
            self.sockets_opened += 1
            self.changed.notify_all()
        runs: list[_Run] = []
        try:
            async for message in connection:
                self._received(connection, json.loads(message), runs)
        except ConnectionClosed:
            pass  # the other side of `cut`
        finally:
            self._connections.discard(connection)
            for run in runs:
                run.cancelled.set()

    def _received(self, connection: ServerConnection, frame: Frame, runs: list[_Run]) -> None:
        with self.changed:
            self.frames.append(frame)
            self.changed.notify_all()
        if frame["type"] == "response.cancel":
            run = self._runs.get(frame["response_id"])
            if run is not None:
                run.cancelled.set()
            return
        if frame["type"].startswith("x.input."):
            task = self._loop.create_task(self._typed(connection, frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        self._count += 1
        run = _Run(self, connection, frame, self._count)
        self._runs[run.id] = run
        runs.append(run)
        task = self._loop.create_task(self._answer(run, frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _typed(self, connection: ServerConnection, frame: Frame) -> None:
        """A server that has forgotten the draft when it is sent."""
        if frame["type"] == "x.input.commit":
            error = {
                "type": "invalid_request_error",
                "code": "draft_not_found",
                "message": "x",
                "param": None,
            }
            told = {"type": "x.error", "error": error, "event_id": frame["event_id"]}
            await connection.send(json.dumps({**told, "stream_id": frame["stream_id"]}))

    async def _answer(self, run: _Run, frame: Frame) -> None:
        previous = frame.get("previous_response_id")
        turn = self.respond(frame)
        error = turn.error
        if previous is not None and previous not in self.known:
            message = f"Previous response with id '{previous}' not found."
            error = {
                "type": "invalid_request_error",
                "code": "previous_response_not_found",
                "message": message,
            }
        try:
            if error is None:
                await run.play(turn)
                return
            lane = {"stream_id": frame["stream_id"]} if "stream_id" in frame else {}
            kind = {"type": "x.error"} if frame["type"].startswith("x.") else {"type": "error", "status": 400}
            await run.connection.send(json.dumps({**kind, **lane, "error": error}))
        except ConnectionClosed:
            pass  # the page left in the middle, or the test cut the line

    def script(self, *turns: Turn) -> Iterator[Turn]:
        """Answer the next requests with these turns, in the order of their arrival."""
        queue = iter(turns)
        self.respond = lambda asked: next(queue)
        return queue
