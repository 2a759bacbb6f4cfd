"""What a model says → Anthropic's content blocks, as events and as a whole. Knows blocks; knows no stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Raw

from headrace.runtime.interface import (
    CallArguments,
    CallBegin,
    CallEnd,
    Piece,
    ReasoningPiece,
    TextPiece,
)
from headrace.server.faces.tool_items import sealed
from headrace.server.ids import new_id
from headrace.server.protocol import messages as m

# What a call's arguments are called in a whole reply if they are no object, because the answer was cut there.
CUT_ARGUMENTS = "x_partial_json"
_Shown = m.TextBlock | m.ThinkingBlock | m.ToolUseBlock


class AnswerBlocks:
    """The blocks of one answer, told as they grow and kept for the whole reply.

    hidden: thoughts are not shown; their signature holds them sealed, so that a later turn can bring them back.
    `index` is that of the open block or of the last one, `in_text` says that the open one is text, `calls` counts
    whole calls.
    """

    def __init__(self, *, hidden: bool) -> None:
        self.index = -1
        self.calls = 0
        self._hidden = hidden
        self._open: _Shown | None = None
        self._said: list[str] = []  # of the open block
        self._done: list[_Shown] = []

    @property
    def in_text(self) -> bool:
        return isinstance(self._open, m.TextBlock)

    def add(self, pieces: Iterable[Piece]) -> list[m.MessageEvent]:
        """The events of more pieces."""
        events: list[m.MessageEvent] = []
        for piece in pieces:
            match piece:
                case TextPiece():
                    self._begin(m.TextBlock(""), events)
                    self._tell(m.TextDelta(piece.text), piece.text, events)
                case ReasoningPiece():
                    self._begin(m.ThinkingBlock("", ""), events)
                    shown = None if self._hidden else m.ThinkingDelta(piece.text)
                    self._tell(shown, piece.text, events)
                case CallBegin():
                    self._close(events)
                    self._begin(m.ToolUseBlock(new_id("toolu"), piece.name, {}), events)
                case CallArguments():
                    self._tell(m.InputJsonDelta(piece.text), piece.text, events)
                case CallEnd():
                    self.calls += piece.whole
                    self._close(events, whole=piece.whole)
        return events

    def end(self) -> list[m.MessageEvent]:
        """The events that close what is open."""
        events: list[m.MessageEvent] = []
        self._close(events, whole=False)
        return events

    def whole(self) -> tuple[m.AnswerBlock, ...]:
        """All blocks. The answer is over: `end` was called."""
        assert self._open is None
        return tuple(self._done)

    def _begin(self, block: _Shown, events: list[m.MessageEvent]) -> None:
        if type(self._open) is type(block):
            return
        self._close(events)
        self.index += 1
        self._open = block
        events.append(m.BlockStart(self.index, block))

    def _tell(self, piece: m.BlockPiece | None, text: str, events: list[m.MessageEvent]) -> None:
        self._said.append(text)
        if piece is not None:
            events.append(m.BlockDelta(self.index, piece))

    def _close(self, events: list[m.MessageEvent], *, whole: bool = True) -> None:
        block, self._open = self._open, None
        if block is None:
            return
        text = "".join(self._said)
        self._said.clear()
        match block:
            case m.TextBlock():
                self._done.append(m.TextBlock(text))
            case m.ThinkingBlock():
                signature = sealed(text if self._hidden else "")
                events.append(m.BlockDelta(self.index, m.SignatureDelta(signature)))
                self._done.append(m.ThinkingBlock("" if self._hidden else text, signature))
            case m.ToolUseBlock():
                # The model's own text is JSON already, and no reader of ours changes a digit of it.
                given: Any = Raw(text.encode() or b"{}") if whole else {CUT_ARGUMENTS: text}
                self._done.append(m.ToolUseBlock(block.id, block.name, given))
        events.append(m.BlockStop(self.index))
