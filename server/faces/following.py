"""The events of a response as server-sent events, from any number on: what was said, then what is being said.

A follower never holds the response up and never stops it: that is its owner's part.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.server.exchange import STREAM_END, Part, StreamHead, Wire
from headrace.server.faces.answers import DONE, PING
from headrace.server.faces.running import RunningResponse
from headrace.server.faces.tape import Tape

AT_ONCE = 256  # events that are rendered in one go
_TYPE_AT = len('{"type":"')


def sse_event(raw: str) -> bytes:
    """One event under its name."""
    name = raw[_TYPE_AT : raw.index('"', _TYPE_AT)]
    return f"event: {name}\ndata: {raw}\n\n".encode()


class FollowAnswer:
    """An Answer (exchange.py) that reads `tape` from event `start` to its end. `running` is the response that still
    writes it, or None."""

    def __init__(
        self,
        wire: Wire,
        tape: Tape,
        start: int,
        running: RunningResponse | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._wire = wire
        self._tape = tape
        self._next = start
        self._running = running
        self._headers = headers or {}
        self._head_sent = False
        self._over = False
        if running is not None:
            running.followers[self] = wire.dirty
        wire.dirty()

    def render(self) -> list[Part]:
        """See exchange.Answer."""
        if self._over:
            return []
        said = self._tape.since(self._next, AT_ONCE)
        self._next += len(said)
        parts: list[Part] = [sse_event(raw) for raw in said]
        if self._next < len(self._tape):
            self._wire.dirty()  # the rest follows when the peer has read some of it
        # A first number beyond what was said waits for the end: it may yet come.
        elif self._running is None or self._running.over:
            self._over = True
            self._leave()
            parts += [DONE, STREAM_END]
        return [*self._head(), *parts] if parts else []

    def ping(self) -> list[Part]:
        """See exchange.Answer."""
        return [] if self._over else [*self._head(), PING]

    def closed(self) -> None:
        """See exchange.Answer: the response goes on without this follower."""
        self._over = True
        self._leave()

    def _head(self) -> list[Part]:
        if self._head_sent:
            return []
        self._head_sent = True
        return [StreamHead(headers={"cache-control": "no-cache", **self._headers})]

    def _leave(self) -> None:
        if self._running is not None:
            self._running.followers.pop(self, None)
