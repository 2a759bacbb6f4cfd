"""A thousand answers cut at random moments by FIN, RST and silence, some while they are being resumed (M3).

Real sockets, the page-reading fake engine. The joined text equals an uncut run, no number is missing or told twice,
and the counters say that no token was computed twice."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from typing import Any

from fake_engine import replay
from fake_prompter import letters
from live_server import LiveServer
from raw_socket import Frames, frame, handshake

from headrace.runtime.config import EngineConfig
from headrace.runtime.request import SamplingParams

STREAMS = 1_000
CLIENTS = 40
OVER = ("response.completed", "response.incomplete", "response.failed")


class Trial:
    def __init__(self, live: LiveServer, seed: int) -> None:
        self.port = int(live.url.rsplit(":", 1)[1])
        self.rng = random.Random(seed)
        self.left = STREAMS
        self.tokens = 0  # asked for, in all
        self.prompts = 0  # tokens of all prompts
        self.cuts: Counter[str] = Counter()
        self.taken_over = 0  # connections that the server closed because another one took their answer
        self.silent: list[asyncio.StreamWriter] = []

    async def run(self) -> None:
        await asyncio.gather(*(self.client() for _ in range(CLIENTS)))
        for writer in self.silent:
            writer.close()

    async def client(self) -> None:
        while self.left > 0:
            self.left -= 1
            await self.stream()

    async def open(self) -> tuple[Frames, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(handshake("/v1/responses?ext=1"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        return Frames(reader), writer

    def cut(self, writer: asyncio.StreamWriter) -> None:
        kind = self.rng.choice(["fin", "reset", "silence"])
        self.cuts[kind] += 1
        if kind == "silence":
            # Nothing is sent, nothing is read, nothing is closed: the server must find out by itself.
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            self.silent.append(writer)
            return
        if kind == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        writer.close()

    async def stream(self) -> None:
        rng = self.rng
        count, seed = rng.randint(1, 150), rng.randint(0, 9)
        prompt = f"{'shared words ' * rng.choice([0, 0, 3])}question {rng.randint(0, 99)}"
        asked = f"user: {prompt}\nassistant: ".encode()
        self.tokens += count
        self.prompts += len(asked)
        frames, writer = await self.open()
        request = {
            "type": "response.create", "model": "fake", "input": prompt, "seed": seed,
            "max_output_tokens": count, "stream_id": "lane",
        }  # fmt: skip
        writer.write(frame(json.dumps(request)))
        events: list[dict[str, Any]] = []
        cuts_left = rng.choice([1, 1, 1, 2, 3])
        while not events or events[-1]["type"] not in OVER:
            # Before response.created nobody has a key to come back with; at 0, in the middle of a resume.
            left = rng.randint(0 if events else 1, 40) if cuts_left else 1 << 30
            while left > 0 and not (events and events[-1]["type"] in OVER):
                event = await frames.next()
                left -= 1
                assert event["type"] not in ("error", "x.error", "response.failed"), event
                if not event["type"].startswith("x."):
                    events.append(event)
            if events[-1]["type"] in OVER:
                break
            cuts_left -= 1
            self.cut(writer)
            for _ in range(rng.choice([0, 0, 1, 50])):
                await asyncio.sleep(0)
            frames, writer = await self.open()
            created = events[0]["response"]
            verb = {
                "type": "x.resume", "response_id": created["id"], "resume_token": created["x_resume_token"],
                "starting_after": events[-1]["sequence_number"],
            }  # fmt: skip
            writer.write(frame(json.dumps(verb)))
        writer.write(struct.pack("!BBIH", 0x88, 0x82, 0, 1000))
        writer.close()
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        ids = replay(list(asked), count, SamplingParams(seed=seed), 256, letters)
        said = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        assert said == bytes(ids).decode()
        final = events[-1]["response"]
        assert final["output"][0]["content"][0]["text"] == said
        assert final["usage"]["output_tokens"] == count


def test_a_thousand_streams_are_cut_and_none_of_them_shows_it() -> None:
    live = LiveServer(page_count=8192, engine=EngineConfig(prefix_cache=False))
    trial = Trial(live, seed=5)
    try:
        asyncio.run(asyncio.wait_for(trial.run(), 900))  # ends what hangs, not what is slow
        stats = live.ask(lambda app: {**app.runtime.stats(), **app.held.stats()})
        assert stats["decode_tokens_computed"] == trial.tokens, "a token was computed twice, or never"
        assert stats["prefill_tokens_computed"] == trial.prompts
        assert stats["retractions"] == 0
        assert stats["stream_resumes"] == sum(trial.cuts.values())
        assert min(trial.cuts.values()) > 200 and len(trial.cuts) == 3, trial.cuts
        live.baseline()
        live.ask(lambda app: [app.held.let_go(held) for held in list(app.held._all.values())])
        assert live.ask(lambda app: (app.held.bytes, len(app.held))) == (0, 0)
    finally:
        live.stop()
