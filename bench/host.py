"""What one step costs the thread of the event loop, in CPU time, with N streams being read over loopback.

    headrace bench host --streams 1,8,64,256 --kinds ws,ws16,chat

Scheduler, step loop, GPU engine, runtime, faces, listener and outbox are the real ones; only the device computes
nothing (instant.py), so a step lands as soon as the host looks for it, and the loop runs as fast as the host can.
kinds: ws: Responses events, one stream per websocket; ws16: sixteen; steps, steps16: the same with every step told
(x_telemetry); responses, chat: SSE. The readers live in a process of their own and only count bytes.

Two passes over the same streams, both in CPU time of the thread. The first times whole steps, from one look at the
device to the next (`cpu_us`). The second has clocks between the parts: retire, plan, pack (the engine's launch),
land (its poll), tell (tokens to text), render (text to events and frames), write (transports, system calls and the
turn of the event loop); rest is what no clock has seen. The last line printed is the JSON that --out writes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import uvloop

from headrace.bench.instant import InstantEngine, Vocabulary, VocabularyPrompter
from headrace.bench.surroundings import surroundings
from headrace.server.app import App, settle_interpreter
from headrace.server.config import Limits, ServerConfig
from headrace.server.outbox import Outlet

KINDS = {
    "ws": ("ws", 1),
    "ws16": ("ws", 16),
    "steps": ("steps", 1),
    "steps16": ("steps", 16),
    "responses": ("responses", 1),
    "chat": ("chat", 1),
}
PARTS = ("retire", "plan", "pack", "land", "tell", "render", "write", "rest")
BUDGET_US = {1: 30, 8: 65, 64: 370, 256: 1450}  # of a whole step: the design's page on performance, section 4
WARM = 32  # steps before the first that counts


class Passes:
    """Counts steps through both passes: `wanted` steps each, after WARM steps each that do not count."""

    def __init__(self, app: App, engine: InstantEngine, wanted: int, ready: Callable[[], bool]) -> None:
        self.app = app
        self.engine = engine
        self.wanted = wanted
        self.ready = ready
        self.cpu: list[int] = []  # nanoseconds per step
        self.parts: dict[str, list[int]] = {part: [] for part in PARTS}
        self.over = asyncio.Event()
        self.held = 0  # looks at which a reader was behind
        self._skip = WARM
        self._mark: int | None = None
        self._probes: Probes | None = None
        engine.hold = self._hold
        engine.on_look = self._look

    def _hold(self) -> bool:
        """A reader that is behind would let tokens pile up into fewer, larger events."""
        if self._probes is not None:
            self._probes.turn_over()
        now = time.thread_time_ns()
        if self._mark is not None:
            self._note(now - self._mark)
            self._mark = None
        connections: Any = self.app.listener._port.connections  # type: ignore[union-attr]
        behind = any(each._transport.get_write_buffer_size() for each in connections)
        self.held += behind
        return behind

    def _look(self, landing: bool) -> None:
        if landing:
            if self._probes is not None:
                self._probes.begin()
            self._mark = time.thread_time_ns()

    def _note(self, spent: int) -> None:
        if not self.ready() or self.over.is_set():
            return
        if self._skip:
            self._skip -= 1
            return
        if self._probes is None:
            self.cpu.append(spent)
            if len(self.cpu) == self.wanted:
                self._probes = Probes(self.app, self.engine)
                self._skip = WARM
            return
        for part, nanoseconds in self._probes.spent().items():
            self.parts[part].append(nanoseconds)
        if len(self.parts["rest"]) == self.wanted:
            self._probes.take_out()
            self.over.set()


class Probes:
    """Clocks around the parts of a step. They shadow methods of the objects of one App."""

    def __init__(self, app: App, engine: InstantEngine) -> None:
        self.at = at = dict.fromkeys(PARTS, 0)
        self._began = self._told_from = self._rendered = self._whole = 0
        self._outlets: list[tuple[Outlet, asyncio.Transport]] = []
        self._clock = clock = time.thread_time_ns
        self._cost = cost = cost_of_clock()
        scheduler: Any = app.scheduler
        loop: Any = app.loop

        def around(part: str, inner: Callable[..., Any]) -> Callable[..., Any]:
            """`inner` with its time counted as `part`."""

            def timed(*args: Any, **named: Any) -> Any:
                start = clock()
                try:
                    return inner(*args, **named)
                finally:
                    at[part] += clock() - start - cost

            return timed

        scheduler.retire = around("retire", scheduler.retire)
        engine._poll = around("land", engine._poll)
        loop.engine = _Shadow(engine, launch=around("pack", engine.launch))
        loop._launch = around("plan", loop._launch)
        flush = around("render", loop.on_flush)
        written: list[tuple[Callable[[bytes], None], bytes]] = []
        connections: Any = app.listener._port.connections  # type: ignore[union-attr]
        for connection in connections:
            # Outlets are kept from their transports until all have rendered, so that one clock serves them all.
            transport = connection._transport
            outlet = getattr(connection, "_outlet", None) or connection.outlet
            self._outlets.append((outlet, transport))
            outlet._transport = _Shadow(
                transport, write=lambda data, write=transport.write: written.append((write, data))
            )

        def launch_then_tell(inner: Callable[[], None] = loop._launch) -> None:
            packed = at["pack"]
            inner()
            at["plan"] -= at["pack"] - packed + 2 * cost
            self._told_from = clock()

        def flush_after_telling() -> None:
            at["tell"] += clock() - self._told_from - cost
            flush()
            self._rendered = clock()
            for write, data in written:
                write(data)
            written.clear()

        loop._launch = launch_then_tell
        loop.on_flush = flush_after_telling

    def begin(self) -> None:
        """A step is about to land."""
        for part in PARTS:
            self.at[part] = 0
        self._began = self._clock()

    def turn_over(self) -> None:
        """The next look begins: sockets were written to meanwhile."""
        now = self._clock()
        self.at["write"] = now - self._rendered - self._cost
        self._whole = now - self._began - 12 * self._cost  # so many calls of the clock lie within

    def take_out(self) -> None:
        """Connections may close: their outlets have their transports again."""
        for outlet, transport in self._outlets:
            outlet._transport = transport

    def spent(self) -> dict[str, int]:
        """Nanoseconds of every part of the step that is over."""
        self.at["rest"] = self._whole - sum(self.at[part] for part in PARTS if part != "rest")
        return self.at


def cost_of_clock() -> int:
    """Nanoseconds that one call of the thread's clock takes."""
    clock = time.thread_time_ns
    return min(-clock() + clock() for _ in range(1000))


class _Shadow:
    """`inner` with some attributes replaced."""

    def __init__(self, inner: Any, **shadows: Any) -> None:
        self.__dict__.update(shadows)
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def measure(name: str, streams: int, steps: int) -> dict[str, Any]:
    """One row: `streams` streams of one kind, `steps` steps in each pass."""
    kind, per = KINDS[name]
    per = min(per, streams)
    vocabulary = Vocabulary()
    engine = InstantEngine(streams, vocabulary)
    limits = Limits(max_sockets=streams + 8, max_sockets_per_ip=streams + 8, max_sockets_per_key=streams + 8)
    app = App(ServerConfig(port=0, limits=limits), engine, VocabularyPrompter(vocabulary), engine.card)
    settle_interpreter()
    passes = Passes(app, engine, steps, lambda: len(app.scheduler.running) == streams)
    await app.start()
    assert app.listener is not None
    tokens = 3 * (steps + WARM) + 512
    command = [sys.executable, "-P", "-m", "headrace.bench.count"]
    command += [str(app.listener.port), kind, *map(str, (streams, per, tokens))]
    reader = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    over = asyncio.ensure_future(passes.over.wait())
    left = asyncio.ensure_future(reader.wait())
    await asyncio.wait((over, left), return_when=asyncio.FIRST_COMPLETED)
    if left.done():
        raise RuntimeError("the reading process ended early")
    assert app.loop.live == streams, "a stream ended while it was measured"
    sent, writes = app.outbox.bytes_out, app.outbox.writes
    landed = app.scheduler.counters.steps
    await app.stop(0.0)
    read, _ = await reader.communicate()
    assert int(read) >= sent, "every byte was read"
    gc.unfreeze()
    row: dict[str, Any] = {
        "kind": name,
        "streams": streams,
        "connections": -(-streams // per),
        "steps": steps,
    }
    row |= {f"cpu_us_{key}": value for key, value in quantiles(passes.cpu).items()}
    row |= {
        "budget_us": BUDGET_US.get(streams),
        "parts_us_p5": {part: quantiles(spent)["p5"] for part, spent in passes.parts.items()},
        "parts_us_p50": {part: quantiles(spent)["p50"] for part, spent in passes.parts.items()},
        "parts_us_p99": {part: quantiles(spent)["p99"] for part, spent in passes.parts.items()},
        "bytes_per_token": round(sent / (landed * streams)),
        "writes_per_step": round(writes / landed, 1),
        "looks_held_back": passes.held,
    }
    return row


def quantiles(nanoseconds: Sequence[int]) -> dict[str, float]:
    """In microseconds. p5: what a step costs while the neighbours of this thread are quiet."""
    ordered = sorted(nanoseconds)
    count = len(ordered)
    return {
        "mean": round(sum(ordered) / count / 1e3, 1),
        "p5": round(ordered[count // 20] / 1e3, 1),
        "p50": round(ordered[count // 2] / 1e3, 1),
        "p99": round(ordered[min(count - 1, int(count * 0.99))] / 1e3, 1),
    }


def numbers(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1 on")
    return found


def names(text: str) -> list[str]:
    found = text.split(",")
    if unknown := [name for name in found if name not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table and, as the last line, its JSON."""
    parser = argparse.ArgumentParser(
        prog="headrace bench host", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--streams", type=numbers, default="1,8,64,256", help="live streams [1,8,64,256]")
    parser.add_argument(
        "--kinds", type=names, default="ws,ws16,chat", help="[ws,ws16,chat]; also steps, steps16, responses"
    )
    parser.add_argument(
        "--steps", type=int, default=600, help="steps of a pass, fewer with many streams [600]"
    )
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    given = parser.parse_args(argv)
    if given.steps < 1:
        parser.error("--steps from 1 on")
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    rows = []
    print(
        f"{'kind':<10}{'streams':>8}{'cpu µs':>9}{'p99':>8}{'budget':>8}  "
        + "".join(f"{part:>8}" for part in PARTS)
    )
    for streams in given.streams:
        for kind in given.kinds:
            steps = max(1, min(given.steps, given.steps * 128 // streams))
            row = uvloop.run(measure(kind, streams, steps))
            rows.append(row)
            print(
                f"{kind:<10}{streams:>8}{row['cpu_us_p50']:>9}{row['cpu_us_p99']:>8}{row['budget_us'] or '':>8}  "
                + "".join(f"{row['parts_us_p50'][part]:>8}" for part in PARTS),
                flush=True,
            )
    result = {
        "bench": "host",
        "machine": surroundings(),
        "settings": {"steps": given.steps, "warm": WARM},
        "rows": rows,
    }
    line = json.dumps(result)
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
