"""Two hundred readers that stop reading: what they cost, what the others notice, and what they lost (M1, M2).

Over real sockets with small kernel buffers. The engine is the page-reading fake, so what a stalled reader is told
later is checked against a lone run; nothing here is measured in seconds."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from fake_engine import replay
from fake_prompter import letters
from live_server import LiveServer
from raw_socket import Frames, frame, handshake

from headrace.runtime.request import SamplingParams
from headrace.server.config import Limits

READERS = 200
ASKED = 640
WINDOW = 64


class Reader:
    """A WebSocket client over a small receive buffer that reads only when told."""

    def __init__(self, live: LiveServer, number: int) -> None:
        self.port = int(live.url.rsplit(":", 1)[1])
        self.prompt = f"question {number}"
        self.text = ""
        self.final: dict[str, Any] | None = None
        self.flow: list[str] = []

    async def ask(self) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=1024)
        request = {
            "type": "response.create", "model": "fake", "input": self.prompt, "seed": 3,
            "max_output_tokens": ASKED, "x_on_slow": {"buffer": WINDOW},
        }  # fmt: skip
        self.writer.write(handshake() + frame(json.dumps(request)))
        while await self.reader.readline() != b"\r\n":
            pass

    async def read(self, tokens: int) -> None:
        """Read events until so many letters came in all, or the end."""
        while len(self.text) < tokens and self.final is None:
            event = await Frames(self.reader).next()
            kind = event["type"]
            assert kind not in ("error", "response.failed"), event
            if kind == "response.output_text.delta":
                self.text += event["delta"]
            elif kind in ("response.completed", "response.incomplete"):
                self.final = event["response"]
            elif kind.startswith("x."):
                self.flow.append(f"{kind} {event['reason']}")


def expected(prompt: str, count: int) -> str:
    ids = replay(list(f"user: {prompt}\nassistant: ".encode()), count, SamplingParams(seed=3), 256, letters)
    return bytes(ids).decode()


def test_stalled_readers_stop_computing_keep_nothing_big_and_lose_nothing() -> None:
    limits = {"write_high_water": 4096, "ws_ping_interval": 600.0, "ws_ping_timeout": 600.0}
    live = LiveServer(page_count=1 << 16, limits=Limits(**limits))  # type: ignore[arg-type]
    live.ask(
        lambda app: app.listener._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    )

    async def trial() -> None:
        readers = [Reader(live, number) for number in range(READERS)]
        for reader in readers:
            await reader.ask()
        await asyncio.gather(*(reader.read(20) for reader in readers))
        # All of them stop reading now. Every stream stands still before long, for nothing moves it any more.
        await asyncio.to_thread(live.until, lambda app: len(app.scheduler.paused) == READERS)
        delivered = live.ask(lambda app: sum(g.stream.sent for g in app.loop._live.values()))
        stats = live.ask(lambda app: app.runtime.stats())
        assert stats["decode_tokens_computed"] <= delivered + READERS * (WINDOW + 2)
        assert stats["decode_tokens_computed"] < READERS * ASKED * 3 // 4, "far from all that was asked for"
        assert stats["unsent_tokens"] <= READERS * (WINDOW + 2)
        unsent = live.ask(
            lambda app: [c._transport.get_write_buffer_size() for c in app.listener._port.connections]
        )
        assert len(unsent) == READERS and max(unsent) < (1 << 20) / 4, "memory behind a reader is bounded"
        # Nobody else notices: another answer needs one step for each of its tokens, in the same batch as ever.
        steps = stats["steps"]
        other = Reader(live, READERS)
        await other.ask()
        await other.read(ASKED)
        assert other.text == expected(other.prompt, ASKED)
        now = live.ask(lambda app: app.runtime.stats())
        assert now["steps"] - steps <= ASKED + 8 and now["paused"] == READERS
        assert now["decode_tokens_computed"] - stats["decode_tokens_computed"] == ASKED
        # They read on, all in one moment. What was held back comes, and not one token is computed twice.
        await asyncio.gather(*(reader.read(ASKED) for reader in readers))
        for reader in readers:
            await reader.read(1 << 30)  # the last words
            assert reader.text == expected(reader.prompt, ASKED)
            assert reader.final is not None and reader.final["usage"]["output_tokens"] == ASKED
            assert reader.flow[:2] == ["x.paused slow", "x.resumed slow"]
            reader.writer.close()
        after = live.ask(lambda app: app.runtime.stats())
        assert after["retractions"] == 0
        assert after["decode_tokens_computed"] == (READERS + 1) * ASKED
        prompts = sum(len(f"user: {r.prompt}\nassistant: ") for r in [*readers, other])
        assert after["prefill_tokens_computed"] + after["cached_tokens"] == prompts, "waking costs no prefill"

    try:
        asyncio.run(asyncio.wait_for(trial(), 900))
        live.baseline()
    finally:
        live.stop()
