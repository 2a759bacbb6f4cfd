"""One answer on its way: what arrived and was not read yet, and how it ended. Knows events, no socket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from headrace.clients.errors import ClientError, ConnectionLost, ServerRefused, SlowReader
from headrace.clients.events import (
    TERMINAL,
    AnyEvent,
    Created,
    ErrorFrame,
    Failed,
    InputAck,
    InputCommitted,
    InputEnded,
    Paused,
    PrefillProgress,
    Promoted,
    Pruned,
    Queue,
    Response,
    Resumed,
    TextDelta,
    Updated,
    Usage,
    VerbRefused,
    answer_of,
    failure_of,
    refusal_of,
)
from headrace.clients.timeline import Timeline

log = logging.getLogger("headrace.client")

JOIN_AFTER = 1024  # unread events; beyond them neighbouring deltas are joined
BARREN_RESUMES = 5  # in a row without a single event; then the connection is as good as lost for ever
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
        ended: Callable[[], None],
    ) -> None:
        self.lane = lane
        self.paused: str | None = None  # why the server holds it back now: "credit" or "slow"
        self.resumes = 0  # how often it changed its connection
        self.status = "queued"
        self.response_id: str | None = None
        self.usage: Usage | None = None
        self.final: Response | None = None  # the response object of the last event
        self.request: dict[str, Any] = {}  # the event that asked for it
        self.timeline = Timeline()  # where its time went, if it was asked for with `telemetry`
        self._ended = ended
        self._post: Callable[[dict[str, Any]], object] = _nowhere
        self._leave: Callable[[], None] = _nothing
        self._token: str | None = None  # what the server wants to see before it tells this answer on
        self._updates: dict[str, asyncio.Future[int]] = {}  # asked for and not answered, by event_id
        self.typed: Callable[[Any], None] = _unheard  # what is told of the prompt that it answers
        self._last = -1  # the number of the last event
        self._barren = 0  # resumes since then
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

    @property
    def receipt(self) -> dict[str, Any] | None:
        """What was computed, in hashes: of an answer that has ended and was asked for with `receipt`."""
        found = None if self.final is None else self.final.x_receipt
        return msgspec.to_builtins(found) if isinstance(found, msgspec.Struct) else None

    def save_receipt(self, path: str | PathLike[str]) -> None:
        """Write request and receipt to a file that `headrace replay` reads. Raises ValueError without a receipt."""
        if self.receipt is None:
            raise ValueError("this answer has no receipt: ask for one, from a server that is --deterministic")
        Path(path).write_text(json.dumps({"request": self.request, "receipt": self.receipt}, indent=1))

    async def cancel(self) -> None:
        """The server stops this answer; returns when its last event is here (what came before stays readable).
        Does nothing if the answer has ended. Never raises: a lost connection has cancelled it too."""
        self._ask_cancel()
        await self._over.wait()

    def prune(self) -> None:
        """The server gives up this branch of an answer; what came before its end stays readable."""
        if self.ended or self._cancelling:
            return
        self._cancelling = True  # said again, as a cancel, when the connection was lost meanwhile
        self._post({"type": "x.prune", "branch": self.lane})

    async def over(self) -> None:
        """Returns when nothing more will arrive."""
        await self._over.wait()

    def grant(self, tokens: int) -> None:
        """The server may tell so many tokens more of an answer that was asked for with `credit`."""
        if not self.ended:
            self._post({"type": "x.credit", "stream_id": self.lane, "tokens": tokens})

    async def update(self, **parameters: Any) -> int:
        """The answer goes on with other sampling parameters (`temperature`, `max_output_tokens`, ...); returns the
        index of the first output token that they chose. Raises ServerRefused if the server does not take them, or
        if the answer ended first."""
        if self.ended:
            raise ServerRefused("response_not_found", "the answer has ended")
        reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        name = f"update-{self.response_id}-{len(self._updates)}-{self.resumes}"
        self._updates[name] = reply
        self._post({"type": "x.update", "response_id": self.response_id, "event_id": name, **parameters})
        return await reply

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

    @property
    def resumable(self) -> bool:
        """The server tells this answer on when it is shown the token, on any connection."""
        return self._token is not None and not self.ended and self._barren < BARREN_RESUMES

    @property
    def riding(self) -> bool:
        """A connection carries it, or it has ended."""
        return self.ended or self._leave is not _nothing

    def ride(self, lane: str, post: Callable[[dict[str, Any]], object], leave: Callable[[], None]) -> None:
        """A connection carries this stream from now on."""
        self.lane = lane
        self._post = post
        self._leave = leave

    def unseat(self) -> None:
        """Its connection is gone; another may carry it."""
        self._leave()
        self._leave, self._post = _nothing, _nowhere

    def resumption(self) -> dict[str, Any]:
        """The event that makes the server tell this answer on, in its present lane."""
        self.resumes += 1
        self._barren += 1
        return {
            "type": "x.resume",
            "response_id": self.response_id,
            "starting_after": self._last,
            "resume_token": self._token,
            "stream_id": self.lane,
        }

    def say(self, event: dict[str, Any]) -> None:
        """A verb of ours for its lane."""
        self._post({**event, "stream_id": self.lane})

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
        if isinstance(event, VerbRefused):
            self._refused(event)
            return
        if isinstance(event, Updated):
            reply = self._updates.pop(str(event.event_id), None)
            if reply is not None and not reply.done():
                reply.set_result(event.effective_at_token)
            return
        if isinstance(event, InputAck | InputCommitted | InputEnded):
            self.typed(event)
            return
        if isinstance(event, Queue | PrefillProgress):
            self.timeline.hear(event)
            return
        if isinstance(event, Paused):
            self.paused = event.reason
            return
        if isinstance(event, Resumed):
            self.paused = None
            if event.reason == "reconnect" and self._cancelling:
                self._send_cancel()  # it may have been lost with the old connection
            return
        if isinstance(event, Pruned) and self.response_id is None:
            self.end("cancelled", ServerRefused("branch_pruned", "this branch was given up before it began"))
        if isinstance(event, (Pruned, Promoted)):
            return
        number = getattr(event, "sequence_number", None)
        if number is not None:
            self._last, self._barren = number, 0
        if isinstance(event, Created):
            self.response_id = event.response.id
            self.status = "in_progress"
            token = event.response.x_resume_token
            self._token = token if isinstance(token, str) else None
            self._created.set()
            if self._cancelling:
                self._send_cancel()  # a prune too: it may have come when this branch was about to begin
        if not self._dropping:
            self._keep(event)
        if isinstance(event, TERMINAL):
            self.final = event.response
            self.usage = event.response.usage
            self.timeline.end(event.response)
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
        self._leave()
        self._leave, self._post = _nothing, _nowhere
        self._ended()
        self.typed(None)
        for reply in self._updates.values():
            if not reply.done():
                reply.set_exception(ServerRefused("response_not_found", "the answer ended first"))
        self._updates.clear()

    def _refused(self, refused: VerbRefused) -> None:
        reply = self._updates.pop(str(refused.event_id), None)
        if reply is not None:
            error = refused.error
            if not reply.done():
                reply.set_exception(ServerRefused(error.code, error.message, error.param))
            return
        if refused.error.code == "draft_not_found" and self.typed is _unheard:
            return  # about a draft that was in this lane before
        self.typed(refused)
        if self.response_id is None:  # it was asked for by a verb, a fork
            error = refused.error
            self.end("failed", ServerRefused(error.code, error.message, error.param))
        elif refused.error.code == "response_not_found" and refused.error.param == "response_id":
            what = "the server no longer has this answer"
            self.end("lost", ConnectionLost(f"the connection was lost, and {what}"))
        else:
            log.warning("the server refused a verb: %s", refused.error.message)

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


def _nowhere(event: dict[str, Any]) -> None:
    """What is said to a server that is not there; what matters is said again on the next connection."""


def _unheard(event: Any) -> None:
    """Nobody types its prompt."""


def _nothing() -> None:
    """Nobody carries the stream."""
