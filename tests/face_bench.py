"""The faces over the real Runtime, StepLoop and Scheduler and the fake engine; the test is the front."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fake_engine import FakeEngine
from fake_prompter import CARD, BytePrompter, letters

from headrace.runtime.interface import Ask, ModelCard, Runtime, Tenant, TokenStream
from headrace.runtime.loop import Generation, StepLoop
from headrace.runtime.scheduler import Scheduler
from headrace.server.conversation import Conversations
from headrace.server.exchange import STREAM_END, Answer, HttpReply, HttpRequest, StreamHead
from headrace.server.faces.pinned import PinnedResponses
from headrace.server.faces.running import Running
from headrace.server.faces.settings import FaceSettings
from headrace.server.faces.table import build_routes, held_responses

ALICE = Tenant("alice", "salt-a")
BOB = Tenant("bob", "salt-b")
WAIT = 120.0  # seconds; only what never comes takes as long


class FakeTimer:
    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Seconds that pass when the test says so; timers fire in order."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[FakeTimer] = []

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self.now + delay, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.now += seconds
        while due := [t for t in self.timers if t.due <= self.now]:
            timer = min(due, key=lambda t: t.due)
            self.timers.remove(timer)
            if timer.callback is not None:
                timer.callback()


@dataclass(eq=False)
class FakeWire:
    """A connection as a face sees it; `reading` False is a peer that reads too slowly."""

    tenant: Tenant = ALICE
    marked: bool = False
    reading: bool = True
    malformed_count: int = 0
    close_code: int | None = None

    def dirty(self) -> None:
        self.marked = True

    def malformed(self) -> None:
        self.malformed_count += 1

    def close(self, code: int, reason: str = "") -> None:
        if self.close_code is None:
            self.close_code = code
            self.marked = True


class Socket:
    """One WebSocket session with what it said, as objects."""

    path = "/v1/responses"

    def __init__(self, bench: FaceBench, tenant: Tenant, query: Mapping[str, str]) -> None:
        self.bench = bench
        self.wire = FakeWire(tenant)
        request = HttpRequest("GET", self.path, query, {}, b"", tenant, "req-1")
        route = bench.routes.sockets[self.path]
        self.refused = route.refuse(request)
        self.session = route.open(request, self.wire)
        self.raw: list[str] = []
        self.said: list[dict[str, Any]] = []
        self.gone = False

    def send(self, event: dict[str, Any] | str | bytes) -> None:
        self.session.received(json.dumps(event) if isinstance(event, dict) else event)

    def create(self, input: Any = "hello", **fields: Any) -> None:
        fields.setdefault("model", "fake")
        fields.setdefault("max_output_tokens", 5)
        self.send({"type": "response.create", "input": input, "seed": 1, **fields})

    def pump(self) -> None:
        if self.wire.marked and self.wire.reading and not self.gone:
            self.wire.marked = False
            for frame in self.session.render():
                assert isinstance(frame, str)
                self.raw.append(frame)
                self.said.append(json.loads(frame))
            if self.wire.close_code is not None:
                self.drop(self.wire.close_code)

    def drop(self, code: int = 1006) -> None:
        self.gone = True
        self.session.closed(code)

    def types(self) -> list[str]:
        return [event["type"] for event in self.said]

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.bench.until(condition)

    async def until_over(self, count: int = 1) -> list[dict[str, Any]]:
        """Run until `count` terminal events or errors have been said; returns everything said."""
        over = ("response.completed", "response.incomplete", "response.failed", "error")
        await self.until(lambda: sum(e["type"] in over for e in self.said) >= count)
        return self.said


class Fetch:
    """One HTTP request and what came back."""

    def __init__(self, bench: FaceBench, request: HttpRequest) -> None:
        self.bench = bench
        self.wire = FakeWire(request.tenant)
        path, parameters = bench.find(request.path)
        request = HttpRequest(
            request.method,
            request.path,
            request.query,
            request.headers,
            request.body,
            request.tenant,
            request.request_id,
            parameters,
        )
        route = bench.routes.http[path]
        assert request.method in route.methods
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.chunks: list[bytes] = []
        self.over = False
        self.answer: Answer | None = None
        result = route.respond(request, self.wire)
        if isinstance(result, HttpReply):
            self._take([result])
        else:
            self.answer = result

    def pump(self) -> None:
        if self.answer is not None and self.wire.marked and self.wire.reading and not self.over:
            self.wire.marked = False
            self._take(self.answer.render())

    def ping(self) -> None:
        assert self.answer is not None
        self._take(self.answer.ping())

    def drop(self) -> None:
        assert self.answer is not None
        self.over = True
        self.answer.closed()

    def _take(self, parts: list[Any]) -> None:
        for part in parts:
            assert not self.over, "nothing follows the end"
            if isinstance(part, HttpReply):
                assert self.status == 0
                self.status, self.body, self.headers, self.over = part.status, part.body, part.headers, True
            elif isinstance(part, StreamHead):
                assert self.status == 0
                self.status, self.headers = part.status, part.headers
            elif part is STREAM_END:
                self.over = True
            else:
                assert self.status == 200, "bytes follow the head"
                self.chunks.append(part)
                self.body += part

    async def done(self) -> Fetch:
        await self.bench.until(lambda: self.over)
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        body = self.json
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
        return body["error"]

    @property
    def data(self) -> list[Any]:
        """The SSE data, parsed; the last one must be [DONE] (left out)."""
        blocks = [b for b in self.body.decode().split("\n\n") if b and not b.startswith(":")]
        lines = []
        for block in blocks:
            rows = block.split("\n")
            assert sum(row.startswith("data: ") for row in rows) == 1, block
            lines.append(next(row for row in rows if row.startswith("data: "))[6:])
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


class FaceBench:
    """Everything behind the front, and the pump that stands for it."""

    def __init__(
        self,
        *,
        gated: bool = False,
        settings: Mapping[str, Any] | None = None,
        eos: frozenset[int] = frozenset(),
        choose: Any = letters,
        card: ModelCard = CARD,
        store: Mapping[str, Any] | None = None,
        waiting_limit: int = 64,
        form: Mapping[str, str] | None = None,
        virtual: bool = False,
        **sizes: int,
    ) -> None:
        """virtual: the step loop lives by the test's clock too, so that every time is exact."""
        self.clock = FakeClock()
        self.engine = FakeEngine(gated=gated, choose=choose, **sizes)
        self.scheduler = Scheduler(
            self.engine.page_count,
            self.engine.page_size,
            self.engine.max_running,
            self.engine.chunk_tokens,
            waiting_limit=waiting_limit,
        )
        self.loop = StepLoop(self.scheduler, self.engine, clock=self.clock if virtual else time.monotonic)
        prompter = BytePrompter(eos, sees=card.sees, **(form or {}))
        self.runtime = Runtime(card, prompter, self.loop, self.engine.max_context)
        self.runtime.ready = True
        self.prompts: list[list[int]] = []  # the ids of every request that joined
        join = self.loop.join

        def joined(generation: Generation) -> None:
            self.prompts.append(list(generation.req.tokens))
            join(generation)

        self.loop.join = joined  # type: ignore[method-assign]
        self.asks: list[Ask] = []  # every ask that was opened
        begin = self.runtime.open

        def opened(ask: Ask, listener: Callable[[TokenStream], None]) -> TokenStream:
            stream = begin(ask, listener)
            self.asks.append(ask)
            return stream

        self.runtime.open = opened  # type: ignore[method-assign]
        self.ignored: list[tuple[str, int]] = []
        self.settings = FaceSettings(
            now=lambda: 1_764_000_000.0 + self.clock.now,
            clock=self.clock,
            call_later=self.clock.call_later,
            on_ignored_fields=lambda endpoint, count: self.ignored.append((endpoint, count)),
            version="1.2.3",
            **(settings or {}),
        )
        self.store = Conversations(clock=self.clock, **(store or {}))
        self.running = Running(self.runtime, self.store, PinnedResponses(self.runtime.cache, self.settings))
        self.held = held_responses(self.settings)
        self.routes = build_routes(
            self.runtime,
            self.settings,
            self.store,
            lambda: (b"up 1\n", "text/plain; version=0.0.4; charset=utf-8"),
            {"/": (b"<!doctype html>", "text/html; charset=utf-8")},
            running=self.running,
            held=self.held,
        )
        self.readers: list[Socket | Fetch] = []
        self.loop.on_flush = self.flush

    def find(self, path: str) -> tuple[str, dict[str, str]]:
        if path in self.routes.http:
            return path, {}
        for pattern in self.routes.http:
            front, brace, rest = pattern.partition("{")
            name, _, tail = rest.partition("}")
            if brace and path.startswith(front):
                value = path[len(front) :]
                if tail and not value.endswith(tail):
                    continue
                value = value.removesuffix(tail)
                if name.endswith(":path") or "/" not in value:
                    return pattern, {name.removesuffix(":path"): value}
        raise AssertionError(f"no route for {path}")

    def socket(self, tenant: Tenant = ALICE, **query: str) -> Socket:
        socket = Socket(self, tenant, query)
        self.readers.append(socket)
        return socket

    def fetch(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        tenant: Tenant = ALICE,
        query: Mapping[str, str] | None = None,
    ) -> Fetch:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        method = method or ("GET" if body is None else "POST")
        fetch = Fetch(self, HttpRequest(method, path, query or {}, {}, data, tenant, "req-1"))
        self.readers.append(fetch)
        return fetch

    def chat(self, content: Any = "hello", **fields: Any) -> Fetch:
        fields = {"model": "fake", "max_tokens": 5, "seed": 1, **fields}
        return self.fetch(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields}
        )

    def respond(self, input: Any = "hello", **fields: Any) -> Fetch:
        fields = {"model": "fake", "max_output_tokens": 5, "seed": 1, **fields}
        return self.fetch("/v1/responses", {"input": input, **fields})

    def flush(self) -> None:
        for reader in self.readers:
            reader.pump()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Land steps one by one and flush until `condition` holds; long prompts are prepared in a thread of their
        own, so the bound is a time in which that thread runs however busy the machine is."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            self.flush()
            self.clock.advance(0.0)
            if condition():
                return
            self.engine.land(1)
            await asyncio.sleep(0)
        raise AssertionError("the condition was not reached")

    async def idle(self) -> None:
        await self.until(lambda: self.scheduler.idle and not self.loop.live and not self.runtime._preparing)

    async def baseline(self) -> None:
        """After everything ended: no pages, no slots, no streams are held by anybody."""
        await self.idle()
        self.scheduler.check()
        self.store.check()
        assert self.scheduler.pages_in_use == 0
        assert self.scheduler.slots.free_count == self.engine.max_running
        assert not self.runtime._generations and not self.runtime._preparing
        self.flush()
        assert not len(self.running)
