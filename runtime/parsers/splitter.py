"""The text of one answer → typed pieces. Knows how reasoning is marked; the families know how calls are.

Markup never gets lost and never crashes: what turns out to be no call comes out as the text that it is. A call is
told as soon as its name and the beginning of its arguments are certain; if it goes wrong after that, it ends as
not whole, and what follows is text again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.runtime.parsers.incoming import CallRules, Incoming, Malformed, Over, Reading
from headrace.runtime.parsers.pieces import Piece

CallReader = Callable[[Incoming, CallRules], Reading[None]]


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What stands before and after the reasoning of a model family."""

    begin: str
    end: str


class Splitter:
    """One answer. `push` and `finish` return what became certain; any cutting of the text gives the same pieces.

    marks: None leaves reasoning in the text. thinking: the prompt has opened the reasoning already; midway: and
    has begun to reason, so that the answer's first white space is a part of it. calls: how the family writes calls,
    and which ones are allowed; None: markup of calls is text.
    `over`: the answer has ended with the one call that was allowed; nothing is told any more.
    `thinking`: the model is reasoning now. `plain`: what comes from now on is text of the answer, all of it, and
    nothing is held back: nobody needs this splitter any more.
    """

    __slots__ = ("_reading", "_source", "over")

    def __init__(
        self,
        marks: ReasoningMarks | None = None,
        thinking: bool = False,
        calls: tuple[CallReader, CallRules] | None = None,
        *,
        midway: bool = False,
    ) -> None:
        assert marks is not None or not thinking
        assert thinking or not midway
        self.over = False
        self._source = Incoming()
        self._reading = _answer(self._source, marks, thinking, midway, calls)
        next(self._reading)

    @property
    def thinking(self) -> bool:
        return self._source.thinking

    @property
    def plain(self) -> bool:
        return self._source.plain

    def push(self, text: str) -> list[Piece]:
        """What `text` makes certain."""
        if not text or self.over:
            return []
        self._source.text += text
        return self._read()

    def finish(self) -> list[Piece]:
        """What was held back; nothing follows. A call that is still open ends as not whole."""
        if self.over:
            return []
        self._source.ended = True
        pieces = self._read()
        self.over = True
        return pieces

    def _read(self) -> list[Piece]:
        source = self._source
        try:
            next(self._reading)
        except Over:
            self.over = True
        except StopIteration:
            assert source.ended, "a parser reads until the text has ended"
        pieces, source.pieces = source.pieces, []
        return pieces


def _answer(
    source: Incoming,
    marks: ReasoningMarks | None,
    thinking: bool,
    midway: bool,
    calls: tuple[CallReader, CallRules] | None,
) -> Reading[None]:
    source.thinking = thinking
    yield  # the constructor runs up to here
    if marks is not None:
        yield from _reasoning(source, marks, midway)
    if calls is None:
        yield from source.remainder()
    else:
        read, rules = calls
        yield from read(source, rules)


def _reasoning(source: Incoming, marks: ReasoningMarks, midway: bool) -> Reading[None]:
    """Tell the reasoning before an answer, if there is any, without the white space around it."""
    if not source.thinking:
        try:
            at = yield from source.after_white(source.at)
        except Malformed:
            return
        if not (yield from source.spells(at, marks.begin)):
            return
        source.at = at + len(marks.begin)
        source.thinking = True
    if not midway:
        yield from source.drop_white()
    found = yield from source.text_until(marks.end)
    if found >= 0:
        source.at = found + len(marks.end)
        source.thinking = False
        yield from source.drop_white()
