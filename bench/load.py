"""One load run: client processes, a common start, the traces of all of them, and whether the client kept up."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from headrace.bench.http_wire import Target
from headrace.bench.record import Planned, Run, Transport
from headrace.bench.transports import DIALECTS, Manner
from headrace.bench.worker import Done, Job, Progress, Ready, Report, Start, write_message

BUSY_SHARE = 0.7  # of a core: above it a worker stamps late, and the numbers would be its own
RATE_SHARE = 0.5  # of the rate that a worker was seen to take from the null server
LEAD_NS = 50_000_000  # between the last worker's readiness and the start
WINDOW_NS = 1_000_000_000


class LoadError(Exception):
    """A run that could not be done; the message is for the person at the terminal."""


class Tally(NamedTuple):
    """How far a run is, all workers together. events: pieces of answers read, about one a token."""

    elapsed_s: float
    ended: int
    failed: int
    events: int


class Client(msgspec.Struct, kw_only=True):
    """What the client itself did in one run. Of the busiest worker: its CPU share over the run and over its busiest
    second, and its reads per second; the longest time between a poll and the last read that it led to; and the
    share of the time in which it was ready to run but had no core. The last two make stamps late."""

    workers: int
    cpu_share: float
    busiest_second: float
    reads_per_s: float
    longest_turn_s: float
    starved_share: float

    def refusal(self, capacity: float | None) -> str | None:
        """Why numbers of this run must not be believed. `capacity`: calibrated reads per CPU second of a worker."""
        busy = max(self.cpu_share, self.busiest_second)
        if busy > BUSY_SHARE:
            return (
                f"a client process used {busy:.0%} of a core, more than {BUSY_SHARE:.0%}: "
                "the client was the bottleneck; use more --workers"
            )
        if capacity is not None and self.reads_per_s > RATE_SHARE * capacity:
            return (
                f"a client process read {self.reads_per_s:,.0f} times a second, more than {RATE_SHARE:.0%} of the "
                f"{capacity:,.0f} that it can: the client was the bottleneck; use more --workers"
            )
        return None


class Outcome(NamedTuple):
    run: Run
    client: Client


class Crew(msgspec.Struct, frozen=True, kw_only=True):
    """The client: how many processes, on which cores (none named: anywhere), answers per shared socket, and the
    seconds of silence after which an answer counts as failed."""

    workers: int = 1
    cores: tuple[int, ...] = ()
    lanes: int = 16
    patience_s: float = 120.0


def find_target(url: str, key: str = "") -> Target:
    """Where a URL points, name resolved. A path up to /v1 may be part of it. LoadError for what is no plain URL."""
    parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme in ("https", "wss"):
        raise LoadError(
            "the client speaks plain http and ws: measure behind the TLS, or through a local tunnel"
        )
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "ws") or not parts.hostname or parts.query or port == -1:
        raise LoadError(f"not the address of a server: {url}")
    port = port or 80
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise LoadError(f"{parts.hostname}: {error.strerror}") from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Target(parts.netloc.rpartition("@")[2], str(found[0][4][0]), port, prefix, key)


def deal(planned: Sequence[Planned], workers: int, group: int) -> list[list[Planned]]:
    """A share of the plan for each worker; no share is empty. Streams stay whole, and `group` of them together, so
    that shared sockets are as full as they can be; open-loop requests go round."""
    streams = list(dict.fromkeys(one.stream for one in planned if one.at is None))
    if group > 1 and len(streams) < group * workers:
        # Rather fewer lanes on a socket than idle workers.
        group = max(1, -(-len(streams) // workers))
    owner = {stream: place // group % workers for place, stream in enumerate(streams)}
    shares: list[list[Planned]] = [[] for _ in range(workers)]
    arrivals = 0
    for one in planned:
        if one.at is None:
            shares[owner[one.stream]].append(one)
        else:
            shares[arrivals % workers].append(one)
            arrivals += 1
    return [share for share in shares if share]


class Hand:
    """A worker process, as its parent sees it."""

    def __init__(self, job: Job) -> None:
        command = [sys.executable, "-P", "-m", "headrace.bench.worker"]
        # In a session of its own: Ctrl-C is the parent's to handle.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.inbox = bytearray()
        self.ready = False
        self.done: Done | None = None
        self.progress = Progress(0, 0.0, 0, 0, 0, 0)
        self.first: Progress | None = None
        self.marks: list[Progress] = []
        assert self.process.stdin is not None and self.process.stdout is not None
        self.source = self.process.stdout
        write_message(self.process.stdin, job)  # type: ignore[arg-type]

    def start(self, at_ns: int) -> None:
        assert self.process.stdin is not None
        write_message(self.process.stdin, Start(at_ns))  # type: ignore[arg-type]

    def take(self) -> None:
        """Read what the worker said. LoadError if it is gone."""
        data = os.read(self.source.fileno(), 1 << 20)
        if not data:
            raise LoadError(f"a client process ended with status {self.process.wait()}")
        self.inbox += data
        while len(self.inbox) >= 4:
            end = 4 + int.from_bytes(self.inbox[:4])
            if len(self.inbox) < end:
                return
            report = msgspec.msgpack.decode(bytes(self.inbox[4:end]), type=Report)
            del self.inbox[:end]
            match report:
                case Ready():
                    self.ready = True
                case Progress():
                    self.progress = report
                    self.marks.append(report)
                case Done():
                    self.done = report

    def busiest_second(self) -> float:
        """The greatest CPU share over a second; 0 in a shorter run."""
        most, begin = 0.0, 0
        for mark in self.marks:
            while mark.at_ns - self.marks[begin].at_ns >= WINDOW_NS:
                since = self.marks[begin]
                most = max(most, (mark.cpu_s - since.cpu_s) / (mark.at_ns - since.at_ns) * 1e9)
                begin += 1
        return most


def run(
    target: Target,
    transport: Transport,
    manner: Manner,
    planned: Sequence[Planned],
    crew: Crew,
    *,
    warmup: bool = False,
    watch: Callable[[Tally], None] | None = None,
) -> Outcome:
    """Send a plan and gather what came of it. Requests that fail are traces with an error; LoadError is for a run
    that could not be done. `watch` is called a few times a second."""
    group = crew.lanes if DIALECTS[transport].shared else 1
    shares = deal(planned, crew.workers, group)
    if not shares:
        raise LoadError("nothing is planned")
    hands: list[Hand] = []
    try:
        for place, share in enumerate(shares):
            hands.append(
                Hand(
                    Job(
                        target=target,
                        transport=transport,
                        manner=manner,
                        planned=share,
                        lanes=crew.lanes,
                        patience_s=crew.patience_s,
                        core=crew.cores[place % len(crew.cores)] if crew.cores else None,
                    )
                )
            )
        return gather(hands, transport, warmup, watch)
    finally:
        for hand in hands:
            for pipe in (hand.process.stdin, hand.process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        pass
            hand.process.kill()
            hand.process.wait()


def gather(
    hands: Sequence[Hand], transport: Transport, warmup: bool, watch: Callable[[Tally], None] | None
) -> Outcome:
    """Start the workers together and wait for all."""
    with selectors.DefaultSelector() as pipes:
        for hand in hands:
            pipes.register(hand.source, selectors.EVENT_READ, hand)
        while not all(hand.ready for hand in hands):
            for key, _ in pipes.select():
                key.data.take()
        start_ns = time.monotonic_ns() + LEAD_NS
        for hand in hands:
            hand.start(start_ns)
        while pipes.get_map():
            for key, _ in pipes.select(0.25):
                key.data.take()
                if key.data.done is not None:
                    pipes.unregister(key.fileobj)
            if watch is not None:
                watch(tally(hands, start_ns))
    done = [hand.done for hand in hands if hand.done is not None]
    traces = [trace for one in done for trace in one.traces]
    traces.sort(key=lambda trace: (trace.sent_ns, trace.number, trace.turn))
    result = Run(
        transport=transport,
        started_ns=start_ns,
        ended_ns=max(one.ended_ns for one in done),
        traces=traces,
        workers=[one.cost for one in done],
        warmup=warmup,
    )
    client = Client(
        workers=len(done),
        cpu_share=max(one.cost.cpu_s / one.cost.wall_s for one in done),
        busiest_second=max(hand.busiest_second() for hand in hands),
        reads_per_s=max(one.reads / one.cost.wall_s for one in done),
        longest_turn_s=max(one.longest_turn_s for one in done),
        starved_share=max(one.starved_s / one.cost.wall_s for one in done),
    )
    return Outcome(result, client)


def tally(hands: Sequence[Hand], start_ns: int) -> Tally:
    return Tally(
        elapsed_s=(time.monotonic_ns() - start_ns) / 1e9,
        ended=sum(len(hand.done.traces) if hand.done else hand.progress.ended for hand in hands),
        failed=sum(hand.progress.failed for hand in hands),
        events=sum(hand.done.cost.events if hand.done else hand.progress.events for hand in hands),
    )
