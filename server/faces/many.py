"""HTTP replies about several streams at once: several prompts, or several answers to one.

Knows when the head goes out, when the last stream has ended, and what a failure of one becomes; knows no
endpoint's objects. `answers.StreamAnswer` is the same for one stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from headrace.runtime.interface import Ask, FinishReason, Refusal, Runtime, TokenStream
from headrace.server.exchange import STREAM_END, HttpReply, Part, StreamHead, Wire
from headrace.server.faces.answers import DONE, PING, error_reply, stream_error
from headrace.server.protocol.errors import WireError


class ManyAnswer(ABC):
    """An Answer (exchange.py) about the streams of some asks, `copies` for each, in their order.

    If one fails, the others are cancelled and the request fails: before the first byte with a status of its
    own, afterwards as `failure()` inside the stream."""

    pings = True  # what breaks a silence of a streamed reply is a comment

    def __init__(self, runtime: Runtime, wire: Wire, headers: Mapping[str, str], *, streamed: bool) -> None:
        self._runtime = runtime
        self._wire = wire
        self._headers = headers
        self._streamed = streamed
        self._head_sent = False
        self._over = False
        self._gone = False
        self._told: set[int] = set()  # streams that have nothing more to say
        self.streams: tuple[TokenStream, ...] = ()

    def open(self, asks: Sequence[Ask], copies: int = 1) -> None:
        """Start all generations, or none: raises Refusal if the server takes no such number of requests now."""
        for ask in asks:
            try:
                self.streams += self._runtime.open_many(ask, copies, self._listen)
            except Refusal:
                self._cancel_all()
                raise
        self._wire.dirty()

    def _listen(self, stream: TokenStream) -> None:
        if not self._gone:
            self._wire.dirty()

    def render(self) -> list[Part]:
        """See exchange.Answer."""
        if self._over:
            return []
        if self._head_sent and len(self.streams) == 1 and self.streams[0].finish is None:
            return self.parts(0, self.streams[0])  # type: ignore[return-value]  # bytes are parts
        told: list[bytes] = []
        failed: TokenStream | None = None
        for index, stream in enumerate(self.streams):
            if index in self._told:
                continue
            try:
                told += self.parts(index, stream)
            except Refusal as refusal:
                return self._fail(told, WireError.of(refusal))
            if stream.ended:
                self._told.add(index)
                if failed is None and self.failed(stream):
                    failed = stream
        if failed is not None:
            return self._fail(told, stream_error(failed))
        ended = len(self._told) == len(self.streams)
        if not self._streamed:
            if not ended:
                return []
            self._end()
            return [HttpReply(200, self.whole(), headers=self._headers)]
        parts: list[Part] = [*self._head(), *told] if told else []
        if ended:
            self._end()
            parts += [*self._head(), *self.ending(), DONE, STREAM_END]
        return parts

    def _fail(self, told: list[bytes], error: WireError) -> list[Part]:
        self._end()
        self._cancel_all()
        if not self._streamed or not (self._head_sent or told):
            return [error_reply(error, self._headers)]
        return [*self._head(), *told, *self.failure(error), DONE, STREAM_END]

    def ping(self) -> list[Part]:
        """See exchange.Answer. A whole reply cannot be kept alive this way."""
        return [*self._head(), PING] if self._streamed and self.pings and not self._over else []

    def closed(self) -> None:
        """See exchange.Answer: the client is gone, so are its requests."""
        self._gone = True
        self._cancel_all()
        self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self.over()

    def _cancel_all(self) -> None:
        for stream in self.streams:
            if stream.finish is None:
                self._runtime.cancel(stream)

    def _head(self) -> list[Part]:
        if self._head_sent:
            return []
        self._head_sent = True
        return [StreamHead(headers={"cache-control": "no-cache", **self._headers})]

    def failed(self, stream: TokenStream) -> bool:
        """This end of one stream is the end of the request. Nobody else may cancel a plain HTTP request: who
        did was the server itself, to stop."""
        return stream.finish in (FinishReason.ERROR, FinishReason.CANCELLED)

    # -- what an endpoint says ---------------------------------------------------------------------------------

    @abstractmethod
    def parts(self, index: int, stream: TokenStream) -> list[bytes]:
        """Read what waits in the stream; the SSE bytes it becomes (nothing, for a whole reply). Raises Refusal if
        it cannot be told; not once a part of the stream was."""

    @abstractmethod
    def whole(self) -> bytes:
        """The body of a whole reply; all streams have ended well."""

    def ending(self) -> list[bytes]:
        """SSE bytes after the end of all streams."""
        return []

    def over(self) -> None:
        """Called once, when no more is told, however it ended: give back what is held. Nothing by default."""
        return

    @abstractmethod
    def failure(self, error: WireError) -> list[bytes]:
        """SSE bytes for an end that went wrong after the head was sent."""
