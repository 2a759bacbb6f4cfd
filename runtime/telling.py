"""What turns the tokens of one answer into text, and its text into pieces."""

from __future__ import annotations

from typing import Protocol

from headrace.runtime.parsers.pieces import Piece


class TextCutter(Protocol):
    """Tokens in, certain text out: never half a character, never the beginning of a stop string."""

    matched: str | None  # the stop string that was found; nothing is released after it

    def push(self, token: int) -> str:
        """Text that became certain with this token (possibly empty)."""

    def finish(self) -> str:
        """What was still held back and is now certain, because no token follows. Empty after a match."""


class TextSplitter(Protocol):
    """Certain text in, typed pieces out (see parsers.splitter.Splitter)."""

    over: bool  # the answer has ended with the one call that was allowed

    @property
    def thinking(self) -> bool:
        """The model is reasoning now."""

    @property
    def plain(self) -> bool:
        """What comes from now on is text of the answer, all of it, and nothing is held back."""

    def push(self, text: str) -> list[Piece]:
        """What `text` makes certain."""

    def finish(self) -> list[Piece]:
        """What was held back; no text follows."""
