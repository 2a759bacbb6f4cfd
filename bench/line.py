"""A raw connection of a load client: one socket, what is under way on it, and nothing that could wait.

The stamp of bytes is taken right after `recv` returns. Events are parsed after the run, but for those whose type
may end an answer on a socket and those of answers that are watched.
"""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from headrace.bench import frames
from headrace.bench.exchange import Exchange
from headrace.bench.http_wire import AnswerReader, Target, WireError
from headrace.bench.reading import TERMINAL, ResponseEvent, ResponsesReading, explain_body
from headrace.bench.transports import Dialect, cancel, in_lane

LANE = re.compile(rb'"stream_id"\s*:\s*"([^"]*)"')
READ_SIZE = 32 << 10
SLOW_READ_SIZE = 1 << 10  # a slow reader must not find much in one read
SLOW_BUFFER = 4 << 10
RESET = struct.pack("ii", 1, 0)


class Owner(Protocol):
    """Who runs lines: polls their sockets, hears of ends, keeps timers."""

    poll: select.epoll
    lines: dict[int, Line]
    reads: int
    events: int

    def ended(self, exchange: Exchange) -> None: ...

    def later(self, at_ns: int, call: Callable[[], None]) -> None: ...


class Line:
    """Down, connecting, opening (the websocket handshake) or up. Goes up when it is told to or has something to
    send, and down when the connection is lost; what was under way on it ends then."""

    def __init__(self, owner: Owner, target: Target, dialect: Dialect, *, slow: bool = False) -> None:
        self.owner = owner
        self.target = target
        self.dialect = dialect
        self.slow = slow
        self.size = SLOW_READ_SIZE if slow else READ_SIZE
        self.state = "down"
        self.sock: socket.socket | None = None
        self.fd = -1
        self.since_ns = 0
        self.out = b""
        self.mask = 0
        self.waiting: deque[Exchange] = deque()
        self.under_way: dict[str, Exchange] = {}
        self.used = False
        self.paused = False
        self.resume_ns = 0
        self.answer = AnswerReader()
        self.frames = frames.FrameReader()

    # -- sending -----------------------------------------------------------------------------------------------

    def submit(self, exchange: Exchange) -> None:
        """Send a request now, or as soon as the connection stands."""
        if self.state == "up":
            self.start(exchange)
            return
        self.waiting.append(exchange)
        if self.state == "down":
            self.connect()

    def start(self, exchange: Exchange) -> None:
        """The request goes out. Its stamp lies before the call that sends, so that no latency looks shorter."""
        assert exchange.lane not in self.under_way, "a lane has one request under way"
        if self.dialect.socket:
            data = in_lane(exchange.data, exchange.lane) if exchange.lane else exchange.data
            data = frames.frame(frames.TEXT, data, masked=True)
            exchange.status = 200
        else:
            data = self.target.post(self.dialect.path, exchange.data)
            self.answer.reset()
        self.under_way[exchange.lane] = exchange
        exchange.sent_ns = time.monotonic_ns()
        self.send(data)

    def send(self, data: bytes) -> None:
        """Hand bytes to the system, now as many as it takes, the rest when it takes more."""
        assert self.sock is not None
        if not self.out:
            try:
                taken = self.sock.send(data)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                self.drop(broken(error))
                return
            if taken == len(data):
                return
            data = data[taken:]
        self.out += data
        self.listen()

    def listen(self) -> None:
        """Ask the system for what matters in this state."""
        if self.state == "connecting":
            mask = select.EPOLLOUT
        else:
            mask = (0 if self.paused else select.EPOLLIN) | (select.EPOLLOUT if self.out else 0)
        if mask != self.mask:
            self.mask = mask
            self.owner.poll.modify(self.fd, mask)

    # -- coming and going --------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begin to connect; failure is told to what waits."""
        address = (self.target.address, self.target.port)
        family = socket.AF_INET6 if ":" in self.target.address else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.slow:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
        self.fd = self.sock.fileno()
        self.owner.lines[self.fd] = self
        self.state = "connecting"
        self.since_ns = time.monotonic_ns()
        self.mask = select.EPOLLOUT
        self.owner.poll.register(self.fd, self.mask)
        try:
            self.sock.connect(address)
        except BlockingIOError:
            pass
        except OSError as error:
            self.drop(f"no connection: {error.strerror}")

    def connected(self) -> None:
        assert self.sock is not None
        if code := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.drop(f"no connection: {os.strerror(code)}")
            return
        self.answer, self.frames = AnswerReader(), frames.FrameReader()
        if self.dialect.socket:
            self.state = "opening"
            self.listen()
            self.send(self.target.upgrade(self.dialect.path, os.urandom(16)))
        else:
            self.up()

    def up(self) -> None:
        self.state = "up"
        self.used = False
        self.listen()
        while self.waiting and self.state == "up":
            self.start(self.waiting.popleft())

    def drop(self, why: str | None, *, how: str = "close") -> None:
        """The connection is over. Everything on it ends, with `why` as its fault unless it was left on purpose; a
        request on a kept connection that the server closed before it could have read it is sent once more."""
        now = time.monotonic_ns()
        sock, self.sock = self.sock, None
        if sock is not None:
            del self.owner.lines[self.fd]
            self.owner.poll.unregister(self.fd)
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            elif how == "leave":
                try:
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
            sock.close()
        self.state, self.fd, self.out, self.paused = "down", -1, b"", False
        self.resume_ns = 0
        ended = [*self.under_way.values(), *self.waiting]
        again = None
        for exchange in ended:
            stale = self.used and not self.dialect.socket and not exchange.pieces and not exchange.status
            if why is not None and stale and exchange.sent_ns and not exchange.retried and not exchange.left:
                exchange.retried, again = True, exchange
                continue
            if why is not None and not exchange.left:
                exchange.fault = why
            exchange.sent_ns = exchange.sent_ns or max(now, exchange.due_ns or 0)
            exchange.ended_ns = now
            self.owner.ended(exchange)
        self.under_way.clear()
        self.waiting.clear()
        if again is not None:
            self.submit(again)

    def close(self) -> None:
        """Take leave of the server; nothing is under way."""
        if self.state == "up" and self.dialect.socket:
            self.send(frames.close_frame(1000, masked=True))
        if self.sock is not None:
            self.drop(None, how="leave")

    def check(self, now: int, patience_ns: int) -> None:
        """Give up on what has been silent for too long."""
        if self.state in ("connecting", "opening") and now - self.since_ns > patience_ns:
            self.drop(f"no connection within {patience_ns / 1e9:g} s")
        for exchange in list(self.under_way.values()):
            last = exchange.pieces[-1][0] if exchange.pieces else exchange.sent_ns
            if now - last > patience_ns and not self.paused:
                self.drop(f"silent for {patience_ns / 1e9:g} s")
                return

    # -- receiving ---------------------------------------------------------------------------------------------

    def ready(self, mask: int) -> None:
        """The system says that something can be done."""
        if self.state == "connecting":
            self.connected()
            return
        if mask & select.EPOLLOUT and self.out:
            data, self.out = self.out, b""
            self.send(data)
            if self.sock is not None:
                self.listen()
        if self.sock is None or not mask & ~select.EPOLLOUT or (self.paused and not mask & select.EPOLLERR):
            return
        try:
            data = self.sock.recv(self.size)
            now = time.monotonic_ns()
        except BlockingIOError:
            return
        except OSError as error:
            self.drop(broken(error))
            return
        self.owner.reads += 1
        if not data:
            self.end_of_file(now)
            return
        try:
            if self.state == "opening":
                self.opening(data)
            elif self.dialect.socket:
                self.messages(now, self.frames.feed(data))
            else:
                self.streamed(now, data)
        except WireError as error:
            self.drop(f"not the protocol: {error}")

    def end_of_file(self, now: int) -> None:
        exchange = self.under_way.get("")
        if exchange is not None and not self.dialect.socket and self.answer.end_of_file():
            self.end(exchange, now)
        if self.state == "opening" and self.answer.status:
            self.drop(explain_body(self.answer.status, self.answer.reason, b""))
        else:
            self.drop("the server closed the connection")

    def opening(self, data: bytes) -> None:
        """The answer to the websocket handshake."""
        body = b"".join(self.answer.feed(data))
        if not self.answer.ended:
            return
        if self.answer.status != 101:
            self.drop(explain_body(self.answer.status, self.answer.reason, body))
            return
        rest, self.answer.rest = self.answer.rest, b""
        self.up()
        if rest and self.sock is not None:
            self.messages(time.monotonic_ns(), self.frames.feed(rest))

    def streamed(self, now: int, data: bytes) -> None:
        """Bytes of an HTTP answer."""
        exchange = self.under_way.get("")
        if exchange is None:
            self.drop("bytes that nobody asked for")
            return
        answer = self.answer
        for piece in answer.feed(data):
            exchange.pieces.append((now, piece))
            self.owner.events += 1
        exchange.status = answer.status
        if answer.ended:
            exchange.reason = answer.reason
            keeps = answer.keeps and not answer.rest
            self.used = True
            self.end(exchange, now)
            if not keeps and self.state == "up" and not self.under_way:
                self.drop(None)
        elif exchange.watched and exchange.status == 200:
            self.watch(exchange, now)

    def messages(self, now: int, received: list[tuple[int, bytes]]) -> None:
        """Websocket messages, in order."""
        for opcode, payload in received:
            if opcode == frames.TEXT:
                self.event(now, payload)
            elif opcode == frames.PING:
                self.send(frames.frame(frames.PONG, payload, masked=True))
            elif opcode == frames.CLOSE:
                self.drop(f"the server closed the socket: {frames.close_reason(payload)}")
            if self.sock is None:
                return

    def event(self, now: int, payload: bytes) -> None:
        """One event of a Responses socket."""
        self.owner.events += 1
        lane = ""
        if self.dialect.shared and (found := LANE.search(payload)):
            lane = found[1].decode()
        exchange = self.under_way.get(lane)
        if exchange is None:
            # After a cut nothing more may come of that answer, but the last words of the server may cross it.
            if b'"error"' in payload and self.under_way:
                self.drop("an error for no request: " + payload[:200].decode(errors="replace"))
            return
        exchange.pieces.append((now, payload))
        if (
            b'"response.completed"' in payload
            or b'"response.incomplete"' in payload
            or b'"response.failed"' in payload
            or b'"error"' in payload
        ):
            kind = type_of(payload)
            if kind in TERMINAL or kind == "error":
                self.end(exchange, now)
                return
        if exchange.watched:
            self.watch(exchange, now)

    def end(self, exchange: Exchange, now: int) -> None:
        exchange.ended_ns = now
        del self.under_way[exchange.lane]
        self.owner.ended(exchange)

    # -- clients that leave or read slowly ---------------------------------------------------------------------

    def watch(self, exchange: Exchange, now: int) -> None:
        """Leave or pause, if the plan of this request says so."""
        before = exchange.reading.tokens_so_far()
        came = exchange.read().tokens_so_far()
        planned = exchange.planned
        if planned.cut_after is not None and came >= planned.cut_after and not exchange.left:
            self.cut(exchange, now)
        elif planned.read_pause and came > before:
            # One read may bring several tokens; each has its pause.
            self.resume_ns = max(now, self.resume_ns) + round((came - before) * planned.read_pause * 1e9)
            self.paused = True
            self.listen()
            self.owner.later(self.resume_ns, self.resume)

    def resume(self) -> None:
        """Read on, unless a later token's pause still lasts."""
        if self.paused and time.monotonic_ns() >= self.resume_ns:
            self.paused = False
            self.listen()

    def cut(self, exchange: Exchange, now: int) -> None:
        """The client ends this answer. A cancel exists on sockets alone; elsewhere the connection is closed. On a
        shared socket every cut is a cancel: closing it would end the other answers, too."""
        exchange.left = True
        how = exchange.planned.cut
        if self.dialect.shared or (self.dialect.socket and how == "cancel"):
            reading = exchange.reading
            assert isinstance(reading, ResponsesReading) and reading.response_id is not None
            self.send(frames.frame(frames.TEXT, cancel(reading.response_id), masked=True))
            return
        exchange.watched = False
        if how != "reset" and self.dialect.socket:
            self.send(frames.close_frame(1000, masked=True))
        self.drop(None, how="reset" if how == "reset" else "leave")


def broken(error: OSError) -> str:
    return f"the connection broke: {error.strerror}"


def type_of(payload: bytes) -> str:
    """The type of a Responses event, "" if it is none."""
    try:
        return msgspec.json.decode(payload, type=ResponseEvent).type
    except msgspec.DecodeError:
        return ""
