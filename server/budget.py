"""The share of memory that incoming messages may fill while they are assembled. Knows counts, no sockets."""

from __future__ import annotations

import asyncio
from typing import Protocol

from headrace.server.config import Limits


class Holder(Protocol):
    """A connection that assembles input."""

    def hold_reading(self) -> None:
        """Take no further bytes for now."""

    def continue_reading(self) -> None:
        """Go on."""

    def shed_input(self) -> None:
        """The input cannot be had: answer 413, or close with 1013."""


class InputBudget:
    """Incoming bytes being assembled over all connections.

    Over the limit, whoever brought more stops reading; if that lasts, the newest of them is shed, one at a time,
    since the oldest is nearest to being done. Bytes count once they are here, so the limit can be passed by one
    read per connection and no more.
    """

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self._limit = limits.input_budget
        self._patience = limits.input_patience
        self._loop = loop
        self._held: dict[Holder, int] = {}
        self._waiting: dict[Holder, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.total = 0

    def hold(self, holder: Holder, size: int) -> None:
        """`holder` now has `size` bytes in assembly (0: none, and it is forgotten)."""
        before = self._held.get(holder, 0)
        if size == before:
            return
        self.total += size - before
        if size:
            self._held[holder] = size
        else:
            self._held.pop(holder, None)
            if holder in self._waiting:
                del self._waiting[holder]
                holder.continue_reading()
        if self.total <= self._limit:
            self._release()
        elif size > before and holder not in self._waiting:
            self._waiting[holder] = None
            holder.hold_reading()
            if self._timer is None:
                self._timer = self._loop.call_later(self._patience, self._shed)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        for holder in waiting:
            holder.continue_reading()

    def _shed(self) -> None:
        self._timer = None
        if self._waiting:
            newest, _ = self._waiting.popitem()
            newest.shed_input()
        if self._waiting and self._timer is None:
            self._timer = self._loop.call_later(self._patience, self._shed)
