"""One HTTP connection: requests in order to their routes, answers in order to the peer, upgrades handed over.

Knows HTTP/1.1 and the limits of one connection; must not know any face, nor what is in a body. All guards run on
the parsed head, before a body byte is read: Host, Origin, route, method, key, room, size.

A client that closes its sending side (FIN) has left, also if it still reads: its request is cancelled. HTTP would
allow to answer it; but a closed program looks the same, and nothing may be generated for one that is gone.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import re
import socket
import time
from collections.abc import Callable
from typing import cast

from headrace.server.auth import unauthorized
from headrace.server.census import RETRY, Seat
from headrace.server.exchange import Answer, HttpReply, HttpRequest, HttpRoute, Part, SocketRoute
from headrace.server.exchanging import Exchange
from headrace.server.ids import new_id
from headrace.server.outbox import Outlet
from headrace.server.port import Port
from headrace.server.reader import BadRequest, Head, RequestReader
from headrace.server.replies import error_reply
from headrace.server.routes import Target, allowed, parse_target
from headrace.server.websocket import SocketConnection, handshake, select_protocol

log = logging.getLogger("headrace.front")

REQUESTS_PER_TURN = 16  # pipelined requests answered before other connections get their turn
CHUNKS_PER_TURN = 512
UNSENT_IN_KERNEL = 64 << 10  # bytes the kernel may hold unsent: more would hide a slow reader from us
_REQUEST_ID = re.compile(r"\A[A-Za-z0-9_-]{1,64}\Z")


class State(enum.Enum):
    HEAD = "waiting for a request, or reading its head"
    BODY = "reading a body"
    ANSWERING = "an answer is under way"
    LINGER = "the last reply is out: read on without looking, so that it is not lost to a reset"
    GONE = "closed, or handed over"


class HttpConnection(asyncio.Protocol):
    """Speaks HTTP on one accepted connection until it closes or becomes a WebSocket."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._limits = port.limits
        self._loop = port.loop
        self._state = State.HEAD
        self._buffer = bytearray()
        self._reader = RequestReader(port.limits)
        self._exchange: Exchange | None = None
        self._route: HttpRoute | None = None
        self._target: Target | None = None
        self._parameters: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._begun = False  # the first byte of a head is here, and its deadline runs
        self._quiet: asyncio.TimerHandle | None = None
        self._advancing = False  # _advance is running
        self._working = False  # the rest of the input waits for the next loop turn
        self._held_back = False  # the input budget holds us
        self._reading = True
        self._unsent = 0  # bytes not yet taken by the kernel, while lingering
        self._seat: Seat | None = None
        self._no_room: HttpReply | None = None  # what a connection without a seat is told

    # -- the transport's calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have all of asyncio.Transport except the inheritance.
        self._transport = cast(asyncio.Transport, transport)
        self.outlet = Outlet(self._port.outbox, self._transport, self)
        self._port.join(self)
        self._port.metrics.connections["http"] += 1
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            self._tune(sock)
        peer = transport.get_extra_info("peername")
        seat = self._port.census.arrive(peer[0] if isinstance(peer, tuple) else "")
        if isinstance(seat, Seat):
            self._seat = seat
            self._arm(self._limits.header_timeout, self._nothing_came)
        else:
            # Said with the first byte of a request, and not before: some clients take a reply that comes
            # earlier for nonsense.
            self._port.metrics.refused_connections += 1
            self._no_room = seat
            self._arm(self._limits.linger_timeout, self._nothing_came)

    def _tune(self, sock: socket.socket) -> None:
        """Let the kernel tell of slow readers early, and of peers that vanished while nothing was written."""
        for option, value in (
            (socket.TCP_NOTSENT_LOWAT, UNSENT_IN_KERNEL),
            (socket.TCP_KEEPIDLE, max(1, int(self._limits.ws_ping_interval))),
            (socket.TCP_KEEPINTVL, max(1, int(self._limits.ws_ping_timeout / 2))),
            (socket.TCP_KEEPCNT, 2),
        ):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        self._port.metrics.bytes_in += len(data)
        if self._state is State.LINGER or self._state is State.GONE:
            return
        if self._no_room is not None:
            self._refuse(self._no_room)
            return
        self._buffer += data
        if self._state is State.ANSWERING and self._exchange is not None:
            # Reading goes on under an answer: it is the only way to learn that the peer has left. What is
            # pipelined behind it may wait here, but not without end.
            if len(self._buffer) > self._limits.max_pipelined:
                self._exchange.last = True
                self._buffer.clear()
        elif not self._working and not self._held_back:
            self._port.metrics.read_at = time.monotonic()
            self._advance()
            self._port.metrics.read_at = 0.0
            if self._state is State.HEAD or self._state is State.BODY:
                self._port.input.hold(self, len(self._buffer) + self._reader.size)

    def eof_received(self) -> None:
        self._gone()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._state is not State.GONE:
            self._gone()
        self._port.input.hold(self, 0)
        if self._seat is not None:
            self._seat.leave()
        self._port.metrics.connections["http"] -= 1
        self._port.part(self)

    def pause_writing(self) -> None:
        self.outlet.pause_writing()

    def resume_writing(self) -> None:
        self.outlet.resume_writing()

    # -- reading ---

    def _advance(self) -> None:
        """Do what the buffer allows, for one turn."""
        turns = REQUESTS_PER_TURN
        self._advancing = True
        try:
            while self._state is State.HEAD or self._state is State.BODY:
                if self._state is State.HEAD:
                    if self.outlet.paused:
                        # Replies are not read, so no more are made; the slow-reader limit is running.
                        self._read(len(self._buffer) <= self._limits.max_pipelined)
                        break
                    if not self._buffer:
                        break
                    if turns == 0:
                        self._work_later()
                        break
                    turns -= 1
                    if not self._read_head():
                        break
                elif not self._read_body():
                    break
        except BadRequest as error:
            self._refuse(error_reply(error.status, error.message))
        finally:
            self._advancing = False
        self.outlet.push()

    def _read_head(self) -> bool:
        if not self._begun:
            # From the first byte on, the whole head has to come in time.
            self._begun = True
            self._arm(self._limits.header_timeout, self._too_late)
        head = self._reader.head(self._buffer)
        if head is None:
            return False
        self._begun = False
        self._disarm()
        self._begin(head)
        return True

    def _read_body(self) -> bool:
        assert self._route is not None
        limit = min(self._route.body_limit, self._limits.max_body)
        whole_turn = self._reader.body(self._buffer, limit, CHUNKS_PER_TURN)
        if self._reader.finished:
            self._disarm()
            self._respond(self._reader.taken())
            return True
        if not whole_turn and self._state is State.BODY:
            self._work_later()
        return False

    def _work_later(self) -> None:
        if not self._working:
            self._working = True
            self._read(False)
            self._loop.call_soon(self._work_on)

    def _work_on(self) -> None:
        self._working = False
        if self._held_back or self._state in (State.LINGER, State.GONE):
            return
        self._read(True)
        self._advance()

    def _read(self, on: bool) -> None:
        on = on and not self._held_back
        if on is not self._reading and not self._transport.is_closing():
            self._reading = on
            if on:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- one request ---

    def _begin(self, head: Head) -> None:
        """Judge a head; then read the body, answer, or hand over."""
        last = not head.keep_alive or self._port.draining
        exchange = self._exchange = Exchange(self._port, self.outlet, head, new_id("req"), last)
        given_id = head.headers.get("x-request-id", "")
        if _REQUEST_ID.match(
            given_id
        ):  # one that cannot be repeated in a header or a log is replaced by our own
            exchange.request_id = given_id
        target = self._target = parse_target(head)
        refusal = self._judge(head, target, exchange)
        if refusal is not None:
            self._refuse(refusal, stay=not head.has_body)
            return
        if self._state is not State.HEAD:
            return  # handed over
        if not head.has_body:
            self._respond(b"")
            return
        self._state = State.BODY
        self._arm(self._limits.body_timeout, self._too_late)
        # Not if the body is already coming: then nobody waits for this.
        if head.headers.get("expect", "").lower() == "100-continue" and not self._buffer:
            self.outlet.put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _judge(self, head: Head, target: Target, exchange: Exchange) -> HttpReply | None:
        """The refusal that the head alone calls for. An upgrade that passes is handed over here."""
        port = self._port
        refusal = port.gate.refuse_origin(target.host, head.headers)
        if refusal is not None:
            return refusal
        if target.path == "*":
            return HttpReply(204, headers={"allow": "GET, HEAD, OPTIONS, POST"})
        match = port.routes.find(target)
        if match is None:
            return error_reply(404, f"nothing is served at {target.path[:200]}")
        exchange.template = match.template
        exchange.route = match.http
        self._parameters = match.parameters
        upgrade = head.upgrades and match.socket is not None
        route = match.http
        methods = allowed(match)
        if head.method not in methods:
            return error_reply(
                405, f"{match.template} answers {', '.join(methods)}", headers={"allow": ", ".join(methods)}
            )
        if not (route is not None and route.public) or upgrade:
            tenant = port.gate.tenant(head.headers, target.query)
            if tenant is None:
                return unauthorized()
            assert self._seat is not None
            if port.gate.keyed and not self._seat.claim(tenant.id):
                return error_reply(429, "too many open connections with this key", headers=RETRY)
            exchange.tenant = tenant
        if head.method == "OPTIONS":
            return HttpReply(204, headers={"allow": ", ".join(methods)})
        if port.draining and (route is None or not route.public):
            return error_reply(503, "the server is stopping", headers=RETRY)
        if upgrade:
            assert match.socket is not None
            return self._upgrade(head, target, exchange, match.socket)
        if route is None or (head.method == "GET" and "GET" not in route.methods):
            return error_reply(426, f"{match.template} is a WebSocket", headers={"upgrade": "websocket"})
        self._route = route
        return self._judge_body(head, route)

    def _judge_body(self, head: Head, route: HttpRoute) -> HttpReply | None:
        limit = min(route.body_limit, self._limits.max_body)
        if "content-encoding" in head.headers:
            return error_reply(415, "compressed bodies are not accepted")
        if head.length is not None and head.length > limit:
            return error_reply(413, f"the request body has more than {limit} bytes")
        if head.headers.get("expect", "100-continue").lower() != "100-continue":
            return error_reply(417, "the only expectation is 100-continue")
        return None

    def _respond(self, body: bytes) -> None:
        exchange, route, target = self._exchange, self._route, self._target
        assert exchange is not None and exchange.head is not None and route is not None and target is not None
        head = exchange.head
        request = HttpRequest(
            # A face never sees HEAD: it answers GET, and the body is left out here.
            "GET" if head.method == "HEAD" else head.method,
            target.path,
            target.query,
            head.headers,
            body,
            exchange.tenant,
            exchange.request_id,
            self._parameters,
        )
        self._state = State.ANSWERING
        try:
            answer = route.respond(request, exchange)
        except Exception:
            log.exception("%s could not be answered", exchange.template)
            self.crash()
            return
        if isinstance(answer, HttpReply):
            self._take([answer])
            return
        exchange.answer = answer
        if self._port.config.sse_ping:
            self.outlet.wrote = self._loop.time()
            self._quiet = self._loop.call_later(self._port.config.sse_ping, self._silence)
        self.outlet.mark()

    def _upgrade(
        self, head: Head, target: Target, exchange: Exchange, route: SocketRoute
    ) -> HttpReply | None:
        if head.has_body:
            return error_reply(400, "a WebSocket handshake has no body")
        protocol = select_protocol(head, route.protocols)
        if isinstance(protocol, HttpReply):
            return protocol
        request = HttpRequest(
            "GET",
            target.path,
            target.query,
            head.headers,
            b"",
            exchange.tenant,
            exchange.request_id,
            self._parameters,
            protocol,
        )
        try:
            refusal = route.refuse(request)
            if refusal is not None:
                return refusal
            core = handshake(head, protocol, self._limits, exchange.request_id)
            if isinstance(core, HttpReply):
                return core
            assert self._seat is not None
            upgraded = SocketConnection(
                self._port, self._seat, self._transport, self.outlet, core, request, route
            )
        except Exception:
            log.exception("%s could not be opened", exchange.template)
            self._port.metrics.crashes += 1
            self.outlet.owner = self
            return error_reply(500, "internal error")
        self._port.metrics.request(head.method, exchange.template, 101)
        rest = bytes(self._buffer)
        self._state = State.GONE
        self._disarm()
        exchange.end()
        self._seat = None
        self._port.metrics.connections["http"] -= 1
        self._transport.set_protocol(upgraded)
        self._read(True)
        upgraded.start(rest)
        self._port.part(self)
        return None

    # -- answering ---

    def pull(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.answer is not None:
            self._take(exchange.answer.render())

    def _stop_pings(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None

    def _silence(self) -> None:
        """Nothing was written for a while: a comment keeps proxies and clients from giving up."""
        self._quiet = None
        exchange = self._exchange
        if exchange is None or exchange.answer is None:
            return
        left = self.outlet.wrote + self._port.config.sse_ping - self._loop.time()
        if left <= 0 and not self.outlet.paused:
            try:
                self._take(exchange.answer.ping())
            except Exception:
                log.exception("%s could not be kept alive", exchange.template)
                self.crash()
            self.outlet.push()
        if exchange.answer is not None:
            again = self._port.config.sse_ping if left <= 0 else left
            self._quiet = self._loop.call_later(again, self._silence)

    def _take(self, parts: list[Part]) -> None:
        if not parts:
            return
        exchange = self._exchange
        assert exchange is not None, "no part follows the last one"
        if exchange.take(parts):
            self._finish()

    def _finish(self) -> None:
        """The exchange is over; the next request, or the end."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        exchange.end()
        self._stop_pings()
        self._begun = False
        self._reader.next()
        self._port.input.hold(self, 0)
        if exchange.last:
            self._linger()
            return
        self._state = State.HEAD
        self._arm(self._limits.idle_timeout, self._nothing_came)
        if self._buffer and not self._advancing:
            self._work_later()

    def _refuse(self, reply: HttpReply, stay: bool = False) -> None:
        """Send `reply` to a request that no route will see. The connection ends after it unless `stay`: where a
        body may follow, or the request was not understood, nobody can say where the next request begins."""
        exchange = self._exchange
        if exchange is None:
            exchange = self._exchange = Exchange(self._port, self.outlet, None, new_id("req"), True)
        exchange.last |= not stay
        self._disarm()
        if exchange.route is not None and exchange.route.restate is not None:
            reply = exchange.route.restate(reply, exchange.request_id)
        exchange.reply(reply)
        self._finish()

    # -- the end ---

    def _linger(self) -> None:
        """Everything is said: end our side, and give the peer a moment to read before the socket goes."""
        self._state = State.LINGER
        self._buffer.clear()
        self._read(True)
        self.outlet.push()
        if self._transport.is_closing():
            return
        self._transport.write_eof()
        self._unsent = self._transport.get_write_buffer_size() + 1
        self._arm(self._limits.linger_timeout, self._lingered)

    def _lingered(self) -> None:
        """Go, unless a slow peer is still taking the reply (one that takes nothing is the outlet's business)."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and (unsent < self._unsent or self.outlet.paused):
            self._unsent = unsent
            self._arm(self._limits.linger_timeout, self._lingered)
        else:
            self.abort()

    def crash(self) -> None:
        """Our own mistake ended this answer: say so if nothing was said yet, then close."""
        self._port.metrics.crashes += 1
        exchange = self._exchange
        if exchange is not None and not exchange.spoken:
            self._tell_closed(exchange.end())
            self._refuse(error_reply(500, "internal error"))
        else:
            # In the middle of a body the cut itself is the message: a chunked body without its end is an error.
            self._gone()
            self._transport.abort()

    def _gone(self) -> None:
        """The peer is gone, or must go: whatever runs for it is cancelled."""
        self._state = State.GONE
        self._disarm()
        self._stop_pings()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._tell_closed(exchange.end())
        self.outlet.close()

    def _tell_closed(self, answer: Answer | None) -> None:
        try:
            if answer is not None:
                answer.closed()
        except Exception:
            log.exception("an answer could not be closed")
            self._port.metrics.crashes += 1

    def drained(self) -> None:
        if self._state is State.HEAD:
            self._read(True)
            if self._buffer:
                self._work_later()

    def too_slow(self) -> None:
        self.abort()

    def drain(self) -> None:
        """The server stops: what is under way is finished, then the connection ends."""
        if self._exchange is not None:
            self._exchange.last = True
        elif self._state is State.HEAD and not self._buffer:
            self.shut()

    def shut(self) -> None:
        """End now. Who still waits for the first byte of a reply is told; a reply under way is cut."""
        if self._state is State.LINGER:
            return  # everything is said, and the peer has its moment to read it
        exchange = self._exchange
        if exchange is not None and not exchange.spoken:
            self._tell_closed(exchange.end())
            self._refuse(error_reply(503, "the server is stopping", headers=RETRY))
            return
        self.outlet.push()
        self._gone()
        self._transport.close()

    def abort(self) -> None:
        self._gone()
        self._transport.abort()

    # -- time and the input budget ---

    def _arm(self, seconds: float, passed: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self._loop.call_later(seconds, passed)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _nothing_came(self) -> None:
        self.shut()

    def _too_late(self) -> None:
        what = "body" if self._state is State.BODY else "head"
        self._refuse(error_reply(408, f"the request {what} did not come in time"))
        self.outlet.push()

    def hold_reading(self) -> None:
        self._held_back = True
        self._read(False)

    def continue_reading(self) -> None:
        self._held_back = False
        if not self._working:
            self._working = True
            self._loop.call_soon(self._work_on)

    def shed_input(self) -> None:
        self._held_back = False
        self._refuse(error_reply(413, "too much input at once, try again later", headers=RETRY))
        self.outlet.push()
