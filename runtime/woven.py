"""A string that knows which of its characters the chat template wrote. Knows nothing of templates or tokens.

Trust is kept only through the operations spelled out here. Every other operation of `str` gives a plain
string, all of which counts as written by somebody else: forgetting is safe, it can only turn a special token
into ordinary text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, SupportsIndex

Spans = tuple[tuple[int, int], ...]


class Woven(str):
    """`own`: ascending, separate [start, end) spans of the template's own characters."""

    __slots__ = ("own",)
    own: Spans

    def __new__(cls, text: str, own: Spans = ()) -> Woven:
        woven = super().__new__(cls, text)
        woven.own = own
        return woven

    def __str__(self) -> Woven:  # str() of a part must not forget where it came from
        return self

    def __add__(self, other: str) -> Woven:
        return weave((self, other))

    def __radd__(self, other: str) -> Woven:
        return weave((other, self))

    def __mul__(self, count: SupportsIndex) -> Woven:
        return weave([self] * count.__index__())

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if not isinstance(key, slice):
            return super().__getitem__(key)
        start, stop, step = key.indices(len(self))
        return self._part(start, max(start, stop)) if step == 1 else super().__getitem__(key)

    def strip(self, chars: str | None = None, /) -> Woven:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Woven:
        return self._part(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> Woven:
        return self._part(0, len(super().rstrip(chars)))

    def join(self, parts: Iterable[str], /) -> Woven:
        laid: list[str] = []
        for part in parts:
            laid += (self, part)
        return weave(laid[1:])

    def _part(self, start: int, end: int) -> Woven:
        own = tuple(
            (max(a, start) - start, min(b, end) - start) for a, b in self.own if a < end and b > start
        )
        return Woven(super().__getitem__(slice(start, end)), own)

    def __reduce__(self) -> Any:
        raise TypeError("a woven string stays in the render that made it")


def spans_of(text: str) -> Spans:
    """Where the template itself wrote; nowhere in a plain string."""
    return text.own if isinstance(text, Woven) else ()


def weave(parts: Iterable[str]) -> Woven:
    """The parts joined, each keeping its origin."""
    laid = list(parts)
    own: list[tuple[int, int]] = []
    at = 0
    for part in laid:
        for start, end in spans_of(part):
            if own and own[-1][1] == at + start:
                own[-1] = (own[-1][0], at + end)
            else:
                own.append((at + start, at + end))
        at += len(part)
    return Woven("".join(laid), tuple(own))


def replaced(text: str, old: str, new: str) -> str:
    """`new` for every `old` that the template itself wrote; in a plain string, for every one."""
    if not isinstance(text, Woven):
        return text.replace(old, new)
    parts: list[str] = []
    done = at = 0
    while (at := str.find(text, old, at)) >= 0:
        end = at + len(old)
        if any(start <= at and end <= stop for start, stop in text.own):
            parts += (text[done:at], Woven(new, ((0, len(new)),)))
            done = end
        at = end
    return weave([*parts, text[done:]])
