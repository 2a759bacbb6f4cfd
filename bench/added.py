"""Latency that the server and its sockets add to the engine's step: token landed → bytes received by a client.

The server runs in a process of its own, with the real engine, scheduler, faces and sockets. The instant a step
lands is taken in the engine's thread, the instant of arrival in the client's process right after `recv`; both
read the same monotonic clock. Nothing is subtracted and no token is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

BOUND_MS = 2.0  # what the p99 is held against


class Landings:
    """Wraps an engine and a prompter: when each told token of each stream landed. Streams are named by seed."""

    def __init__(self, engine: Any, prompter: Any) -> None:
        self.engine = engine
        self.prompter = prompter
        self.seeds: dict[int, int] = {}
        self.landed: dict[int, list[int]] = {}
        self.told: dict[int, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine if hasattr(self.engine, name) else self.prompter, name)

    def launch(self, plan: Any) -> Future[Any]:
        for grant in plan.grants:
            self.seeds[grant.req_id] = grant.params.seed
            self.landed.setdefault(grant.params.seed, [])
        streams = [self.landed[self.seeds[row.req_id]] for row in plan.rows if row.sample]
        future = self.engine.launch(plan)

        def land(_: Future[Any]) -> None:
            now = time.monotonic_ns()
            for times in streams:
                times.append(now)

        future.add_done_callback(land)
        return future

    def cutter(self, ask: Any) -> Any:
        inner = self.prompter.cutter(ask)
        landings, seed = self, ask.seed

        class Watched:
            count = 0

            @property
            def matched(self) -> str | None:
                return inner.matched

            def push(self, token: int) -> str:
                text: str = inner.push(token)
                if text:
                    landings.told.setdefault(seed, []).append(self.count)
                self.count += 1
                return text

            def finish(self) -> str:
                return inner.finish()

        return Watched()


def serve(model: str, out: str) -> None:
    """The server process: prints its port, runs until its standard input closes, writes the landings to `out`."""
    import uvloop

    from headrace.server.app import App, load_model, settle_interpreter
    from headrace.server.config import ServerConfig

    async def run() -> dict[str, list[int]]:
        config = ServerConfig(port=0, model=model)
        engine, prompter, card = await asyncio.get_running_loop().run_in_executor(None, load_model, config)
        watch: Any = Landings(engine, prompter)
        app = App(config, watch, watch, card)
        settle_interpreter()
        await app.start()
        assert app.listener is not None
        print(
            json.dumps({"port": app.listener.port, "model": card.id, "parameters": card.parameters}),
            flush=True,
        )
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await app.stop(0.0)
        return {str(seed): [watch.landed[seed][i] for i in index] for seed, index in watch.told.items()}

    Path(out).write_text(json.dumps(uvloop.run(run())))


class Reader:
    """One raw socket and one answer: stamps every delta when its bytes arrive, parses afterwards."""

    def __init__(self, port: int, transport: str, seed: int, tokens: int) -> None:
        self.seed = seed
        self.transport = transport
        self.chunks: list[tuple[int, bytes]] = []
        self.done = False
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request: dict[str, Any] = {"model": "default", "seed": seed, "temperature": 1.0, "ignore_eos": True}
        text = "Tell me something about rivers, water and mills."
        if transport == "websocket":
            key = base64.b64encode(os.urandom(16)).decode()
            self.sock.sendall(
                b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key.encode() + b"\r\n\r\n"
            )
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += self.sock.recv(1)
            assert b" 101 " in head, head
            request |= {"type": "response.create", "input": text, "max_output_tokens": tokens}
            data = json.dumps(request).encode()
            self.request = struct.pack("!BBH", 0x81, 0x80 | 126, len(data)) + bytes(4) + data
            self.end = b'"type":"response.incomplete"'
        else:
            request |= {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": True}
            data = json.dumps(request).encode()
            self.request = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
            ).encode() + data
            self.end = b"data: [DONE]"

    def receive(self) -> None:
        data = self.sock.recv(1 << 20)
        self.chunks.append((time.monotonic_ns(), data))
        assert data, "the server closed the connection"
        # The end may lie across two reads.
        last = (self.chunks[-2][1] if len(self.chunks) > 1 else b"") + data
        self.done = self.end in last

    def arrivals(self) -> list[int]:
        """When the last byte of each delta arrived."""
        mark = b'"type":"response.output_text.delta"' if self.transport == "websocket" else b'"content":'
        whole = b"".join(data for _, data in self.chunks)
        ends: list[tuple[int, int]] = []
        total = 0
        for now, data in self.chunks:
            total += len(data)
            ends.append((total, now))
        found: list[int] = []
        at = whole.find(mark)
        chunk = 0
        while at >= 0:
            # The frame or event ends where its closing brace is; all of it must be there.
            close = whole.find(b"}", at)
            while ends[chunk][0] <= close:
                chunk += 1
            found.append(ends[chunk][1])
            at = whole.find(mark, at + 1)
        return found


def measure(port: int, transport: str, streams: int, tokens: int, first_seed: int) -> list[Reader]:
    """Run `streams` answers at once and read them to the end, in one thread, as fast as they come."""
    readers = [Reader(port, transport, first_seed + i, tokens) for i in range(streams)]
    poll = select.epoll()
    by_fd = {reader.sock.fileno(): reader for reader in readers}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    for reader in readers:
        reader.sock.sendall(reader.request)
    left = len(readers)
    while left:
        for fd, _ in poll.poll(60):
            by_fd[fd].receive()
            if by_fd[fd].done:
                poll.unregister(fd)
                left -= 1
    for reader in readers:
        reader.sock.close()
    return readers


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def commit() -> str:
    """The commit of this source tree, or "unknown" for an installed copy."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """`headrace bench added`. Exit status 1 if a p99 is over the bound."""
    parser = argparse.ArgumentParser(
        prog="headrace bench added", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument(
        "model", nargs="?", default="", help="a model folder; nothing: the model inside the package"
    )
    parser.add_argument("--streams", default="1,8", help="streams at once, a list [1,8]")
    parser.add_argument("--tokens", type=int, default=300, help="tokens of each answer [300]")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each cell; the first is not counted [3]"
    )
    parser.add_argument("--out", help="write the JSON here too")
    parser.add_argument("--serve", metavar="FILE", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.serve:
        serve(given.model, given.serve)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        out = str(Path(scratch) / "landings.json")
        command = [sys.executable, "-P", "-m", "headrace.bench.added", "--serve", out]
        server = subprocess.Popen(
            command + ([given.model] if given.model else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin is not None
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        runs: list[tuple[str, int, int, Reader]] = []
        seed = 1
        for repeat in range(given.repeats + 1):
            for transport in ("websocket", "sse"):
                for streams in map(int, given.streams.split(",")):
                    readers = measure(ready["port"], transport, streams, given.tokens, seed)
                    seed += streams
                    runs += [(transport, streams, repeat, reader) for reader in readers]
        server.stdin.close()
        if server.wait() != 0:
            raise SystemExit("the server process failed")
        landings = json.loads(Path(out).read_text())
    cells: list[dict[str, Any]] = []
    for transport in ("websocket", "sse"):
        for streams in map(int, given.streams.split(",")):
            added: list[float] = []
            for kind, count, repeat, reader in runs:
                if (kind, count) != (transport, streams) or repeat == 0:
                    continue
                landed, arrived = landings[str(reader.seed)], reader.arrivals()
                # The tail of an answer (half a character at its end) may come as one delta more.
                assert 0 <= len(arrived) - len(landed) <= 1, (len(arrived), len(landed))
                added += [(b - a) / 1e6 for a, b in zip(landed, arrived, strict=False)]
            cells.append(
                {
                    "transport": transport,
                    "streams": streams,
                    "tokens": len(added),
                    **{
                        f"p{name}_ms": round(quantile(added, share), 4)
                        for name, share in (("50", 0.5), ("90", 0.9), ("99", 0.99), ("999", 0.999))
                    },
                    "max_ms": round(max(added), 4),
                }
            )
    print(
        f"added latency, {ready['model']} ({ready['parameters'] / 1e6:.0f} M parameters), bound p99 {BOUND_MS} ms"
    )
    print(
        f"{'transport':<11}{'streams':>8}{'tokens':>8}{'p50':>9}{'p90':>9}{'p99':>9}{'p99.9':>9}{'max':>9}  ms"
    )
    for cell in cells:
        print(
            f"{cell['transport']:<11}{cell['streams']:>8}{cell['tokens']:>8}{cell['p50_ms']:>9.3f}{cell['p90_ms']:>9.3f}"
            f"{cell['p99_ms']:>9.3f}{cell['p999_ms']:>9.3f}{cell['max_ms']:>9.3f}"
        )
    result = {
        "bench": "added",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "model": ready,
        "flags": {"streams": given.streams, "tokens": given.tokens, "repeats": given.repeats},
        "bound_p99_ms": BOUND_MS,
        "cells": cells,
    }
    if given.out:
        Path(given.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if all(cell["p99_ms"] <= BOUND_MS for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
