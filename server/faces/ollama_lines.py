"""Answers as Ollama's lines of JSON, or as one object. Knows lines; knows no request of the wire."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from headrace.runtime.interface import (
    CallArguments,
    CallBegin,
    CallEnd,
    FinishReason,
    Piece,
    ReasoningPiece,
    Refusal,
    Runtime,
    TextPiece,
    TokenStream,
    joined,
)
from headrace.server.exchange import HttpReply, Wire
from headrace.server.faces.answers import StreamAnswer
from headrace.server.faces.settings import FaceSettings, rfc3339
from headrace.server.faces.token_logprobs import chat_logprobs
from headrace.server.ids import new_id
from headrace.server.protocol import ollama as o
from headrace.server.protocol.codec import encode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.logprobs import ChatTokenLogprob

NDJSON = "application/x-ndjson"
_DONE = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


def refusal(error: WireError | Refusal, headers: Mapping[str, str]) -> HttpReply:
    """A refused request. Its shape has room for one sentence, which names the field."""
    wire = WireError.of(error)
    return HttpReply(wire.status, encode(o.OllamaError(_said(wire))), headers={**headers, **wire.headers()})


def _said(error: WireError) -> str:
    message = error.fields().message
    if error.param is None or error.param in message or error.code == "model_not_found":
        return message
    return f"{error.param}: {message}"


@dataclass(slots=True)
class Words:
    """What one line says; `logprobs` are those of all tokens since the line before."""

    text: str = ""
    thinking: str = ""
    calls: tuple[o.SaidCall, ...] = ()
    logprobs: tuple[ChatTokenLogprob, ...] = ()

    def __iadd__(self, other: Words) -> Words:
        self.text += other.text
        self.thinking += other.thinking
        self.calls += other.calls
        self.logprobs += other.logprobs
        return self


class LinesAnswer(StreamAnswer):
    """One answer as lines of JSON; the last one has `done` and the counts."""

    stream_type = NDJSON
    last_part = b""

    def __init__(
        self,
        runtime: Runtime,
        wire: Wire,
        headers: Mapping[str, str],
        request: o.OllamaRequest,
        settings: FaceSettings,
    ) -> None:
        super().__init__(runtime, wire, headers, streamed=request.stream is not False)
        self._model = request.model
        self._now = settings.now
        self._everything = Words()  # of a whole reply
        self._call_count = 0
        self._called, self._arguments = "", ""  # of the call that is being written
        # Every line must be an object, so a silence is broken by a piece of nothing.
        self.silence = self._line(Words())

    def parts(self, stream: TokenStream) -> list[bytes]:
        """The lines that the stream's news become."""
        pieces = stream.take_pieces()
        if stream.ended:
            pieces = joined([*pieces, *stream.tail_pieces])
        said = [words for piece in pieces if (words := self._words(piece)) is not None]
        over = stream.ended and stream.finish in _DONE
        ending = Words()
        if stream.logprobs is not None and (said or over):
            # Which token which piece came from is not known here: what was read together is told together.
            (said[-1] if said else ending).logprobs = tuple(chat_logprobs(stream).content)
        if not self._streamed:
            for words in (*said, ending):
                self._everything += words
            return []
        parts = [self._line(words) for words in said]
        if over:
            parts.append(self._last(stream, ending) + b"\n")
        return parts

    def _words(self, piece: Piece) -> Words | None:
        """What a line says of one piece; None until a call is whole."""
        match piece:
            case TextPiece():
                return Words(piece.text)
            case ReasoningPiece():
                return Words(thinking=piece.text)
            case CallBegin():
                self._called, self._arguments = piece.name, ""
            case CallArguments():
                self._arguments += piece.text
            case CallEnd() if piece.whole:
                return Words(calls=(self._whole_call(),))
            case CallEnd():
                # Arguments are an object here: of a call that went wrong only what was said can be told.
                return Words(f"{self._called}({self._arguments}")
        return None

    def _whole_call(self) -> o.SaidCall:
        # The model's own text is JSON already, and no reader of ours changes a digit of it.
        given = msgspec.Raw(self._arguments.encode() or b"{}")
        function = o.SaidFunction(self._called, given, self._call_count)
        self._call_count += 1
        return o.SaidCall(new_id("call"), function)

    def whole(self, stream: TokenStream) -> bytes:
        """One object: the last line, with everything that was said."""
        return self._last(stream, self._everything)

    def refused(self, error: WireError) -> HttpReply:
        """In Ollama's shape."""
        return refusal(error, self._headers)

    def failure(self, error: WireError) -> list[bytes]:
        """A line with the error is the last one."""
        return [encode(o.OllamaError(_said(error))) + b"\n"]

    def loaded(self) -> bytes:
        """The whole reply to a request that asks for nothing: the model is there."""
        return encode(self._object(Words(), done=True, done_reason="load"))

    def _line(self, words: Words) -> bytes:
        return encode(self._object(words, done=False)) + b"\n"

    def _last(self, stream: TokenStream, words: Words) -> bytes:
        assert stream.finish is not None
        times, usage = stream.times, stream.usage
        assert times.ended is not None
        admitted = times.ended if times.admitted is None else times.admitted
        first = times.ended if times.first_token is None else times.first_token
        return encode(
            self._object(
                words,
                done=True,
                done_reason=_DONE[stream.finish],
                total_duration=_nanoseconds(times.ended - times.opened),
                load_duration=0,  # the model was there
                prompt_eval_count=usage.prompt_tokens,
                prompt_eval_duration=_nanoseconds(first - admitted),
                eval_count=usage.output_tokens,
                eval_duration=_nanoseconds(times.ended - first),
            )
        )

    def _object(self, words: Words, **facts: Any) -> o.OllamaLine:
        facts |= {
            "model": self._model,
            "created_at": rfc3339(self._now()),
            "logprobs": words.logprobs or UNSET,
        }
        return self.piece(words, facts)

    @abstractmethod
    def piece(self, words: Words, facts: Mapping[str, Any]) -> o.OllamaLine:
        """One line of this endpoint."""


class ChatLines(LinesAnswer):
    """Lines of /api/chat."""

    def piece(self, words: Words, facts: Mapping[str, Any]) -> o.OllamaLine:
        said = o.Said("assistant", words.text, words.thinking or UNSET, words.calls or UNSET)
        return o.OllamaChatLine(message=said, **facts)


class GenerateLines(LinesAnswer):
    """Lines of /api/generate."""

    def piece(self, words: Words, facts: Mapping[str, Any]) -> o.OllamaLine:
        assert not words.calls, "this endpoint offers no tools"
        return o.OllamaGenerateLine(response=words.text, thinking=words.thinking or UNSET, **facts)


def _nanoseconds(seconds: float) -> int:
    """Never 0: clients divide by it."""
    return max(1, int(seconds * 1e9))
