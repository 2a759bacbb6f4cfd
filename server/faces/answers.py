"""HTTP replies that take time: a stream read to its end, told whole or as server-sent events.

Knows when the head goes out and what a failure becomes before and after it; knows no endpoint's objects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from headrace.runtime.interface import Ask, FinishReason, Refusal, Runtime, TokenStream
from headrace.server.exchange import STREAM_END, HttpReply, Part, StreamHead, Wire
from headrace.server.protocol.codec import encode
from headrace.server.protocol.errors import WireError

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
IGNORED_HEADER = "x-ignored-fields"


def error_reply(error: WireError | Refusal, headers: Mapping[str, str] | None = None) -> HttpReply:
    """A refused request as a whole HTTP reply."""
    wire = WireError.of(error)
    return HttpReply(
        wire.status, encode(wire.fields().nested()), headers={**(headers or {}), **wire.headers()}
    )


def ignored_header(names: tuple[str, ...]) -> dict[str, str]:
    """The reply header that names unknown fields: printable ASCII only, whatever the client called them."""
    if not names:
        return {}
    safe = [
        "".join(c if c.isascii() and (c.isalnum() or c in "_.-[]") else "?" for c in name[:64])
        for name in names
    ]
    return {IGNORED_HEADER: ", ".join(safe)}


def sse(data: bytes) -> bytes:
    """One event without a name."""
    return b"data: " + data + b"\n\n"


def stream_error(stream: TokenStream) -> WireError:
    """Why a stream ended in ERROR or was cancelled."""
    if stream.error is not None:
        return WireError.of(stream.error)
    # Nobody else may cancel a plain HTTP request: the server itself ended it, to stop.
    return WireError("server_is_overloaded", "The server is stopping; try again.", retry_after=1.0)


class StreamAnswer(ABC):
    """An Answer (exchange.py) about one token stream.

    Subclasses say what the stream has become: `whole()` once, or `parts()` as it grows. Until the first byte
    went out a failure is an HTTP error with its own status; afterwards it is `failure()` inside the stream.
    The class attributes are what a protocol does differently around its objects.
    """

    stream_type = "text/event-stream; charset=utf-8"
    silence = PING  # what breaks a silence; b"" where the protocol has nothing for that
    last_part = DONE  # what follows the last object; b"" where that is the end itself

    def __init__(self, runtime: Runtime, wire: Wire, headers: Mapping[str, str], *, streamed: bool) -> None:
        self._runtime = runtime
        self._wire = wire
        self._headers = headers
        self._streamed = streamed
        self._head_sent = False
        self._over = False
        self._gone = False
        self.stream: TokenStream | None = None
        self.cancel_is_answer = False  # a cancelled stream has been told as what it is: no failure follows

    def open(self, ask: Ask) -> TokenStream:
        """Start the generation. Raises Refusal if the server takes no request now."""
        return self.take(self._runtime.open(ask, self.listen))

    def take(self, stream: TokenStream) -> TokenStream:
        """Answer with a stream that was opened with `listen`."""
        self.stream = stream
        self._wire.dirty()
        return stream

    def listen(self, stream: TokenStream) -> None:
        """The stream's listener."""
        if not self._gone:
            self._wire.dirty()

    def render(self) -> list[Part]:
        """See exchange.Answer."""
        stream = self.stream
        assert stream is not None, "an answer is rendered after it was opened"
        if self._over:
            return []
        told = self.parts(stream)
        if self._head_sent and stream.finish is None:
            return told  # type: ignore[return-value]  # bytes are parts
        failed = stream.finish is FinishReason.ERROR and stream.ended
        if self._streamed:
            return self._render_stream(stream, told, failed)
        if not stream.ended:
            return []
        self._over = True
        if stream.finish is FinishReason.ERROR or self._cut_off(stream):
            return [self.refused(stream_error(stream))]
        return [HttpReply(200, self.whole(stream), headers=self._headers)]

    def _render_stream(self, stream: TokenStream, told: list[bytes], failed: bool) -> list[Part]:
        parts: list[Part] = []
        if stream.ended and not self._head_sent and not told:
            self._over = True
            return [self.refused(stream_error(stream))]
        if told:
            parts += self._head()
        parts += told
        if stream.ended:
            self._over = True
            if failed or self._cut_off(stream):
                parts += self.failure(stream_error(stream))
            parts += [self.last_part, STREAM_END] if self.last_part else [STREAM_END]
        return parts

    def ping(self) -> list[Part]:
        """See exchange.Answer. A whole reply cannot be kept alive this way."""
        return [*self._head(), self.silence] if self._streamed and self.silence and not self._over else []

    def closed(self) -> None:
        """See exchange.Answer: the client is gone, so is its request."""
        self._gone = True
        if self.stream is not None and self.stream.finish is None:
            self._runtime.cancel(self.stream)
        self.dropped()

    def _head(self) -> list[Part]:
        if self._head_sent:
            return []
        self._head_sent = True
        return [StreamHead(200, self.stream_type, {"cache-control": "no-cache", **self._headers})]

    def _cut_off(self, stream: TokenStream) -> bool:
        return stream.finish is FinishReason.CANCELLED and not self.cancel_is_answer

    # -- what an endpoint says ---------------------------------------------------------------------------------

    @abstractmethod
    def parts(self, stream: TokenStream) -> list[bytes]:
        """Read what waits in the stream; the SSE bytes it becomes (nothing, for a whole reply)."""

    @abstractmethod
    def whole(self, stream: TokenStream) -> bytes:
        """The body of a whole reply; the stream has ended well."""

    def refused(self, error: WireError) -> HttpReply:
        """The reply to a request that failed before its first byte."""
        return error_reply(error, self._headers)

    @abstractmethod
    def failure(self, error: WireError) -> list[bytes]:
        """SSE bytes for an end that went wrong after the head was sent."""

    def dropped(self) -> None:
        """The client went away before the end: give back what is held. Nothing by default."""
        return
