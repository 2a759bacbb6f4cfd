"""POST /v1/chat/completions: whole, or as server-sent chunks. Knows chat objects; knows no socket."""

from __future__ import annotations

from typing import Any

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
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import StreamAnswer, error_reply, ignored_header, sse
from headrace.server.faces.asks import chat_ask, check_model
from headrace.server.faces.settings import FaceSettings, new_id
from headrace.server.protocol import chat
from headrace.server.protocol.codec import decode, encode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.tools import CallDelta, CalledFunction, CallFunctionDelta, ChatCall

CONTENT_IS = b'"content":'
_FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class ChatFace:
    """Turns one HTTP request into one answer."""

    def __init__(self, runtime: Runtime, settings: FaceSettings) -> None:
        self._runtime = runtime
        self._settings = settings

    def respond(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """See exchange.HttpRoute."""
        headers: dict[str, str] = {}
        try:
            decoded = decode(request.body, chat.ChatRequest, strict=self._settings.strict_fields)
            headers = ignored_header(decoded.ignored)
            if decoded.ignored:
                self._settings.on_ignored_fields("chat", len(decoded.ignored))
            check_model(decoded.value.model, self._runtime.card, self._settings.model_aliases)
            ask = chat_ask(decoded.value, request.tenant)
            answer = ChatAnswer(self._runtime, wire, headers, decoded.value, self._settings)
            answer.open(ask)
            return answer
        except (WireError, Refusal) as error:
            return error_reply(error, headers)


class ChatAnswer(StreamAnswer):
    """One chat completion."""

    def __init__(
        self,
        runtime: Runtime,
        wire: Wire,
        headers: dict[str, str],
        request: chat.ChatRequest,
        settings: FaceSettings,
    ) -> None:
        super().__init__(runtime, wire, headers, streamed=bool(request.stream))
        options = request.stream_options
        self._usage_chunk = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)
        self._id = new_id("chatcmpl").replace("_", "-", 1)
        self._created = int(settings.now())
        self._model = runtime.card.id
        self._reasoning_field = settings.reasoning_field
        self._said: list[Piece] = []  # of a whole reply
        self._calls = 0  # calls that have begun
        self._whole_calls = 0
        self._spoke = False
        self._chunk_ends: tuple[bytes, bytes] | None = None

    def parts(self, stream: TokenStream) -> list[bytes]:
        """The role rides on the first text, the finish reason on the last text if it is known by then."""
        if self._spoke and stream.finish is None and self._streamed and not self._usage_always:
            # In the middle of an answer chunks differ in their text alone.
            text = stream.take_plain()
            if text is not None:
                if not text:
                    return []
                if self._chunk_ends is None:
                    self._chunk_ends = self._cut_chunk()
                begin, end = self._chunk_ends
                return [b"%b%b%b" % (begin, encode(text), end)]
        pieces = stream.take_pieces()
        if stream.ended:
            pieces = joined([*pieces, *stream.tail_pieces])
        if not self._streamed:
            self._said += pieces
            return []
        deltas = [delta for piece in pieces if (delta := self._delta(piece)) is not None]
        finish = self._finish(stream)
        if finish is not None and not deltas:
            deltas = [self._first({} if self._spoke else {"content": ""})]
        parts = []
        for index, delta in enumerate(deltas, 1):
            choice = chat.ChunkChoice(0, delta, finish if index == len(deltas) else None)
            usage = usage_of(stream) if self._usage_always else UNSET
            parts.append(sse(encode(self._chunk((choice,), usage))))
        if finish is not None and self._usage_chunk:
            parts.append(sse(encode(self._chunk((), usage_of(stream)))))
        return parts

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
        role = {} if self._spoke else {"role": "assistant"}
        self._spoke = True
        return chat.Delta(**role, **fields)

    def _finish(self, stream: TokenStream) -> str | None:
        """The finish reason, once everything was read and if the stream ended well."""
        if not stream.ended or stream.finish not in _FINISH:
            return None
        reason = _FINISH[stream.finish]
        return "tool_calls" if reason == "stop" and self._whole_calls else reason

    def _cut_chunk(self) -> tuple[bytes, bytes]:
        """The event of a chunk before and after its text. The name cannot stand in a value: the quotation marks in
        there would be escaped."""
        delta = chat.Delta(content="")
        sample = sse(encode(self._chunk((chat.ChunkChoice(0, delta, None),), UNSET)))
        begin, found, end = sample.partition(CONTENT_IS + b'""')
        assert found
        return begin + CONTENT_IS, end

    def whole(self, stream: TokenStream) -> bytes:
        """One object with the whole text."""
        assert stream.finish is not None
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
        choice = chat.ChatChoice(0, message, finish)
        return encode(
            chat.ChatCompletion(
                self._id, "chat.completion", self._created, self._model, (choice,), usage_of(stream)
            )
        )

    def failure(self, error: WireError) -> list[bytes]:
        """A nested error as the last data before [DONE]."""
        return [sse(encode(error.fields().nested()))]

    def _chunk(self, choices: tuple[chat.ChunkChoice, ...], usage: chat.ChatUsage | object) -> chat.ChatChunk:
        return chat.ChatChunk(
            self._id,
            "chat.completion.chunk",
            self._created,
            self._model,
            choices,
            usage,  # type: ignore[arg-type]
        )


def usage_of(stream: TokenStream) -> chat.ChatUsage:
    """The token counts of a stream in the words of the chat API."""
    usage = stream.usage
    return chat.ChatUsage(
        usage.prompt_tokens,
        usage.output_tokens,
        usage.prompt_tokens + usage.output_tokens,
        chat.PromptDetails(usage.cached_tokens),
        chat.CompletionDetails(usage.reasoning_tokens),
    )
