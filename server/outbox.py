"""All bytes leave here: connections with news are asked to render once per step, and each writes once.

Knows transports and their brakes; must not know HTTP, WebSocket or any face. While a peer reads too slowly it is
not asked at all, so its streams fill up to their window and pause; nothing piles up between ring and socket.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

log = logging.getLogger("headrace.outbox")


class Owner(Protocol):
    """A connection, as its outlet sees it."""

    def pull(self) -> None:
        """Put what can be told now into the outlet. May raise only by our own mistake."""

    def crash(self) -> None:
        """`pull` raised: end this connection, and nothing else."""

    def drained(self) -> None:
        """The peer reads again after a stall."""

    def too_slow(self) -> None:
        """The peer has taken nothing for the slow-reader limit: end the connection."""


class Outbox:
    """The connections that have something to tell.

    `flush` is the one hook of the step loop. Outside a step it runs by itself at the end of the loop turn: the
    call that `mark` schedules finds nothing to do if the step was faster.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, high_water: int, slow_reader_limit: float) -> None:
        self.loop = loop
        self.high_water = high_water
        self.slow_reader_limit = slow_reader_limit
        self.bytes_out = 0
        self.writes = 0
        self._dirty: list[Outlet] = []
        self._scheduled = False

    def mark(self, outlet: Outlet) -> None:
        """`outlet` is asked at the next flush."""
        self._dirty.append(outlet)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn_ends)

    def _turn_ends(self) -> None:
        self._scheduled = False
        if self._dirty:
            self.flush()

    def flush(self) -> None:
        """Render and write for every marked connection, once each. What they mark meanwhile waits for the next."""
        dirty, self._dirty = self._dirty, []
        for outlet in dirty:
            outlet.ask()


class Outlet:
    """Where the bytes of one connection leave. Its owner changes when an HTTP connection becomes a WebSocket."""

    __slots__ = (
        "_marked",
        "_outbox",
        "_pending",
        "_slow",
        "_transport",
        "closed",
        "owner",
        "paused",
        "wrote",
    )

    def __init__(self, outbox: Outbox, transport: asyncio.Transport, owner: Owner) -> None:
        self._outbox = outbox
        self._transport = transport
        self._pending: list[bytes] = []
        self._marked = False
        self._slow: asyncio.TimerHandle | None = None
        self.owner: Owner | None = owner
        self.paused = False
        self.closed = False
        self.wrote = 0.0  # loop time of the last write
        transport.set_write_buffer_limits(high=outbox.high_water)

    def mark(self) -> None:
        """Ask the owner at the next flush. Cheap; while the peer reads too slowly it is only remembered."""
        if not self._marked:
            self._marked = True
            if not self.paused:
                self._outbox.mark(self)

    def ask(self) -> None:
        """The outbox's call: render and write, unless the peer is too slow or gone."""
        if self.paused:
            return  # still marked: resume_writing asks again
        self._marked = False
        if self.owner is None:
            return
        try:
            self.owner.pull()
        except Exception:
            log.exception("a connection could not be rendered and is closed")
            self.owner.crash()
        self.push()

    def put(self, *parts: bytes) -> None:
        """Bytes that leave with the next push, in order."""
        self._pending += parts

    def push(self) -> None:
        """One transport.write of everything that was put."""
        if not self._pending:
            return
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending.clear()
        if self.closed or self._transport.is_closing():
            return
        self._outbox.bytes_out += len(data)
        self._outbox.writes += 1
        self.wrote = self._outbox.loop.time()
        self._transport.write(data)

    def pause_writing(self) -> None:
        """The transport's buffer is over the high-water mark."""
        self.paused = True
        if self._slow is None and not self.closed:
            self._slow = self._outbox.loop.call_later(self._outbox.slow_reader_limit, self._too_slow)

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self.paused = False
        self._calm()
        if self._marked:
            self._outbox.mark(self)
        if self.owner is not None:
            self.owner.drained()

    def _too_slow(self) -> None:
        self._slow = None
        if self.owner is not None:
            self.owner.too_slow()

    def _calm(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def close(self) -> None:
        """Nothing leaves here any more. A second call changes nothing."""
        self.closed = True
        self.owner = None
        self._pending.clear()
        self._calm()
