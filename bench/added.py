"""Latency that the server and its sockets add to the engine's step: token landed → bytes received by a client.

The server runs in a process of its own, with the real engine, scheduler, faces and sockets. The instant a step
lands is taken in the engine's thread, the instant of arrival in the client's process right after `recv`; both
read the same monotonic clock. Nothing is subtracted and no token is left out. A third instant, when the server has
handed the last byte of the step to its sockets, tells the server's part from the waking of the client.

Another process that computes on the same cores adds whole ticks of the system's clock (4 ms each where that runs
at 250 Hz): whoever wakes up waits until the other's turn is over. So every run tells how many CPUs the others kept
busy, and --patience repeats runs that were disturbed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.bench.surroundings import surroundings
from headrace.server.slices import take_short_turns

BOUND_MS = 2.0  # what the p99 is held against
QUIET = 0.03  # CPUs that others may keep busy during a run that counts as undisturbed
TRANSPORTS = ("websocket", "sse")


@dataclass(slots=True, eq=False)
class Step:
    """Nanoseconds of the monotonic clock; 0 until it happened."""

    landed: int = 0
    written: int = 0


class Landings:
    """Wraps an engine and a prompter: the step of each told token of each stream. Streams are named by seed."""

    def __init__(self, engine: Any, prompter: Any) -> None:
        self.engine = engine
        self.prompter = prompter
        self.seeds: dict[int, int] = {}
        self.steps: dict[int, list[Step]] = {}
        self.told: dict[int, list[int]] = {}
        self.flight: deque[Step] = deque()
        self.retired: list[Step] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine if hasattr(self.engine, name) else self.prompter, name)

    def launch(self, plan: Any) -> Future[Any]:
        step = Step()
        self.flight.append(step)
        for grant in plan.grants:
            self.seeds[grant.req_id] = grant.params.seed
            self.steps.setdefault(grant.params.seed, [])
        for row in plan.rows:
            if row.sample:
                self.steps[self.seeds[row.req_id]].append(step)
        future = self.engine.launch(plan)

        def land(_: Future[Any]) -> None:
            step.landed = time.monotonic_ns()

        future.add_done_callback(land)
        return future

    def watch(self, loop: Any) -> None:
        """Note when the tokens of a step have been written: its flush is the first one after its retirement."""
        count: Callable[[Any], None] = loop.on_step
        flush: Callable[[], None] = loop.on_flush

        def on_step(facts: Any) -> None:
            self.retired.append(self.flight.popleft())
            count(facts)

        def on_flush() -> None:
            flush()
            now = time.monotonic_ns()
            for step in self.retired:
                step.written = now
            self.retired.clear()

        loop.on_step, loop.on_flush = on_step, on_flush

    def report(self) -> dict[str, list[tuple[int, int]]]:
        """Landed and written of every told token, by seed."""
        return {
            str(seed): [(self.steps[seed][place].landed, self.steps[seed][place].written) for place in places]
            for seed, places in self.told.items()
        }

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
    from headrace.server.config import Limits, ServerConfig

    async def run() -> dict[str, list[tuple[int, int]]]:
        # The reader is a raw socket that answers no pings.
        config = ServerConfig(port=0, model=model, limits=Limits(ws_ping_interval=3600))
        engine, prompter, card = await asyncio.get_running_loop().run_in_executor(None, load_model, config)
        watch: Any = Landings(engine, prompter)
        app = App(config, watch, watch, card)
        watch.watch(app.loop)
        settle_interpreter()
        await app.start()
        assert app.listener is not None
        print(
            json.dumps({"port": app.listener.port, "model": card.id, "parameters": card.parameters}),
            flush=True,
        )
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await app.stop(0.0)
        found: dict[str, list[tuple[int, int]]] = watch.report()
        return found

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
    take_short_turns()  # what this thread waits for a core is not what the server adds
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


@dataclass(slots=True, eq=False)
class Cell:
    """One transport with so many streams at once, over all runs that count. Milliseconds per token."""

    transport: str
    streams: int
    readers: list[Reader]
    elsewhere: list[float]  # CPUs that others kept busy, per run
    disturbed: int = 0  # runs that were repeated for their neighbours

    def summary(self, landings: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
        """`landings`: landed and written of each token, by seed."""
        added: list[float] = []
        written: list[float] = []
        for reader in self.readers:
            told, arrived = landings[str(reader.seed)], reader.arrivals()
            # The tail of an answer (half a character at its end) may come as one delta more.
            assert 0 <= len(arrived) - len(told) <= 1, (len(arrived), len(told))
            added += [(b - a) / 1e6 for (a, _), b in zip(told, arrived, strict=False)]
            written += [(b - a) / 1e6 for a, b in told]
        return {
            "transport": self.transport,
            "streams": self.streams,
            "tokens": len(added),
            **{f"p{name}_ms": quantile(added, share) for name, share in SHARES},
            "max_ms": round(max(added), 4),
            **{f"server_p{name}_ms": quantile(written, share) for name, share in SHARES},
            "cpus_busy_elsewhere": [round(share, 3) for share in self.elsewhere],
            "runs_repeated": self.disturbed,
        }


SHARES = (("50", 0.5), ("90", 0.9), ("99", 0.99), ("999", 0.999))


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)


def measure_cells(
    port: int, server: int, streams: Sequence[int], tokens: int, repeats: int, patience: float
) -> list[Cell]:
    """All cells in turns, one round first that does not count. `server`: its process."""
    from headrace.bench.machine import Neighbours

    cells = [Cell(transport, count, [], []) for transport in TRANSPORTS for count in streams]
    neighbours = Neighbours((os.getpid(), server))
    seed = 1
    end = time.monotonic() + patience
    gc.collect()
    gc.disable()  # a pass of this process's collector would be counted as the server's
    try:
        for repeat in range(repeats + 1):
            for cell in cells:
                while True:
                    neighbours.look()
                    readers = measure(port, cell.transport, cell.streams, tokens, seed)
                    busy = neighbours.look()
                    seed += cell.streams
                    if repeat == 0 or busy <= QUIET or time.monotonic() > end:
                        break
                    cell.disturbed += 1
                if repeat:
                    cell.readers += readers
                    cell.elsewhere.append(busy)
    finally:
        gc.enable()
    return cells


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
        "--repeats", type=int, default=3, help="runs of each cell; one more goes before them [3]"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        help="seconds within which runs are repeated while other processes are busy [0]",
    )
    parser.add_argument("--out", help="write the JSON here too")
    parser.add_argument("--serve", metavar="FILE", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.serve:
        serve(given.model, given.serve)
        return 0
    streams = [int(part) for part in given.streams.split(",")]
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
        first = server.stdout.readline()
        if not first:
            raise SystemExit(f"the server process failed with status {server.wait()}")
        ready = json.loads(first)
        cells = measure_cells(ready["port"], server.pid, streams, given.tokens, given.repeats, given.patience)
        server.stdin.close()
        if server.wait() != 0:
            raise SystemExit("the server process failed")
        landings = json.loads(Path(out).read_text())
    found = [cell.summary(landings) for cell in cells]
    print_table(ready, found)
    result = {
        "bench": "added",
        **surroundings(),
        "model": {"id": ready["model"], "parameters": ready["parameters"]},
        "flags": {
            "streams": given.streams,
            "tokens": given.tokens,
            "repeats": given.repeats,
            "patience": given.patience,
        },
        "bound_p99_ms": BOUND_MS,
        "cells": found,
    }
    if given.out:
        Path(given.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if all(cell["p99_ms"] <= BOUND_MS for cell in found) else 1


def print_table(ready: dict[str, Any], cells: Sequence[dict[str, Any]]) -> None:
    size = ready["parameters"] / 1e6
    print(f"added latency in ms, {ready['model']} ({size:.0f} M parameters), bound p99 {BOUND_MS} ms")
    print(
        f"{'transport':<11}{'streams':>8}{'tokens':>8}{'p50':>9}{'p90':>9}{'p99':>9}{'p99.9':>9}{'max':>9}"
        f"{'server p50':>12}{'p99':>9}  CPUs busy elsewhere"
    )
    for cell in cells:
        shares = "".join(f"{cell[f'p{name}_ms']:>9.3f}" for name, _ in SHARES)
        print(
            f"{cell['transport']:<11}{cell['streams']:>8}{cell['tokens']:>8}{shares}{cell['max_ms']:>9.3f}"
            f"{cell['server_p50_ms']:>12.3f}{cell['server_p99_ms']:>9.3f}  {cell['cpus_busy_elsewhere']}"
        )


if __name__ == "__main__":
    sys.exit(main())
