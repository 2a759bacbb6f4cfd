"""What a model says, typed: text, reasoning, and calls of tools. Knows no model, no token and no protocol.

A call is told as CallBegin, any number of CallArguments, CallEnd. Calls follow one another, they never nest, and
neither text nor reasoning stands between the begin and the end of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextPiece:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """More of what the model thinks before its answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool is called. `name` is one of the tools that the ask allowed."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments: JSON text, exactly as the model wrote it. All of them together are one object."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is over. whole: its arguments are one JSON object; else they were cut off or went wrong."""

    whole: bool


Piece = TextPiece | ReasoningPiece | CallBegin | CallArguments | CallEnd


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same said in as few pieces as possible: neighbours of one kind become one, empty ones vanish."""
    laid: list[Piece] = []
    run: list[str] = []
    kind: type[TextPiece] | type[ReasoningPiece] | type[CallArguments] | None = None

    def close() -> None:
        if kind is not None and (text := "".join(run)):
            laid.append(kind(text))
        run.clear()

    for piece in pieces:
        if isinstance(piece, CallBegin | CallEnd):
            close()
            kind = None
            laid.append(piece)
            continue
        if type(piece) is not kind:
            close()
            kind = type(piece)
        run.append(piece.text)
    close()
    return laid
