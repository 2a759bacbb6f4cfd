"""One answer on its way: what arrived and was not read yet, and how it ended. Knows events, no socket."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import msgspec

from headrace.clients.errors import ClientError, SlowReader
from headrace.clients.events import (
    TERMINAL,
    AnyEvent,
    Created,
    ErrorFrame,
    Failed,
    Response,
    TextDelta,
    Usage,
    answer_of,
    failure_of,
    refusal_of,
)

JOIN_AFTER = 1024  # unread events; beyond them neighbouring deltas are joined
JOINED_LENGTH = 4096  # characters of one joined delta at most, so that joining stays linear
UNREAD_LENGTH = 4 << 20  # characters


class ResponseStream:
    """An answer. Iterate it for typed events, or `text()` for the text as it grows, or await `response()`: each
    event goes to one reader, once.

    The rule for a stream that nobody reads: it never holds up the others on its connection. Up to 1024 unread
    events are kept as they came; beyond that, neighbouring deltas of one part are joined (the joined event has
    the number of its last member). Beyond 4 Mi characters unread the answer is cancelled on the server, and its
    reader gets what was kept and then `SlowReader`.

    `status`: "queued" until the server took the request, "in_progress", then the server's last word
    ("completed", "incomplete", "cancelled", "failed") or "lost" if none came.
    """

    def __init__(
        self,
        lane: str,
        post: Callable[[dict[str, Any]], object],
        leave: Callable[[ResponseStream], None],
    ) -> None:
        self.lane = lane
        self.status = "queued"
        self.response_id: str | None = None
        self.usage: Usage | None = None
        self.final: Response | None = None  # the response object of the last event
        self._post = post
        self._leave = leave
        self._unread: deque[AnyEvent] = deque()
        self._unread_length = 0
        self._error: ClientError | None = None
        self._cancelling = False
        self._dropping = False  # what arrives is not kept any more
        self._reading = False
        self._news = asyncio.Event()  # something to read, or the end
        self._created = asyncio.Event()  # the server took the request, or the end
        self._over = asyncio.Event()

    # -- reader side -----------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Nothing more will arrive. Unread events may still wait."""
        return self._over.is_set()

    def __aiter__(self) -> ResponseStream:
        return self

    async def __anext__(self) -> AnyEvent:
        """The next event, the last one being terminal. Raises ConnectionLost or SlowReader after what arrived."""
        if self._reading:
            raise RuntimeError("two tasks read one stream; its events go to one reader")
        self._reading = True
        try:
            while not self._unread:
                if self.ended:
                    if self._error is not None:
                        raise self._error
                    raise StopAsyncIteration
                self._news.clear()
                await self._news.wait()
        finally:
            self._reading = False
        event = self._unread.popleft()
        if isinstance(event, TextDelta):
            self._unread_length -= len(event.delta)
        return event

    async def text(self) -> AsyncIterator[str]:
        """The answer's text as it grows. Raises ResponseFailed if the answer fails; a cancelled or cut answer
        just ends (see `status`)."""
        async for event in self:
            if isinstance(event, TextDelta):
                yield event.delta
            elif isinstance(event, Failed):
                raise failure_of(event)

    async def response(self) -> Response:
        """Reads to the end and returns the whole response. Raises ResponseFailed like `text()`."""
        async for event in self:
            if isinstance(event, Failed):
                raise failure_of(event)
        assert self.final is not None, "a stream without error ends with a terminal event"
        return self.final

    @property
    def answer(self) -> str:
        """The whole text, once the stream has ended by itself; "" before."""
        return answer_of(self.final) if self.final is not None else ""

    async def cancel(self) -> None:
        """The server stops this answer; returns when its last event is here (what came before stays readable).
        Does nothing if the answer has ended. Never raises: a lost connection has cancelled it too."""
        self._ask_cancel()
        await self._over.wait()

    async def __aenter__(self) -> ResponseStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaving the block cancels an answer that is still running."""
        await self.cancel()

    # -- writer side: called by the connection, on the loop ----------------------------------------------------

    async def created(self) -> None:
        """Returns when the server took the request; raises what it answered instead."""
        await self._created.wait()
        if self.response_id is None and self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Nobody will read this: cancel it as soon as its id is known."""
        self._dropping = True
        self._unread.clear()
        self._ask_cancel()

    def feed(self, event: AnyEvent) -> None:
        """One event of this answer arrived."""
        if isinstance(event, ErrorFrame):
            self.end("failed", refusal_of(event.error, event.status))
            return
        if isinstance(event, Created):
            self.response_id = event.response.id
            self.status = "in_progress"
            self._created.set()
            if self._cancelling:
                self._send_cancel()
        if not self._dropping:
            self._keep(event)
        if isinstance(event, TERMINAL):
            self.final = event.response
            self.usage = event.response.usage
            self.end(event.response.status, self._error)

    def end(self, status: str, error: ClientError | None) -> None:
        """Nothing more will arrive. The first end counts."""
        if self.ended:
            return
        self.status = status
        self._error = error
        self._over.set()
        self._created.set()
        self._news.set()
        self._leave(self)

    def _keep(self, event: AnyEvent) -> None:
        if isinstance(event, TextDelta):
            self._unread_length += len(event.delta)
            if self._unread_length > UNREAD_LENGTH:
                self._error = SlowReader(f"more than {UNREAD_LENGTH} characters of this answer waited unread")
                self._dropping = True
                self._ask_cancel()
                return
            last = self._unread[-1] if len(self._unread) >= JOIN_AFTER else None
            if (
                isinstance(last, TextDelta)
                and last.item_id == event.item_id
                and last.content_index == event.content_index
                and len(last.delta) < JOINED_LENGTH
            ):
                self._unread[-1] = msgspec.structs.replace(event, delta=last.delta + event.delta)
                return
        self._unread.append(event)
        self._news.set()

    def _ask_cancel(self) -> None:
        if self.ended or self._cancelling:
            return
        self._cancelling = True
        if self.response_id is not None:
            self._send_cancel()
        # Else it goes out with the id: a bare cancel would stop the unnamed lane, not this one.

    def _send_cancel(self) -> None:
        self._post({"type": "response.cancel", "response_id": self.response_id})
