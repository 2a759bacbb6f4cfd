"""What was said of one response, so that it can be said again with the same numbers. Knows events as JSON only.

The index of an event is its `sequence_number`. Nearly all events are deltas that differ in number and text alone:
of those the text is kept, which the run holds anyway, and the rest is rendered again from a template they share.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from operator import itemgetter
from typing import Any

from headrace.server.protocol.codec import encode, pack, unpack

Template = tuple[str, str, str]  # the JSON before the number, between number and text, and after the text

_PACKED = tuple[list[tuple[int, Template]], list[Any]]  # texts and bytes: the format tells them apart
_first = itemgetter(0)
SQUEEZED = 128 << 10  # bytes that are compressed at once: a millisecond or two


class Tape:
    """Grows at its end; read from anywhere."""

    __slots__ = ("_items", "_last", "_templates")

    def __init__(self) -> None:
        self._items: list[str | bytes] = []  # a delta's text, or a whole event
        self._templates: list[tuple[int, Template]] = []  # each from that event on
        self._last: Template | None = None

    def __len__(self) -> int:
        return len(self._items)

    def event(self, number: int, raw: bytes) -> None:
        """Append event `number`, as JSON."""
        assert number == len(self._items), "events are numbered from 0 without gaps"
        self._items.append(raw)

    def delta(self, template: Template, text: str) -> None:
        """Append the event that `template` makes of the next number and of `text`."""
        if template is not self._last:
            self._last = template
            self._templates.append((len(self._items), template))
        self._items.append(text)

    def since(self, number: int, most: int | None = None) -> list[str]:
        """The events from `number` on, at most `most`, as JSON, each exactly as it was said."""
        count = len(self._items)
        said = []
        for at in range(number, count if most is None else min(count, number + most)):
            item = self._items[at]
            if isinstance(item, bytes):
                said.append(item.decode())
            else:
                before, middle, behind = self._templates[bisect_right(self._templates, at, key=_first) - 1][1]
                said.append(f"{before}{at}{middle}{encode(item).decode()}{behind}")
        return said

    def pack(self) -> bytes:
        """The whole tape in few bytes: the last events of a response repeat its text several times. A very long one
        stays as it is, because somebody else's token waits meanwhile."""
        data = pack((self._templates, self._items))
        return b"z" + zlib.compress(data, 1) if len(data) <= SQUEEZED else b"." + data

    @classmethod
    def unpack(cls, data: bytes) -> Tape:
        """The tape that `pack` made `data` of."""
        tape = cls()
        plain = zlib.decompress(data[1:]) if data[:1] == b"z" else data[1:]
        tape._templates, tape._items = unpack(plain, _PACKED)
        return tape
