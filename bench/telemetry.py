"""Is it true what a server tells of an answer's time? Its sums beside a clock on the other end of the socket.

    headrace bench telemetry http://127.0.0.1:8000 --requests 1000

Sockets with one stream each ask again and again with x_telemetry "step". For each answer: the time from before its
request is written to after the `recv` that brought its end, less the total that the server tells (`beyond_ms`: what
lies outside of the server, and what it has overlooked). What it tells must add up to the microsecond, from the
summary and from the steps alike; and while nobody else uses the server, the steps of all answers are those of
/metrics: in number, in captured graphs, and in each bucket. The last line printed is the JSON that --out writes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import select
import socket
import sys
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import msgspec

from headrace.bench import frames
from headrace.bench.http_wire import Target
from headrace.bench.load import LoadError, find_target
from headrace.bench.probe import get
from headrace.bench.scrape import SUM, read_histograms, since
from headrace.bench.surroundings import surroundings

PARTS = ("queue_ms", "prefill_ms", "steps_ms", "waited_ms", "send_lag_ms")
ENDS = (b'{"type":"response.completed"', b'{"type":"response.incomplete"', b'{"type":"response.failed"')
SILENCE_S = 120.0
WITHIN_MS = 1.0  # what is asked for


def micros(milliseconds: float) -> int:
    return round(milliseconds * 1000)


class Reader:
    """One socket: a request at a time, every message with the stamp of its `recv`."""

    def __init__(self, target: Target, number: int, tokens: int) -> None:
        self.number = number
        self.tokens = tokens
        self.sock = socket.create_connection((target.address, target.port), timeout=SILENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(target.upgrade("/v1/responses?ext=1", bytes(16)))
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.sock.recv(4096)
            if not data:
                raise LoadError("the server closed the connection in the handshake")
            head += data
        if not head.startswith(b"HTTP/1.1 101"):
            raise LoadError(f"no websocket: {head.splitlines()[0].decode(errors='replace')}")
        self.frames = frames.FrameReader()
        self.messages: list[bytes] = []
        self.sent_ns = self.asked = 0

    def ask(self) -> None:
        """The next request; prompts differ in length."""
        words = "word " * (1 + (self.number * 7 + self.asked * 3) % 60)
        event = {
            "type": "response.create",
            "model": "default",
            "input": f"{self.number} {self.asked} {words}",
            "max_output_tokens": self.tokens,
            "ignore_eos": True,
            "store": False,
            "x_telemetry": "step",
            "x_on_disconnect": "cancel",
        }
        self.asked += 1
        self.messages = []
        data = frames.frame(frames.TEXT, json.dumps(event).encode(), masked=True)
        self.sent_ns = time.monotonic_ns()
        self.sock.sendall(data)

    def read(self) -> int | None:
        """What has come; the stamp, if that was the end of the answer."""
        data = self.sock.recv(1 << 18)
        stamp = time.monotonic_ns()
        if not data:
            raise LoadError("the server closed a connection")
        for opcode, payload in self.frames.feed(data):
            if opcode == frames.PING:
                self.sock.sendall(frames.frame(frames.PONG, payload, masked=True))
            elif opcode == frames.CLOSE:
                raise LoadError(f"the server closed a connection: {frames.close_reason(payload)}")
            else:
                self.messages.append(payload)
                if payload.startswith(b'{"type":"error"'):
                    raise LoadError(f"the server refused: {payload.decode()}")
        return stamp if self.messages and self.messages[-1].startswith(ENDS) else None


class Books:
    """What all answers came to."""

    def __init__(self) -> None:
        self.beyond: list[float] = []
        self.shares: list[dict[str, float]] = []
        self.wrong: list[str] = []
        self.steps: dict[int, tuple[int, bool]] = {}  # by step_id: microseconds, and whether a graph ran it

    def add(self, sent_ns: int, ended_ns: int, messages: Sequence[bytes]) -> None:
        """One answer, from its first message to its last."""
        final = msgspec.json.decode(messages[-1])["response"]
        summary = json.loads(final["metadata"]["x_telemetry"])
        total, spent = micros(summary["total_ms"]), 0
        for raw in messages:
            if raw.startswith(b'{"type":"x.step"'):
                step = msgspec.json.decode(raw)
                self.steps[step["step_id"]] = micros(step["step_ms"]), step["graph"] == "hit"
                spent += micros(step["step_ms"])
                spent += sum(micros(row["queue_ms"]) for row in step["streams"])
        if total != sum(micros(summary[part]) for part in PARTS):
            self.wrong.append(f"{final['id']}: the summary does not add up: {summary}")
        if total != spent + micros(summary["send_lag_ms"]):
            self.wrong.append(f"{final['id']}: the steps come to {spent} us, the summary says {summary}")
        self.beyond.append((ended_ns - sent_ns) / 1e6 - summary["total_ms"])
        self.shares.append({part: summary[part] for part in PARTS})

    def against(self, before: bytes, after: bytes) -> list[str]:
        """Where the server's own counts of the same time differ."""
        wrong = []
        for name, count in (
            ("headrace_steps_total", len(self.steps)),
            ("headrace_graph_replays_total", sum(hit for _, hit in self.steps.values())),
        ):
            counted = counter(after, name) - counter(before, name)
            if counted != count:
                wrong.append(f"{name} went up by {counted:g}, told were {count}")
        step = since(read_histograms(before.decode()), read_histograms(after.decode()))["step"]
        bounds = sorted(bound for bound in step if bound != SUM)
        told = [0] * len(bounds)
        for took, _ in self.steps.values():
            told[bisect_left(bounds, took / 1e6)] += 1
        filled = [step[bound] - (step[bounds[at - 1]] if at else 0.0) for at, bound in enumerate(bounds)]
        if told != filled:
            wrong.append(f"steps by bucket: told {told}, counted {filled}")
        return wrong


def counter(text: bytes, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", text.decode(), re.MULTILINE)
    if found is None:
        raise LoadError(f"/metrics has no {name}")
    return float(found[1])


def run(target: Target, requests: int, sockets: int, tokens: int, warm: int) -> tuple[Books, list[str]]:
    """Ask `requests` answers over `sockets` sockets, after `warm` more that do not count."""
    readers = {}
    poll = select.epoll()
    for number in range(min(sockets, requests)):
        reader = Reader(target, number, tokens)
        readers[reader.sock.fileno()] = reader
        poll.register(reader.sock.fileno(), select.EPOLLIN)
    books, wrong = Books(), []
    for phase, wanted in (("warm", warm), ("counted", requests)):
        before = get(target, "/metrics")[1]
        left = wanted
        busy = set()
        for number, reader in readers.items():
            if left:
                left -= 1
                busy.add(number)
                reader.ask()
        while busy:
            ready = poll.poll(SILENCE_S)
            if not ready:
                raise LoadError(f"nothing came for {SILENCE_S:g} s")
            for number, _ in ready:
                reader = readers[number]
                ended = reader.read()
                if ended is None:
                    continue
                if phase == "counted":
                    books.add(reader.sent_ns, ended, reader.messages)
                busy.discard(number)
                if left:
                    left -= 1
                    busy.add(number)
                    reader.ask()
        if phase == "counted":
            wrong = books.against(before, get(target, "/metrics")[1])
    for reader in readers.values():
        reader.sock.close()
    return books, wrong


def quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    found = {name: ordered[min(last, math.floor(share * len(ordered)))] for name, share in SHARES.items()}
    return {"min": round(ordered[0], 3), **{name: round(value, 3) for name, value in found.items()}}


SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found and, as the last line, its JSON. Exit status 1 if a sum was wrong."""
    parser = argparse.ArgumentParser(
        prog="headrace bench telemetry", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("url", help="a headrace server that nobody else uses meanwhile")
    parser.add_argument("--requests", type=int, default=1000, help="answers [1000]")
    parser.add_argument("--sockets", type=int, default=8, help="connections, one stream each [8]")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer [16]")
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    given = parser.parse_args(argv)
    if min(given.requests, given.sockets, given.tokens) < 1:
        parser.error("--requests, --sockets and --tokens from 1 on")
    try:
        target = find_target(given.url, given.key)
        books, wrong = run(target, given.requests, given.sockets, given.tokens, warm=2 * given.sockets)
    except (LoadError, OSError) as error:
        print(f"headrace bench telemetry: {error}", file=sys.stderr)
        return 2
    wrong += books.wrong
    beyond = quantiles(books.beyond)
    within = sum(value <= WITHIN_MS for value in books.beyond) / len(books.beyond)
    parts = {part: quantiles([share[part] for share in books.shares]) for part in PARTS}
    print(f"{len(books.beyond)} answers, {len(books.steps)} steps; sums wrong: {len(wrong)}")
    print(f"time beyond what was told, ms: {beyond}; within {WITHIN_MS:g} ms: {within:.1%}")
    for part, found in parts.items():
        print(f"{part:>14}: {found}")
    for line in wrong[:10]:
        print(line)
    result = {
        "bench": "telemetry",
        "machine": surroundings(),
        "settings": {"requests": given.requests, "sockets": given.sockets, "tokens": given.tokens},
        "answers": len(books.beyond),
        "steps": len(books.steps),
        "graph_hits": sum(hit for _, hit in books.steps.values()),
        "wrong": wrong,
        "beyond_ms": beyond,
        "within_1_ms": round(within, 4),
        "told_ms": parts,
    }
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
