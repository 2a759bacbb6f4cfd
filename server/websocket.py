"""One WebSocket connection: bytes to whole messages for its session, and the session's messages to bytes.

The sans-I/O core of websockets owns the rules of RFC 6455 (masking, opcodes, the state of the close). What it
leaves to its driver is here: the handshake by replay, reassembly with a cap on fragments, UTF-8 across frames,
pings, timers, and the header bytes of the frames we send. Knows no message's content.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import time
from collections import deque
from collections.abc import Callable
from struct import Struct

from websockets.datastructures import Headers
from websockets.frames import BINARY, CONT, PONG, TEXT, Frame
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from headrace.server.auth import KEY_PROTOCOL
from headrace.server.census import Seat
from headrace.server.config import Limits
from headrace.server.exchange import HttpReply, HttpRequest, Session, SocketRoute
from headrace.server.outbox import Outlet
from headrace.server.port import Port
from headrace.server.reader import Head
from headrace.server.replies import error_reply

log = logging.getLogger("headrace.websocket")
# The library tells of every opened and closed connection; its own mistakes still surface as errors.
_quiet = logging.getLogger("headrace.websocket.protocol")
_quiet.setLevel(logging.ERROR)

SLICE = 8 << 10  # bytes given to the parser at once: at most 1,365 frames come out of them
FRAMES_PER_TURN = 512  # then other connections get their turn
MESSAGE_COST = 16  # a whole message counts as so many frames, since a session works on it
MALFORMED_WINDOW = 10.0  # seconds over which unreadable messages are counted
UNREAD_MESSAGES = 256  # messages of a peer that meanwhile reads nothing
LATE = 0.25  # a timer that fires so late says that we slept, not the peer

VERSION = "13"  # of the WebSocket protocol (RFC 6455); there is no other

_SHORT = {
    False: tuple(bytes((0x81, n)) for n in range(126)),
    True: tuple(bytes((0x82, n)) for n in range(126)),
}
_LONG = {False: 0x81, True: 0x82}
_head16 = Struct("!BBH").pack
_head64 = Struct("!BBQ").pack
_HANDSHAKE = ("host", "connection", "upgrade", "sec-websocket-key", "sec-websocket-version")


class Core(ServerProtocol):
    """The library's protocol, handing over each frame the moment it is parsed.

    Otherwise a later frame of the same read could fail the connection before an earlier one was looked at, and
    the outcome would depend on how the bytes were cut. `fail` is safe from within: the library itself replaces
    its parser and empties its buffer here when a close frame comes.
    """

    taker: Callable[[Frame], None] | None = None

    def recv_frame(self, frame: Frame) -> None:
        super().recv_frame(frame)
        self.events.clear()
        if self.taker is not None:
            self.taker(frame)


def frame_head(size: int, binary: bool) -> bytes:
    """The header of an unfragmented, unmasked data frame with `size` payload bytes: 2, 4 or 10 bytes."""
    if size < 126:
        return _SHORT[binary][size]
    if size < 65536:
        return _head16(_LONG[binary], 126, size)
    return _head64(_LONG[binary], 127, size)


def select_protocol(head: Head, known: tuple[str, ...]) -> str | HttpReply:
    """The one subprotocol that the reply names, "" if none was offered, or the refusal.

    A browser fails a socket whose reply selects nothing from its list, so a list without a match is refused
    before the upgrade. The item that carries an API key is never selected and never echoed.
    """
    offered = head.headers.get("sec-websocket-protocol")
    if offered is None:
        return ""
    items = [item.strip() for item in offered.split(",") if item.strip()]
    for name in known:
        if name in items:
            return name
    wanted = ", ".join(known) or "none"
    only_key = all(item.startswith(KEY_PROTOCOL) for item in items)
    what = "only a key was offered as subprotocol" if only_key else "no offered subprotocol is known"
    return error_reply(400, f"{what}; this path knows: {wanted}", param="sec-websocket-protocol")


def handshake(head: Head, protocol: str, limits: Limits, request_id: str) -> Core | HttpReply:
    """A protocol object that has read this upgrade and queued its 101, or the refusal of a bad handshake.

    The request is written out again for the library, which must read a request line before it reads frames.
    Only what the handshake needs is written: extensions are left out, so none is ever negotiated, and so are
    the offered subprotocols, because one of them may hold a key.
    """
    version = head.headers.get("sec-websocket-version", VERSION)
    if version != VERSION:
        headers = {"upgrade": "websocket", "sec-websocket-version": VERSION}
        return error_reply(426, f"the only version of WebSocket here is {VERSION}", headers=headers)
    names = Headers((name, head.headers[name]) for name in _HANDSHAKE if name in head.headers)
    if protocol:
        names["sec-websocket-protocol"] = protocol
    core = Core(
        subprotocols=[protocol] if protocol else None,  # type: ignore[list-item]
        # One message may come as one frame, so the cap on a frame is the cap on the message.
        max_size=(limits.ws_max_message, limits.ws_max_message),
        logger=_quiet,
    )
    core.receive_data(Request("/", names).serialize())
    events = core.events_received()
    if len(events) != 1 or not isinstance(events[0], Request):
        return error_reply(400, "not a WebSocket handshake")
    response = core.accept(events[0])
    if response.status_code != 101:
        why = str(core.handshake_exc or "")[:200]
        headers = {"upgrade": "websocket"} if response.status_code == 426 else {}
        return error_reply(response.status_code, f"not a WebSocket handshake: {why}", headers=headers)
    response.headers["x-request-id"] = request_id
    core.send_response(response)
    return core


class SocketConnection(asyncio.Protocol):
    """Takes over a connection after the upgrade. It is the Wire of its session."""

    def __init__(
        self,
        port: Port,
        seat: Seat,
        transport: asyncio.Transport,
        outlet: Outlet,
        core: Core,
        request: HttpRequest,
        route: SocketRoute,
    ) -> None:
        self.tenant = request.tenant
        self._port = port
        self._limits = port.limits
        self._seat = seat
        self._transport = transport
        self._outlet = outlet
        self._core = core
        self._binary = route.takes_binary(request)
        # The message being assembled.
        self._opcode = TEXT
        self._decoder: codecs.IncrementalDecoder | None = None
        self._texts: list[str] = []
        self._blocks: list[bytes] = []
        self._fragments = 0
        self._size = 0
        self._cost = 0  # of this turn, in frames
        # Input that waits for the next loop turn, or for the input budget.
        self._backlog = bytearray()
        self._working = False
        self._held_back = False
        # Pings and closing.
        self._ping_number = 0
        self._ping_out: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._closing: tuple[int, str] | None = None
        self._malformed: deque[float] = deque(maxlen=port.limits.ws_max_malformed)
        self._eof_written = False
        self._draining = False
        self._settled = False
        self._unread = 0  # messages taken since the peer stopped reading
        core.taker = self._take
        outlet.owner = self
        self._session: Session | None = route.open(request, self)

    def start(self, rest: bytes) -> None:
        """The upgrade is sent: read frames, beginning with those that came behind the request."""
        self._port.join(self)
        self._port.metrics.connections["websocket"] += 1
        self._arm(self._limits.ws_ping_interval)
        if self._port.draining:
            self.drain()
        self._feed(rest)

    # -- Wire ----------------------------------------------------------------------------------------------------

    def dirty(self) -> None:
        self._outlet.mark()

    def close(self, code: int, reason: str = "") -> None:
        if self._closing is None and self._session is not None:
            self._closing = (code, reason)
            self._outlet.mark()

    def malformed(self) -> None:
        now = self._port.loop.time()
        times = self._malformed
        if len(times) == times.maxlen and now - times[0] < MALFORMED_WINDOW:
            self._fail(1008, "too many unreadable messages")
        times.append(now)

    # -- outgoing ------------------------------------------------------------------------------------------------

    def pull(self) -> None:
        session = self._session
        if session is None:
            return
        self._put(session.render())
        if self._closing is not None:
            self._say_close(*self._closing)

    def _put(self, messages: list[str | bytes]) -> None:
        parts: list[bytes] = []
        for message in messages:
            binary = isinstance(message, bytes)
            data = message if isinstance(message, bytes) else message.encode()
            parts.append(frame_head(len(data), binary))
            parts.append(data)
        self._outlet.put(*parts)

    def _say_close(self, code: int, reason: str) -> None:
        """The close frame goes out, the session ends, and the peer has a while to answer."""
        if self._core.state is OPEN:
            # A control frame has room for 123 bytes of reason.
            self._core.send_close(code, reason.encode()[:123].decode(errors="ignore"))
            self._flush_core()
        self._over(code)
        self._arm(self._limits.ws_close_timeout)

    def _fail(self, code: int, reason: str) -> None:
        """As the standard's "fail the connection": a close frame, and not a byte more is read."""
        if self._core.state is OPEN:
            self._core.fail(code, reason)
        self._settle()

    def _flush_core(self) -> None:
        """Bytes of the library: pongs, pings, close frames, and the end of the stream."""
        for data in self._core.data_to_send():
            if not data:
                self._outlet.push()
                if not self._eof_written and not self._transport.is_closing():
                    self._eof_written = True
                    self._transport.write_eof()
            elif self._eof_written:
                break
            # A peer that pings and does not read gets no pile of pongs: one of them would do (RFC 6455 5.5.3),
            # and while it reads nothing none does.
            elif not (self._outlet.paused and data[0] == 0x8A):
                self._outlet.put(data)
        self._outlet.push()

    def crash(self) -> None:
        self._port.metrics.crashes += 1
        self._settled = True  # its session is not asked for anything again
        self._fail(1011, "internal error")

    def drained(self) -> None:
        self._unread = 0
        if self._session is not None:
            # Reading is a sign of life, and a pong may still stand behind what was read only now.
            waiting = self._ping_out is not None
            self._arm(self._limits.ws_ping_timeout if waiting else self._limits.ws_ping_interval)

    def too_slow(self) -> None:
        self._fail(1013, "reading too slowly")

    # -- incoming ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._port.metrics.bytes_in += len(data)
        if self._working or self._held_back:
            self._backlog += data  # reading is paused; this was on its way
        else:
            self._port.metrics.read_at = time.monotonic()
            self._feed(data)
            self._port.metrics.read_at = 0.0

    def _feed(self, data: bytes | bytearray) -> None:
        self._cost = 0
        for start in range(0, len(data), SLICE):
            self._core.receive_data(data[start : start + SLICE])
            if self._core.state is not OPEN:
                self._settle()
            if self._cost >= FRAMES_PER_TURN and start + SLICE < len(data):
                self._backlog += data[start + SLICE :]
                self._working = True
                self._transport.pause_reading()
                self._port.loop.call_soon(self._work_on)
                break
        self._flush_core()
        # What the parser has read of an unfinished frame, and the frames of an unfinished message.
        self._port.input.hold(self, len(self._core.reader.buffer) + self._size)

    def _work_on(self) -> None:
        self._working = False
        if self._held_back or self._transport.is_closing():
            return
        self._resume(self._backlog)

    def _resume(self, data: bytearray) -> None:
        self._backlog = bytearray()
        self._transport.resume_reading()
        if data:
            self._feed(data)

    def _take(self, frame: Frame) -> None:
        """One frame, as soon as it is parsed. Pings and close frames were answered by the library."""
        self._cost += 1
        if self._session is None:
            return
        opcode = frame.opcode
        if opcode is TEXT or opcode is BINARY or opcode is CONT:
            self._assemble(frame)
        elif opcode is PONG and self._ping_out is not None and bytes(frame.data) == self._ping_out:
            self._ping_out = None
            if not self._outlet.paused:
                self._arm(self._limits.ws_ping_interval)

    def _assemble(self, frame: Frame) -> None:
        """Add one data frame; a finished message goes to the session."""
        opcode, data, first = frame.opcode, frame.data, frame.opcode is not CONT
        if first:
            self._opcode = opcode
            if opcode is BINARY and not self._binary:
                self._fail(1003, "this connection takes text messages only")
                return
        try:
            if first and frame.fin:
                message: str | bytes = str(data, "utf-8") if opcode is TEXT else bytes(data)
            else:
                self._fragments += 1
                self._size += len(data)
                if self._fragments > self._limits.ws_max_fragments:
                    self._fail(1009, "too many fragments")
                    return
                if self._opcode is TEXT:
                    if self._decoder is None:
                        self._decoder = codecs.getincrementaldecoder("utf-8")()
                    self._texts.append(self._decoder.decode(data, frame.fin))
                else:
                    self._blocks.append(bytes(data))
                if not frame.fin:
                    return
                message = "".join(self._texts) if self._opcode is TEXT else b"".join(self._blocks)
        except UnicodeDecodeError as error:
            self._fail(1007, f"not UTF-8: {error.reason}"[:100])
            return
        self._forget_message()
        self._cost += MESSAGE_COST
        self._port.metrics.messages_in += 1
        if self._outlet.paused:
            # Answers wait in the session while nothing is read: a peer that goes on asking would fill it.
            self._unread += 1
            if self._unread > UNREAD_MESSAGES:
                self._fail(1008, "too many messages while none are read")
                return
        assert self._session is not None
        try:
            self._session.received(message)
        except Exception:
            log.exception("a session could not take a message and is closed")
            self.crash()

    def _forget_message(self) -> None:
        self._decoder = None
        self._texts = []
        self._blocks = []
        self._fragments = 0
        self._size = 0

    # -- the input budget ----------------------------------------------------------------------------------------

    def hold_reading(self) -> None:
        self._held_back = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def continue_reading(self) -> None:
        self._held_back = False
        if not self._working and not self._transport.is_closing():
            self._working = True
            # Not from within the connection that gave bytes back: its own work comes first.
            self._port.loop.call_soon(self._work_on)

    def shed_input(self) -> None:
        self._held_back = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._fail(1013, "too much input at once, try again later")

    # -- time ----------------------------------------------------------------------------------------------------

    def _arm(self, seconds: float) -> None:
        """The one timer of the connection: next ping, then the wait for its pong; later the wait for the close."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._port.loop.time() + seconds
        self._timer = self._port.loop.call_later(seconds, self._expired)

    def _expired(self) -> None:
        self._timer = None
        if self._session is None:
            self._transport.abort()
            return
        if self._outlet.paused:
            # A ping would wait behind the unread bytes. The slow-reader limit judges this peer instead.
            self._ping_out = None
            return
        if self._ping_out is None:
            self._ping_number += 1
            self._ping_out = self._ping_number.to_bytes(4, "big")
            self._core.send_ping(self._ping_out)
            self._flush_core()
            self._arm(self._limits.ws_ping_timeout)
        elif self._port.loop.time() - self._due > LATE:
            # The loop itself was held up: the pong may lie unread in the socket. Look there first.
            self._arm(LATE * 2)
        else:
            self._fail(1011, "no pong in time")

    # -- the end -------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """The protocol left OPEN, by the peer's close frame or by a failure: tell the session, wait for the end."""
        core = self._core
        if not self._settled and not self._outlet.paused:
            # What was asked before and is ready goes out before our close frame, which the library still holds.
            # Once: a session that fails in it comes back here.
            self._settled = True
            self._outlet.ask()
        if self._session is not None:
            close = core.close_rcvd or core.close_sent
            self._over(close.code if close is not None else 1006)
            self._arm(self._limits.ws_close_timeout)
        self._flush_core()

    def _over(self, code: int) -> None:
        """The session ends, once."""
        session, self._session = self._session, None
        if session is None:
            return
        self._forget_message()
        self._port.metrics.closed(int(code))
        try:
            session.closed(int(code))
        except Exception:
            log.exception("a session could not be closed")
            self._port.metrics.crashes += 1

    def eof_received(self) -> None:
        self._core.receive_eof()
        self._over(1006)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(1006)
        if self._timer is not None:
            self._timer.cancel()
        self._core.taker = None  # no cycle is left for the collector
        self._outlet.close()
        self._port.input.hold(self, 0)
        self._seat.leave()
        self._port.metrics.connections["websocket"] -= 1
        self._port.part(self)

    def pause_writing(self) -> None:
        self._outlet.pause_writing()

    def resume_writing(self) -> None:
        self._outlet.resume_writing()

    def drain(self) -> None:
        """The server stops: the session finishes what runs, then closes with 1012 by itself."""
        if self._session is None or self._draining:
            return
        self._draining = True
        try:
            self._session.drain()
        except Exception:
            log.exception("a session could not be drained and is closed")
            self.crash()

    def shut(self) -> None:
        """Close with 1012 now, whatever still runs."""
        if self._session is not None:
            self._outlet.push()
            self._say_close(1012, "the server stops")

    def abort(self) -> None:
        self._transport.abort()
