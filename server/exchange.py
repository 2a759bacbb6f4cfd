"""What passes between the front (bytes, sockets) and the faces (protocols): requests, answers, sessions.

The front knows no protocol above HTTP and WebSocket framing; a face knows no socket. All calls happen on the
loop thread. Output is pulled: a face marks its wire dirty, and after the step the outbox asks it to render,
unless the peer reads too slowly, in which case nothing is rendered and the streams fill up and pause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.runtime.interface import Tenant
from headrace.server.protocol.error_body import ErrorBody


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One whole, checked request. Header names are lower case; `path` is decoded once, without the query."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    tenant: Tenant
    request_id: str
    parameters: Mapping[str, str] = field(
        default_factory=dict
    )  # what the `{name}` parts of the route matched
    subprotocol: str = ""  # WebSocket only: the one that was selected, "" for none


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A whole reply. The front adds content-length, x-request-id, date and the security headers."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamHead:
    """Status and headers of a streamed reply; byte parts follow, then STREAM_END."""

    status: int = 200
    content_type: str = "text/event-stream; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


class _StreamEnd:
    __slots__ = ()


STREAM_END = _StreamEnd()
Part = HttpReply | StreamHead | bytes | _StreamEnd


class Answer(Protocol):
    """A reply that takes time. Parts come in order: one HttpReply; or one StreamHead, bytes…, STREAM_END."""

    def render(self) -> list[Part]:
        """Everything that can be told now (possibly nothing). Not called while the peer reads too slowly."""

    def ping(self) -> list[Part]:
        """Called after a silence; a streamed answer returns its head, if not sent yet, and a comment."""

    def closed(self) -> None:
        """The connection went before the end: cancel the streams. Not called after the last part was taken."""


class Wire(Protocol):
    """One connection, as a face sees it."""

    tenant: Tenant

    def dirty(self) -> None:
        """Something can be rendered. Cheap, may be called often; rendering follows at the next flush (after the
        running step's tokens, or by the end of this loop turn when no step is being emitted)."""

    def close(self, code: int, reason: str = "") -> None:
        """WebSocket only: send what render() returns once more, then this close code; `Session.closed(code)`
        follows. A second call changes nothing."""

    def malformed(self) -> None:
        """WebSocket only: the last message was not readable (the session has answered it). Too many of them in a
        short time close the connection with 1008: what render() returns goes out once more, and
        `Session.closed` comes before this call returns."""


class Session(Protocol):
    """One WebSocket connection of one face."""

    def received(self, message: str | bytes) -> None:
        """One whole message. Never raises for anything a client sent."""

    def render(self) -> list[str | bytes]:
        """Whole messages ready to go, in order. Not called while the peer reads too slowly."""

    def closed(self, code: int) -> None:
        """The connection is gone or going (code 1006 if no close frame came): cancel the streams."""

    def drain(self) -> None:
        """The server stops: no new work; finish what runs, then `wire.close(1012)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What one method of a route takes and gives, for the OpenAPI document. Types are msgspec types; None: the
    bytes have no type of ours."""

    summary: str
    body: Any = None
    reply: Any = None
    reply_type: str = "application/json"
    event: Any = None  # one event of the streamed form
    event_type: str = "text/event-stream"
    error: Any = ErrorBody
    query: Mapping[str, str] = field(default_factory=dict)  # name → what it does


WITH_IMAGES = 32 << 20  # bytes of a request body that may hold pictures


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """`respond(request, wire)` answers at once or later; it never raises for anything a client sent."""

    methods: frozenset[str]
    respond: Callable[[HttpRequest, Wire], HttpReply | Answer]
    public: bool = False  # True: no key needed (health, static page)
    body_limit: int = 8 << 20
    # What the front refuses on this path (no key, too large) in the words of the path's own protocol: the reply
    # that the front would send and the request's id go in.
    restate: Callable[[HttpReply, str], HttpReply] | None = None
    about: Mapping[str, About] = field(default_factory=dict)  # by method


@dataclass(frozen=True, slots=True)
class SocketRoute:
    """A path that upgrades. `refuse` may answer before the upgrade; `open` makes the session after it.

    `protocols` are the subprotocols this path selects from what the client offers, best first. Binary messages
    reach the session only where `takes_binary` says so of the upgrade; elsewhere they end in close 1003.
    """

    open: Callable[[HttpRequest, Wire], Session]
    refuse: Callable[[HttpRequest], HttpReply | None] = lambda request: None
    protocols: tuple[str, ...] = ()
    takes_binary: Callable[[HttpRequest], bool] = lambda request: False


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Everything the port answers; what is not listed is a 404. A path may have both kinds (`/v1/responses`).

    Keys are decoded paths, matched whole. A part `{name}` matches one segment, a last part `{name:path}` the rest
    of the path (model ids hold slashes); exact paths win over patterns. A GET route answers HEAD too.
    """

    http: Mapping[str, HttpRoute]
    sockets: Mapping[str, SocketRoute] = field(default_factory=dict)
