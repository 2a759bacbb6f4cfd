"""Cancel is exact: 10,000 random aborts against the live server, over real sockets, in every way a client can go.

The engine is the page-reading fake, so a step costs microseconds and every life is cut somewhere else. What is
proved: no plan made after the cancel holds the request, everything comes back to the baseline, and the streams
that were not cut read exactly what a lone run reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
from typing import Any

import uvloop
from fake_engine import FakeEngine, replay
from fake_prompter import CARD, BytePrompter, letters
from raw_socket import Frames, frame, handshake

from headrace.runtime.request import SamplingParams
from headrace.server.app import App
from headrace.server.config import Limits, ServerConfig

ABORTS = 10_000
CLIENTS = 48


def create(rng: random.Random, **fields: Any) -> dict[str, Any]:
    words = "shared words of many prompts " * rng.choice([0, 0, 1, 3])
    return {
        "type": "response.create",
        "model": "fake",
        "input": f"{words}question {rng.randint(0, 20)}",
        "max_output_tokens": rng.randint(1, 120),
        "seed": rng.randint(0, 9),
        **fields,
    }


class Trial:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.aborts = 0
        self.whole = 0
        self.cancelled_at: dict[int, int] = {}  # request id → plans launched when it was cancelled
        self.kinds: dict[str, int] = {}

    async def run(self) -> None:
        engine = FakeEngine(page_count=144, page_size=4, slots=24, choose=letters)
        limits = Limits(write_high_water=2048)
        app = App(ServerConfig(port=0, limits=limits), engine, BytePrompter(), CARD)
        self.app = app
        await app.start()
        assert app.listener is not None
        self.port = app.listener.port
        cancel = app.loop.cancel

        def watched(generation: Any, *reason: Any) -> None:
            if generation.req.finish is None:
                self.cancelled_at[generation.req.id] = len(engine.plans)
            cancel(generation, *reason)

        app.loop.cancel = watched  # type: ignore[method-assign]
        fds = len(os.listdir("/proc/self/fd"))
        tasks = len(asyncio.all_tasks())
        await asyncio.gather(*(self.client(number) for number in range(CLIENTS)))
        await app.runtime.emptied()
        while app.listener.connections or not app.scheduler.idle or engine.held:
            await asyncio.sleep(0)
        # Sockets that were closed here last give their descriptors back with the next turns.
        while len(os.listdir("/proc/self/fd")) > fds + 1 or len(asyncio.all_tasks()) != tasks:
            await asyncio.sleep(0.001)
        app.scheduler.check()
        assert app.scheduler.pages_in_use == 0 and not app.scheduler.paused
        assert app.scheduler.slots.free_count == engine.max_running
        assert not app.runtime._generations and not app.runtime._preparing and app.loop.live == 0
        app.scheduler.flush_cache()
        assert app.scheduler.pool.free_count == engine.page_count
        late = [
            (row.req_id, number)
            for number, plan in enumerate(engine.plans)
            for row in plan.rows
            if number >= self.cancelled_at.get(row.req_id, 1 << 60)
        ]
        assert not late, f"planned after their cancel: {late[:5]}"
        await app.stop(0.0)

    async def client(self, number: int) -> None:
        while self.aborts < ABORTS:
            kind = self.rng.choice(
                ["cancel", "cancel_bare", "close", "fin", "reset", "sse", "lanes", "whole"]
            )
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            if kind == "sse":
                await self.sse()
            elif kind in ("cancel", "cancel_bare", "lanes"):
                await self.cancels(kind)
            else:
                await self.cut(kind)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def upgraded(self, request: dict[str, Any]) -> tuple[Frames, asyncio.StreamWriter]:
        """A socket whose first request rides in the same segment as the handshake."""
        reader, writer = await self.open()
        writer.write(handshake() + frame(json.dumps(request)))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return Frames(reader), writer

    def reset(self, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def cut(self, kind: str) -> None:
        """One answer, read for a while, then the connection goes; or it is read to its end."""
        request = create(self.rng)
        frames, writer = await self.upgraded(request)
        text, left = "", 10**9 if kind == "whole" else self.rng.randint(0, 60)
        while left > 0:
            event = await frames.next()
            left -= 1
            if event["type"] == "response.output_text.delta":
                text += event["delta"]
            if event["type"] in ("response.completed", "response.incomplete"):
                prompt = f"user: {request['input']}\nassistant: ".encode()
                count = request["max_output_tokens"]
                ids = replay(list(prompt), count, SamplingParams(seed=request["seed"]), 256, letters)
                assert text == bytes(ids).decode()
                assert event["response"]["usage"]["output_tokens"] == count
                self.whole += 1
                break
            assert event["type"] not in ("error", "response.failed"), event
        else:
            self.aborts += 1
        if kind == "reset":
            self.reset(writer)
            return
        if kind == "close":
            writer.write(struct.pack("!BBIH", 0x88, 0x82, 0, 1000))
        writer.close()

    async def sse(self) -> None:
        reader, writer = await self.open()
        body = json.dumps(
            {
                "model": "fake",
                "messages": [{"role": "user", "content": f"q {self.rng.randint(0, 9)}"}],
                "max_tokens": self.rng.randint(50, 200),
                "stream": self.rng.random() < 0.8,
            }
        )
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        for _ in range(self.rng.randint(0, 5)):
            if not await reader.read(100):
                break
        self.aborts += 1
        if self.rng.random() < 0.5:
            self.reset(writer)
        else:
            writer.close()

    async def cancels(self, kind: str) -> None:
        """Several answers on one socket, cancelled one by one by id or bare; the socket lives on."""
        frames, writer = await self.upgraded(create(self.rng, max_output_tokens=150))
        lanes: list[str | None] = [None]
        if kind == "lanes":
            for lane in ("a", "b", "c"):
                lanes.append(lane)
                request = create(self.rng, stream_id=lane, max_output_tokens=150)
                writer.write(frame(json.dumps(request)))
        ids: dict[str | None, str] = {}
        open_lanes = set(lanes)
        asked: set[str | None] = set()
        while open_lanes:
            event = await frames.next()
            lane = event.get("stream_id")
            assert event["type"] != "error", event
            if event["type"] == "response.created":
                ids[lane] = event["response"]["id"]
            if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
                assert event["type"] != "response.failed", event
                open_lanes.discard(lane)
                if event["response"]["status"] == "cancelled":
                    self.aborts += 1
            elif lane in ids and lane not in asked and self.rng.random() < 0.1:
                asked.add(lane)
                cancel: dict[str, Any] = {"type": "response.cancel"}
                if kind != "cancel_bare":
                    cancel["response_id"] = ids[lane]
                writer.write(frame(json.dumps(cancel)))
        writer.close()


def test_ten_thousand_random_aborts_leave_nothing_behind() -> None:
    trial = Trial(seed=11)
    uvloop.run(asyncio.wait_for(trial.run(), 900))  # ends what hangs, not what is slow
    assert trial.aborts >= ABORTS
    assert trial.whole >= 100, "streams that nobody cut were checked against their lone runs"
    assert len(trial.cancelled_at) >= ABORTS // 2, "most aborts hit a live request"
    assert min(trial.kinds.values()) >= 100, trial.kinds
    assert trial.app.scheduler.counters.retractions > 0, "the pool was tight enough"
