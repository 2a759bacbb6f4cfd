"""One process of a load client: an epoll loop over raw sockets that sends what was planned and stamps what comes.

Speaks with its parent in msgpack over pipes (`load.py`). Closed loop: each stream has a seat of its own, its next
request goes out when the one before has ended. Open loop: requests go out at their time whatever happened before; a
request takes a free seat, or a new connection if there is none. A seat is a connection, or a lane of one.
"""

from __future__ import annotations

import gc
import heapq
import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from headrace.bench.exchange import Exchange
from headrace.bench.http_wire import Target, allow_sockets
from headrace.bench.line import Line
from headrace.bench.record import Planned, Trace, Transport, WorkerCost
from headrace.bench.transports import DIALECTS, Manner, body
from headrace.bench.workloads import again

SPARE = 64  # connections that an open loop opens before it starts, at most
PACE_NS = 250_000_000  # between two reports of progress
BREATHER_NS = 250_000_000  # after a failed connection, before its stream tries the next


class Job(msgspec.Struct, kw_only=True):
    """What one worker does. lanes: answers under way at once on a shared socket. patience_s: silence after which an
    answer counts as failed. core: where to run, None: anywhere."""

    target: Target
    transport: Transport
    manner: Manner
    planned: list[Planned]
    lanes: int = 16
    patience_s: float = 120.0
    core: int | None = None


class Ready(msgspec.Struct, tag=True):
    """All connections were tried."""


class Start(msgspec.Struct, tag=True):
    at_ns: int


class Progress(msgspec.Struct, tag=True):
    """What has happened so far, in this worker. cpu_s and at_ns: to see how busy it was between two of these."""

    at_ns: int
    cpu_s: float
    reads: int
    events: int
    ended: int
    failed: int


class Done(msgspec.Struct, tag=True):
    """Everything. longest_turn_s: the longest time that the loop spent on what one poll had found, and so the most
    by which a stamp may be late for the client's own sake. starved_s: time in which the process could have run, but
    had no core."""

    traces: list[Trace]
    cost: WorkerCost
    ended_ns: int
    reads: int
    longest_turn_s: float
    starved_s: float


Report = Ready | Progress | Done


class Seat(NamedTuple):
    line: Line
    lane: str


class Talk:
    """One planned request under way: its turns, one after the other."""

    def __init__(self, planned: Planned, seat: Seat, stream: Stream | None, round_: int = 0) -> None:
        self.planned = planned
        self.seat = seat
        self.stream = stream
        self.round = round_
        self.before: list[tuple[str, str]] = []
        self.previous_id: str | None = None


class Stream:
    """A closed loop: what is still to be sent, in order, on one seat."""

    def __init__(self, seat: Seat, planned: Sequence[Planned]) -> None:
        self.seat = seat
        self.left = deque(planned)


class Worker:
    """Runs one job."""

    def __init__(self, job: Job, tell: Callable[[Report], None]) -> None:
        self.job = job
        self.tell = tell
        self.dialect = DIALECTS[job.transport]
        self.poll = select.epoll()
        self.lines: dict[int, Line] = {}
        self.all_lines: list[Line] = []
        self.reads = self.events = self.failed = 0
        self.timers: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.fresh: deque[Exchange] = deque()  # ended, nobody has looked at them yet
        self.done: list[Exchange] = []
        self.unfinished = 0
        self.free: list[Seat] = []
        self.start_ns = 0
        self.patience_ns = round(job.patience_s * 1e9)
        self.longest_turn_ns = 0
        self.streams = self.seat_streams([one for one in job.planned if one.at is None])
        self.arrivals = [one for one in job.planned if one.at is not None]
        while len(self.free) < min(len(self.arrivals), SPARE):
            self.add_free()
        # Built now, so that building costs nothing when a request is due. Later turns depend on answers.
        self.first_turns = {one.number: self.request(one, one.turns[0], [], None) for one in job.planned}

    # -- seats -------------------------------------------------------------------------------------------------

    def seat_streams(self, planned: Sequence[Planned]) -> list[Stream]:
        found: dict[int, list[Planned]] = {}
        for one in sorted(planned, key=lambda one: one.number):
            found.setdefault(one.stream, []).append(one)
        seats: list[Seat] = []
        streams = []
        for requests in found.values():
            slow = any(one.read_pause for one in requests)
            # A slow reader stops reading its whole socket; nobody else may sit there.
            if slow:
                streams.append(Stream(self.add_seats(True)[0], requests))
                continue
            seats = seats or self.add_seats()
            streams.append(Stream(seats.pop(0), requests))
        return streams

    def add_seats(self, slow: bool = False) -> list[Seat]:
        """The seats of one more connection."""
        line = Line(self, self.job.target, self.dialect, slow=slow)
        self.all_lines.append(line)
        if not self.dialect.shared:
            return [Seat(line, "")]
        return [Seat(line, f"lane{number}") for number in range(self.job.lanes)]

    def add_free(self) -> None:
        self.free += reversed(self.add_seats())

    # -- running -----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Try every connection once; a failure shows when a request wants to use it."""
        for line in self.all_lines:
            line.connect()
        deadline = time.monotonic_ns() + min(self.patience_ns, 10_000_000_000)
        while any(line.state in ("connecting", "opening") for line in self.all_lines):
            left = deadline - time.monotonic_ns()
            if left <= 0:
                return
            for fd, mask in self.poll.poll(left / 1e9):
                if standing := self.lines.get(fd):
                    standing.ready(mask)

    def run(self, start_ns: int) -> Done:
        """Send and read everything, starting at that instant."""
        self.start_ns = start_ns
        self.unfinished = len(self.streams) + len(self.arrivals)
        for one in self.arrivals:
            assert one.at is not None
            due = start_ns + round(one.at * 1e9)
            self.later(due, lambda one=one, due=due: self.arrive(one, due))  # type: ignore[misc]
        for stream in self.streams:
            self.later(start_ns, lambda stream=stream: self.next_of(stream))  # type: ignore[misc]
        self.later(start_ns + PACE_NS, self.look_around)
        self.sleep_until(start_ns)
        begin, cpu, starved = time.monotonic_ns(), time.process_time(), time_without_core()
        self.reads = self.events = 0
        while self.unfinished:
            turn_ns = self.turn()
            self.longest_turn_ns = max(self.longest_turn_ns, turn_ns)
        end, cpu = time.monotonic_ns(), time.process_time() - cpu
        starved = time_without_core() - starved
        for line in self.all_lines:
            line.close()
        return Done(
            traces=[exchange.trace() for exchange in self.done],
            cost=WorkerCost(cpu_s=cpu, wall_s=(end - begin) / 1e9, events=self.events),
            ended_ns=end,
            reads=self.reads,
            longest_turn_s=self.longest_turn_ns / 1e9,
            starved_s=starved,
        )

    def turn(self) -> int:
        """One turn of the loop; how long it worked, waiting apart, in ns."""
        now = time.monotonic_ns()
        while self.timers and self.timers[0][0] <= now:
            heapq.heappop(self.timers)[2]()
        while self.fresh:
            self.look_at(self.fresh.popleft())
        worked = time.monotonic_ns()
        found = self.wait((self.timers[0][0] if self.timers else now + PACE_NS) - worked)
        woken = time.monotonic_ns()
        for fd, mask in found:
            # A line that this loop has dropped meanwhile is no longer there.
            if standing := self.lines.get(fd):
                standing.ready(mask)
        return time.monotonic_ns() - woken + worked - now

    def wait(self, wait_ns: int) -> list[tuple[int, int]]:
        """What is ready; at most `wait_ns` from now. epoll counts in whole milliseconds, select is finer."""
        if not self.unfinished:
            return []
        if wait_ns > 2_000_000:
            return self.poll.poll(wait_ns / 1e9 - 0.001)
        if wait_ns > 0:
            select.select([self.poll.fileno()], [], [], wait_ns / 1e9)
        return self.poll.poll(0)

    def sleep_until(self, at_ns: int) -> None:
        while (left := at_ns - time.monotonic_ns()) > 0:
            select.select([], [], [], left / 1e9)

    def later(self, at_ns: int, call: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.timers, (at_ns, self.count, call))

    def look_around(self) -> None:
        """Now and then: report, and give up on the silent."""
        now = time.monotonic_ns()
        for line in self.all_lines:
            line.check(now, self.patience_ns)
        self.tell(self.progress())
        self.later(now + PACE_NS, self.look_around)

    def progress(self) -> Progress:
        return Progress(
            time.monotonic_ns(), time.process_time(), self.reads, self.events, len(self.done), self.failed
        )

    # -- requests ----------------------------------------------------------------------------------------------

    def request(
        self, planned: Planned, turn: str | Sequence[int], before: list[tuple[str, str]], previous: str | None
    ) -> bytes:
        return body(self.job.transport, self.job.manner, turn, planned.output_tokens, before, previous)

    def arrive(self, planned: Planned, due_ns: int) -> None:
        """Open loop: the time of a request has come."""
        if not self.free:
            self.add_free()
        self.ask(Talk(planned, self.free.pop(), None), due_ns)

    def next_of(self, stream: Stream) -> None:
        """Closed loop: the next request of a stream, or its end."""
        if stream.left:
            self.ask(Talk(stream.left.popleft(), stream.seat, stream), None)
        else:
            self.unfinished -= 1

    def ask(self, talk: Talk, due_ns: int | None) -> None:
        """Send the next turn of a talk."""
        planned, turn = talk.planned, len(talk.before)
        if turn or talk.round:
            data = self.request(planned, planned.turns[turn], talk.before, talk.previous_id)
        else:
            data = self.first_turns[planned.number]
        exchange = Exchange(planned, turn, self.dialect, data, due_ns, talk)
        exchange.lane = talk.seat.lane
        talk.seat.line.submit(exchange)

    def ended(self, exchange: Exchange) -> None:
        """Told by a line. What follows happens when the loop is back at its top: lines are not re-entered."""
        self.fresh.append(exchange)

    def look_at(self, exchange: Exchange) -> None:
        self.done.append(exchange)
        self.failed += exchange.fault is not None or exchange.status != 200
        talk = exchange.talk
        assert isinstance(talk, Talk)
        planned, turn = talk.planned, exchange.turn
        if turn + 1 < len(planned.turns):
            reading = exchange.read() if exchange.ok else None
            if reading is not None and reading.error is None:
                said = planned.turns[turn]
                talk.before.append((said if isinstance(said, str) else "", reading.text))
                talk.previous_id = reading.response_id
                self.ask(talk, None)
                return
            self.give_up(talk, turn + 1)
        if talk.stream is None:
            self.free.append(talk.seat)
            self.unfinished -= 1
            return
        if planned.until and exchange.ended_ns < self.start_ns + planned.until * 1e9:
            next_talk = Talk(again(planned, talk.round + 1), talk.seat, talk.stream, talk.round + 1)
            proceed: Callable[[], None] = lambda: self.ask(next_talk, None)  # noqa: E731
        else:
            stream = talk.stream
            proceed = lambda: self.next_of(stream)  # noqa: E731
        if exchange.fault is not None:
            # A server that is gone must not be asked a million times.
            self.later(time.monotonic_ns() + BREATHER_NS, proceed)
        else:
            proceed()

    def give_up(self, talk: Talk, turn: int) -> None:
        """The turns behind one that failed: they count as failed, too."""
        now = time.monotonic_ns()
        for number in range(turn, len(talk.planned.turns)):
            exchange = Exchange(talk.planned, number, self.dialect, b"", None)
            exchange.sent_ns = exchange.ended_ns = now
            exchange.fault = "not sent: the turn before it failed"
            self.done.append(exchange)
            self.failed += 1


def time_without_core() -> float:
    """Seconds that this process has waited for a core while it could run; 0 where the system does not tell."""
    try:
        with open("/proc/self/schedstat") as told:
            return int(told.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


# -- the process -----------------------------------------------------------------------------------------------


def write_message(out: BinaryIO, message: msgspec.Struct) -> None:
    """One message for the other end of a pipe."""
    data = msgspec.msgpack.encode(message)
    out.write(struct.pack("!I", len(data)) + data)
    out.flush()


def read_message(source: BinaryIO) -> bytes:
    """The next message. EOFError if the other end is gone."""
    head = source.read(4)
    if len(head) < 4:
        raise EOFError
    return source.read(int.from_bytes(head))


def work() -> None:
    """The worker process: a Job comes in, Ready goes out, Start comes in, reports go out."""
    source, out = sys.stdin.buffer, sys.stdout.buffer
    job = msgspec.msgpack.decode(read_message(source), type=Job)
    if job.core is not None:
        os.sched_setaffinity(0, {job.core})
    allow_sockets()
    worker = Worker(job, lambda report: write_message(out, report))
    worker.connect()
    gc.disable()
    gc.freeze()
    write_message(out, Ready())
    start = msgspec.msgpack.decode(read_message(source), type=Start)
    write_message(out, worker.run(start.at_ns))


if __name__ == "__main__":
    try:
        work()
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        sys.exit(1)
