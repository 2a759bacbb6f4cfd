"""A port without sockets: the real connections on a virtual clock and a fake transport; and scripted faces."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import json
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import uvloop
from websockets.frames import Frame, Opcode

from headrace.server.auth import Gate
from headrace.server.config import Limits, ServerConfig
from headrace.server.exchange import (
    STREAM_END,
    HttpReply,
    HttpRequest,
    HttpRoute,
    Part,
    RouteTable,
    SocketRoute,
    StreamHead,
    Wire,
)
from headrace.server.front import HttpConnection
from headrace.server.metrics import Metrics
from headrace.server.outbox import Outbox
from headrace.server.port import Port
from headrace.server.routes import Routes

WS_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Handle:
    def __init__(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.call: Callable[[], None] | None = functools.partial(callback, *args)

    def cancel(self) -> None:
        self.call = None


class VirtualLoop:
    """The part of an event loop that the front uses; time passes only in `advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ready: deque[Handle] = deque()
        self.timers: list[tuple[float, int, Handle]] = []
        self.count = itertools.count()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., None], *args: Any) -> Handle:
        handle = Handle(callback, args)
        self.ready.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> Handle:
        handle = Handle(callback, args)
        heapq.heappush(self.timers, (self.now + delay, next(self.count), handle))
        return handle

    def run(self) -> None:
        """Run callbacks until none is left that is due now."""
        while self.ready:
            handle = self.ready.popleft()
            if handle.call is not None:
                handle.call()

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.now + seconds
        self.run()
        while self.timers and self.timers[0][0] <= end:
            due, _, handle = heapq.heappop(self.timers)
            self.now = max(self.now, due)
            if handle.call is not None:
                handle.call()
            self.run()
        self.now = end

    def jump(self, seconds: float) -> None:
        """The loop was blocked: time has passed, and only now the timers run."""
        self.now += seconds
        self.advance(0)

    @property
    def pending_timers(self) -> int:
        return sum(handle.call is not None for _, _, handle in self.timers)


class FakeTransport:
    """Takes what is written; `stall` stops taking. Bytes fed while reading is paused wait, as in a kernel."""

    def __init__(self, loop: VirtualLoop, protocol: Any, peer: tuple[str, int]) -> None:
        self.loop = loop
        self.protocol = protocol
        self.peer = peer
        self.sent = bytearray()
        self.writes: list[bytes] = []
        self.unsent = bytearray()
        self.stalled = False
        self.high = 65536
        self.writing_paused = False
        self.reading = True
        self.waiting: deque[bytes | None] = deque()
        self.closing = False
        self.lost = False
        self.eof = False
        self.pauses = 0

    # -- what the connection calls ---

    def get_extra_info(self, name: str) -> Any:
        return self.peer if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def is_closing(self) -> bool:
        return self.closing

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        assert not self.eof, "nothing is written behind the end"
        assert not self.closing, "nothing is written to a closing transport"
        assert data
        self.writes.append(data)
        if self.stalled or self.unsent:
            self.unsent += data
            if len(self.unsent) > self.high and not self.writing_paused:
                self.writing_paused = True
                self.protocol.pause_writing()
        else:
            self.sent += data

    def write_eof(self) -> None:
        assert not self.eof
        self.eof = True

    def pause_reading(self) -> None:
        assert not self.closing
        self.reading = False
        self.pauses += 1

    def resume_reading(self) -> None:
        assert not self.closing
        self.reading = True
        self.loop.call_soon(self._deliver)

    def close(self) -> None:
        self._close()

    def abort(self) -> None:
        self.unsent.clear()
        self._close()

    # -- what the test calls ---

    def feed(self, *pieces: bytes) -> None:
        self.waiting.extend(piece for piece in pieces if piece)
        self._deliver()

    def feed_eof(self) -> None:
        self.waiting.append(None)
        self._deliver()

    def stall(self) -> None:
        self.stalled = True

    def take(self, size: int) -> None:
        """A stalled peer reads `size` bytes and no more."""
        self.sent += self.unsent[:size]
        del self.unsent[:size]
        if self.writing_paused and len(self.unsent) <= self.high // 4:
            self.writing_paused = False
            self.protocol.resume_writing()

    def read_on(self) -> None:
        self.stalled = False
        self.sent += self.unsent
        self.unsent.clear()
        if self.writing_paused:
            self.writing_paused = False
            self.protocol.resume_writing()

    def lose(self, error: Exception | None = None) -> None:
        """The peer reset the connection."""
        self.closing = True
        if not self.lost:
            self.lost = True
            self.protocol.connection_lost(error)

    def _deliver(self) -> None:
        while self.waiting and self.reading and not self.closing:
            piece = self.waiting.popleft()
            if piece is None:
                if not self.protocol.eof_received():
                    self._close()
            else:
                self.protocol.data_received(piece)

    def _close(self) -> None:
        if not self.closing:
            self.closing = True
            self.loop.call_soon(self.lose)


class EchoSession:
    """Sends back every message; lines beginning with ! do what they say."""

    def __init__(self, request: HttpRequest, wire: Wire) -> None:
        self.request = request
        self.wire = wire
        self.queue: list[str | bytes] = []
        self.received_messages: list[str | bytes] = []
        self.renders = 0
        self.closed_with: list[int] = []
        self.drained = 0
        self.busy = False

    def say(self, *messages: str | bytes) -> None:
        self.queue += messages
        self.wire.dirty()

    def received(self, message: str | bytes) -> None:
        assert not self.closed_with, "nothing arrives after the end"
        self.received_messages.append(message)
        if message == "!close":
            self.wire.close(4000, "asked")
        elif message == "!malformed":
            self.wire.malformed()
        elif message == "!raise":
            raise RuntimeError("a planted mistake")
        else:
            self.say(message)

    def render(self) -> list[str | bytes]:
        assert not self.closed_with, "nothing is rendered after the end"
        self.renders += 1
        if "!render" in self.queue:
            raise RuntimeError("a planted mistake")
        queue, self.queue = self.queue, []
        return queue

    def closed(self, code: int) -> None:
        self.closed_with.append(code)

    def drain(self) -> None:
        self.drained += 1
        if not self.busy:
            self.wire.close(1012)


class ScriptedAnswer:
    """An answer whose parts the test hands in."""

    def __init__(self, request: HttpRequest, wire: Wire) -> None:
        self.request = request
        self.wire = wire
        self.parts: list[Part] = []
        self.renders = 0
        self.pings = 0
        self.closed_count = 0
        self.over = False
        self.spoken = False

    def say(self, *parts: Part) -> None:
        self.parts += parts
        self.wire.dirty()

    def render(self) -> list[Part]:
        assert not self.over and not self.closed_count
        self.renders += 1
        parts, self.parts = self.parts, []
        self.spoken |= any(isinstance(part, StreamHead) for part in parts)
        self.over = any(part is STREAM_END or isinstance(part, HttpReply) for part in parts)
        return parts

    def ping(self) -> list[Part]:
        self.pings += 1
        head: list[Part] = [] if self.spoken else [StreamHead()]
        self.spoken = True
        return [*head, b": ping\n\n"]

    def closed(self) -> None:
        assert not self.over
        self.closed_count += 1


@dataclass
class Faces:
    """The route table of the tests, and everything it opened."""

    requests: list[HttpRequest] = field(default_factory=list)
    answers: list[ScriptedAnswer] = field(default_factory=list)
    sessions: list[EchoSession] = field(default_factory=list)

    def respond(self, request: HttpRequest, wire: Wire) -> HttpReply:
        self.requests.append(request)
        return HttpReply(200, request.body, content_type="application/octet-stream")

    def tell(self, request: HttpRequest, wire: Wire) -> HttpReply:
        self.requests.append(request)
        told = {"path": request.path, "query": dict(request.query), "parameters": dict(request.parameters)}
        return HttpReply(200, json.dumps(told).encode())

    def stream(self, request: HttpRequest, wire: Wire) -> ScriptedAnswer:
        self.requests.append(request)
        answer = ScriptedAnswer(request, wire)
        self.answers.append(answer)
        return answer

    def open(self, request: HttpRequest, wire: Wire) -> EchoSession:
        self.requests.append(request)
        session = EchoSession(request, wire)
        self.sessions.append(session)
        return session

    def fail(self, request: HttpRequest, wire: Wire) -> HttpReply:
        raise RuntimeError("a planted mistake")

    def refuse(self, request: HttpRequest) -> HttpReply | None:
        return HttpReply(404, b'{"error":{"code":"model_not_found"}}') if "model" in request.query else None

    def table(self) -> RouteTable:
        get, post = frozenset({"GET"}), frozenset({"POST"})
        return RouteTable(
            {
                "/": HttpRoute(
                    get,
                    lambda request, wire: HttpReply(200, b"<p>page", content_type="text/html; charset=utf-8"),
                    public=True,
                ),
                "/healthz": HttpRoute(get, lambda request, wire: HttpReply(200, b"{}"), public=True),
                "/echo": HttpRoute(post, self.respond, body_limit=1 << 20),
                "/big": HttpRoute(post, self.respond, body_limit=64 << 20),
                "/tell": HttpRoute(frozenset({"GET", "POST"}), self.tell),
                "/v1/tell": HttpRoute(get, self.tell),
                "/models/{id:path}": HttpRoute(get, self.tell),
                "/items/{id}/cancel": HttpRoute(post, self.tell),
                "/stream": HttpRoute(frozenset({"GET", "POST"}), self.stream),
                "/both": HttpRoute(post, self.respond),
                "/fail": HttpRoute(get, self.fail),
            },
            {
                "/ws": SocketRoute(self.open, self.refuse),
                "/both": SocketRoute(
                    self.open,
                    protocols=("bin", "text"),
                    takes_binary=lambda request: request.subprotocol == "bin",
                ),
            },
        )


class Rig:
    """One port on a virtual loop."""

    def __init__(
        self, *, keys: Iterable[str] = (), limits: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        self.loop = VirtualLoop()
        self.limits = msgspec.structs.replace(Limits(), **(limits or {}))
        self.config = ServerConfig(limits=self.limits, **settings)
        self.faces = Faces()
        self.metrics = Metrics()
        loop = cast(asyncio.AbstractEventLoop, self.loop)
        self.outbox = Outbox(loop, self.limits.write_high_water, self.limits.slow_reader_limit)
        self.port = Port(
            loop,
            self.config,
            Routes(self.faces.table()),
            Gate(self.config, keys),
            self.outbox,
            self.metrics,
        )

    def connect(self, address: str = "127.0.0.1") -> FakeTransport:
        connection = HttpConnection(self.port)
        transport = FakeTransport(self.loop, connection, (address, 50000))
        connection.connection_made(cast(asyncio.BaseTransport, transport))
        self.loop.run()
        return transport

    def ask(self, raw: bytes, **connect: Any) -> FakeTransport:
        """A new connection that sends `raw` in one piece."""
        transport = self.connect(**connect)
        transport.feed(raw)
        self.loop.run()
        return transport

    def upgrade(self, path: str = "/ws", rest: bytes = b"", **headers: str) -> FakeTransport:
        """A connection that became a WebSocket; `sent` begins behind the 101."""
        transport = self.ask(handshake(path, **headers) + rest)
        head, _, tail = bytes(transport.sent).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        transport.sent[:] = tail
        return transport

    @property
    def session(self) -> EchoSession:
        return self.faces.sessions[-1]

    @property
    def answer(self) -> ScriptedAnswer:
        return self.faces.answers[-1]


def get(path: str, *lines: str, host: str = "localhost") -> bytes:
    return "".join(f"{line}\r\n" for line in (f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "")).encode()


def post(path: str, body: bytes, *lines: str) -> bytes:
    head = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *lines, "")
    return "".join(f"{line}\r\n" for line in head).encode() + body


def chunked(path: str, *chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def handshake(path: str = "/ws", **headers: str) -> bytes:
    lines = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": WS_KEY,
        "Sec-WebSocket-Version": "13",
    }
    for name, value in headers.items():
        lines[name.replace("_", "-")] = value
    return get(
        path, *(f"{name}: {value}" for name, value in lines.items() if value and name != "Host")
    ).replace(b"Host: localhost", f"Host: {lines['Host']}".encode())


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The checked inner object of a nested error body."""
        found = json.loads(self.body)
        assert set(found) == {"error"}
        assert set(found["error"]) == {"message", "type", "param", "code"}
        assert isinstance(found["error"]["code"], str)
        return found["error"]


def replies(sent: bytes | bytearray, heads: Iterable[int] = ()) -> list[Reply]:
    """The HTTP replies in `sent`; `heads` are the indices of those that answer HEAD."""
    data, found, heads = bytes(sent), [], set(heads)
    while data:
        head, blank, data = data.partition(b"\r\n\r\n")
        assert blank, head
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = [line.split(": ", 1) for line in lines]
        headers: dict[str, str] = {name: value for name, value in pairs}  # noqa: C416
        assert len(headers) == len(pairs), "no header comes twice"
        if int(status) == 100:
            found.append(Reply(100, headers, b""))
            continue
        assert "x-request-id" in headers and headers["x-content-type-options"] == "nosniff"
        if len(found) in heads or int(status) in (204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size, _, data = data.partition(b"\r\n")
                length = int(size, 16)
                body += data[:length]
                assert data[length : length + 2] == b"\r\n"
                data = data[length + 2 :]
                if length == 0:
                    break
        elif "content-length" in headers:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
            assert len(body) == length
        else:
            body, data = data, b""
        found.append(Reply(int(status), headers, body))
    return found


def only(sent: bytes | bytearray, **options: Any) -> Reply:
    (reply,) = replies(sent, **options)
    return reply


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, mask: bool = True, rsv: int = 0) -> bytes:
    """One frame as a client sends it (or as it must not)."""
    head = bytes((0x80 * fin | rsv << 4 | opcode,))
    flag = 0x80 if mask else 0
    if len(data) < 126:
        head += bytes((flag | len(data),))
    elif len(data) < 65536:
        head += bytes((flag | 126,)) + len(data).to_bytes(2, "big")
    else:
        head += bytes((flag | 127,)) + len(data).to_bytes(8, "big")
    if not mask:
        return head + data
    key = b"\x0a\x0b\x0c\x0d"
    pad = (key * (len(data) // 4 + 1))[: len(data)]
    masked = (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(data), "big")
    return head + key + masked


def text(message: str) -> bytes:
    return frame(1, message.encode())


def closing(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return frame(8, b"" if code is None else code.to_bytes(2, "big") + reason)


def frames(sent: bytes | bytearray) -> list[Frame]:
    """The frames a server sent: unmasked, unfragmented, whole."""
    data, found = bytes(sent), []
    while data:
        assert data[0] & 0x70 == 0 and data[0] & 0x80 and not data[1] & 0x80
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        assert len(data) >= start + size
        found.append(Frame(Opcode(data[0] & 15), data[start : start + size]))
        data = data[start + size :]
    return found


def texts(sent: bytes | bytearray) -> list[str]:
    """The text messages a server sent."""
    return [bytes(f.data).decode() for f in frames(sent) if f.opcode is Opcode.TEXT]


def close_code(sent: bytes | bytearray) -> int | None:
    """The code of the close frame a server sent (1005 for an empty one), None without one. It comes last."""
    found = frames(sent)
    codes = [int.from_bytes(f.data[:2], "big") or 1005 for f in found if f.opcode is Opcode.CLOSE]
    assert len(codes) <= 1
    if codes:
        assert found[-1].opcode is Opcode.CLOSE
    return codes[0] if codes else None


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on uvloop. The limit is there for what hangs, not for what is slow."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(180):
                await test(*args, **kwargs)

        uvloop.run(bounded())

    return run
