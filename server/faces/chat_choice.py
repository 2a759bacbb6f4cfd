"""One choice of a chat completion: what its stream says, as deltas or as one message. Knows chat objects; knows no
stream of bytes and no request."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from headrace.runtime.interface import (
    CallArguments,
    CallBegin,
    CallEnd,
    FinishReason,
    Piece,
    ReasoningPiece,
    TextPiece,
    TokenStream,
    joined,
)
from headrace.server.faces.token_logprobs import chat_logprobs
from headrace.server.ids import new_id
from headrace.server.protocol import chat
from headrace.server.protocol.logprobs import ChatLogprobs
from headrace.server.protocol.tools import CallDelta, CalledFunction, CallFunctionDelta, ChatCall

_FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class ChatSpeaker:
    """`told` says that a delta of it went out: from then on plain text needs no delta of its own making."""

    def __init__(self, index: int, reasoning_field: str) -> None:
        self.index = index
        self._reasoning_field = reasoning_field
        self._said: list[Piece] = []  # of a whole reply
        self._calls = 0  # calls that have begun
        self._whole_calls = 0
        self.told = False

    def collect(self, stream: TokenStream) -> None:
        """Take what waits, for `choice`."""
        self._said += self._pieces(stream)

    def chunks(self, stream: TokenStream) -> list[chat.ChunkChoice]:
        """Take what waits: the role rides on the first delta, the finish reason on the last one, and so do the
        logprobs of all tokens that were taken since the last delta."""
        deltas = [delta for piece in self._pieces(stream) if (delta := self._delta(piece)) is not None]
        finish = self._finish(stream)
        if finish is not None and not deltas:
            deltas = [self._first({} if self.told else {"content": ""})]
        if not deltas:
            return []
        *others, last = deltas
        found = [chat.ChunkChoice(self.index, delta, None) for delta in others]
        return [*found, chat.ChunkChoice(self.index, last, finish, self._logprobs(stream))]

    def choice(self, stream: TokenStream) -> chat.ChatChoice:
        """Everything collected as one message; the stream has ended well."""
        calls: list[ChatCall] = []
        texts, thoughts = [], []
        name, arguments = "", ""
        for piece in joined(self._said):
            match piece:
                case TextPiece():
                    texts.append(piece.text)
                case ReasoningPiece():
                    thoughts.append(piece.text)
                case CallBegin():
                    name, arguments = piece.name, ""
                case CallArguments():
                    arguments = piece.text
                case CallEnd():
                    self._whole_calls += piece.whole
                    calls.append(ChatCall(new_id("call"), CalledFunction(name, arguments)))
        more: dict[str, Any] = {"tool_calls": tuple(calls)} if calls else {}
        if thoughts:
            more[self._reasoning_field] = "".join(thoughts)
        message = chat.AnswerMessage("assistant", "".join(texts) if texts or not calls else None, **more)
        finish = self._finish(stream)
        assert finish is not None
        return chat.ChatChoice(self.index, message, finish, self._logprobs(stream))

    def _pieces(self, stream: TokenStream) -> list[Piece]:
        pieces = stream.take_pieces()
        return joined([*pieces, *stream.tail_pieces]) if stream.ended else pieces

    def _logprobs(self, stream: TokenStream) -> ChatLogprobs | UnsetType:
        if stream.logprobs is None:
            return UNSET
        return chat_logprobs(stream)

    def _delta(self, piece: Piece) -> chat.Delta | None:
        """The delta of one piece; the end of a call has none."""
        match piece:
            case TextPiece():
                return self._first({"content": piece.text})
            case ReasoningPiece():
                return self._first({self._reasoning_field: piece.text})
            case CallBegin():
                self._calls += 1
                function = CallFunctionDelta(name=piece.name, arguments="")
                call = CallDelta(self._calls - 1, new_id("call"), "function", function)
            case CallArguments():
                call = CallDelta(self._calls - 1, function=CallFunctionDelta(arguments=piece.text))
            case CallEnd():
                self._whole_calls += piece.whole
                return None
        return self._first({"tool_calls": (call,)})

    def _first(self, fields: dict[str, Any]) -> chat.Delta:
        """A delta with these fields, and with the role if it is the first one."""
        role: dict[str, Any] = {} if self.told else {"role": "assistant"}
        self.told = True
        return chat.Delta(**role, **fields)

    def _finish(self, stream: TokenStream) -> str | None:
        """The finish reason, once everything was read and if the stream ended well."""
        if not stream.ended or stream.finish not in _FINISH:
            return None
        reason = _FINISH[stream.finish]
        return "tool_calls" if reason == "stop" and self._whole_calls else reason
