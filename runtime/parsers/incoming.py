"""Text on its way through a parser: what has arrived, how far it is settled, and the pieces that it became.

Parsers are generators over one Incoming. They yield where they need more text and look at nothing but the text,
never at how it was cut into parts; that is why any cutting gives the same pieces.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from headrace.runtime.parsers.pieces import (
    CallArguments,
    CallBegin,
    CallEnd,
    Piece,
    ReasoningPiece,
    TextPiece,
)

T = TypeVar("T")
Reading = Generator[None, None, T]  # yields where more text is needed

HELD_LIMIT = 1 << 16  # characters that may wait for the decision whether they are a call
WHITE_LIMIT = 64  # white space before a mark that belongs to the mark

WHITE = " \t\n\r"
_WHITE = re.compile(r"[ \t\n\r]*")


class Malformed(Exception):
    """What looked like a call is none."""


class Over(Exception):
    """The answer ends here, whatever the model says after it."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """What counts as a call: the names that may be called, each with its JSON schema (None: any object).

    single: the answer ends with its first call.
    """

    tools: Mapping[str, Mapping[str, Any] | None]
    single: bool = False


class Incoming:
    """`text[at:]` has arrived and is not settled."""

    __slots__ = ("at", "ended", "pieces", "plain", "text", "thinking")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.thinking = False  # what is told now is reasoning
        self.plain = False  # everything that still comes is told as it is
        self.pieces: list[Piece] = []

    def tell(self, end: int) -> None:
        """Everything up to `end` is text (or reasoning, while thinking)."""
        if end > self.at:
            kind = ReasoningPiece if self.thinking else TextPiece
            self.pieces.append(kind(self.text[self.at : end]))
            self.at = end

    def trim(self) -> None:
        """Forget what is settled; indices into `text` start anew."""
        if self.at:
            self.text = self.text[self.at :]
            self.at = 0

    def reach(self, at: int) -> Reading[str]:
        """The character at `at`, once it is there. Malformed if it never comes, or too much waits for it."""
        self.check_held(at)
        while at >= len(self.text):
            if self.ended:
                raise Malformed
            yield
        return self.text[at]

    def check_held(self, at: int) -> None:
        """Malformed if too much text before `at` waits for a decision."""
        if at - self.at > HELD_LIMIT:
            raise Malformed

    def after_white(self, at: int) -> Reading[int]:
        """The index of the first character from `at` on that is no white space. Malformed if none comes."""
        while True:
            found = _WHITE.match(self.text, at)
            assert found is not None
            at = found.end()
            if (yield from self.reach(at)) not in WHITE:
                return at

    def spells(self, at: int, mark: str) -> Reading[bool]:
        """True if `mark` stands at `at`; waits only as long as it still may."""
        for offset, char in enumerate(mark):
            while at + offset >= len(self.text):
                if self.ended:
                    return False
                yield
            if self.text[at + offset] != char:
                return False
        return True

    def drop_white(self) -> Reading[None]:
        """White space that comes now is settled without being told."""
        while True:
            found = _WHITE.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or self.ended:
                return
            self.trim()
            yield

    def text_until(self, mark: str) -> Reading[int]:
        """Tell everything before `mark` and the white space in front of it, which stays unsettled. The index of the
        mark; -1 if the text ends without it."""
        while True:
            found = self.text.find(mark, self.at)
            if found >= 0:
                self.tell(self._before_white(found))
                return found
            if self.ended:
                self.tell(len(self.text))
                return -1
            self.tell(self._before_white(len(self.text) - overlap(self.text, mark)))
            self.trim()
            yield

    def remainder(self) -> Reading[None]:
        """Tell everything that still comes."""
        self.plain = True
        while True:
            self.tell(len(self.text))
            if self.ended:
                return
            self.trim()
            yield

    def _before_white(self, end: int) -> int:
        floor = max(self.at, end - WHITE_LIMIT)
        return floor + len(self.text[floor:end].rstrip(WHITE))

    # -- calls -------------------------------------------------------------------------------------------------

    def begin_call(self, name: str) -> None:
        self.pieces.append(CallBegin(name))

    def arguments(self, text: str) -> None:
        if text:
            self.pieces.append(CallArguments(text))

    def end_call(self, whole: bool, rules: CallRules) -> None:
        """Raises Over if that was the only call there may be."""
        self.pieces.append(CallEnd(whole))
        if whole and rules.single:
            raise Over


def overlap(text: str, mark: str) -> int:
    """How much of the end of `text` may be the beginning of `mark`."""
    for size in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
