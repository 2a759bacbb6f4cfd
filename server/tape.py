"""What a response has told, event by event, so that it can be told again. Knows events and sizes; knows no stream.

Bytes handed to a socket may never have arrived. What was told therefore stays here for a reader that comes back,
bounded: beyond `limit` the oldest events go, and a reader that asks for them is told so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from headrace.server.protocol.response_events import Event

EVENT_BYTES = 160  # an event's own objects, beside its text


class Tape:
    """Events in the order of their numbers. Text is shared with the response; only its references are new."""

    __slots__ = ("_events", "bytes", "limit", "next")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.next = 0  # the number behind the last event
        self._events: deque[tuple[Event, int]] = deque()

    @property
    def oldest(self) -> int:
        """The number of the oldest event that can be told again."""
        return self._events[0][0].sequence_number if self._events else self.next

    def add(self, event: Event, size: int) -> None:
        """One more event was told; `size` is the length of its JSON."""
        assert event.sequence_number >= self.next, "events are told in the order of their numbers"
        self.next = event.sequence_number + 1
        self._events.append((event, size + EVENT_BYTES))
        self.bytes += size + EVENT_BYTES
        self.trim(self.limit)

    def trim(self, limit: int) -> None:
        """Let the oldest events go until `limit` bytes are kept; the last event always stays."""
        while self.bytes > limit and len(self._events) > 1:
            self.bytes -= self._events.popleft()[1]

    def after(self, number: int) -> Iterator[Event]:
        """Every event behind `number`, oldest first. Nothing may be added meanwhile."""
        for event, _ in self._events:
            if event.sequence_number > number:
                yield event
