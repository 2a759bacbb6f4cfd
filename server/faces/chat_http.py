"""POST /v1/chat/completions: whole, or as server-sent chunks. Knows chat objects; knows no socket."""

from __future__ import annotations

from msgspec import UNSET

from headrace.runtime.interface import FinishReason, Refusal, Runtime, TokenStream
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import StreamAnswer, error_reply, ignored_header, sse
from headrace.server.faces.asks import chat_ask, check_model
from headrace.server.faces.settings import FaceSettings, new_id
from headrace.server.protocol import chat
from headrace.server.protocol.codec import decode, encode
from headrace.server.protocol.errors import WireError

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
        self._texts: list[str] = []
        self._spoke = False
        self._chunk_ends: tuple[bytes, bytes] | None = None

    def parts(self, stream: TokenStream) -> list[bytes]:
        """The role rides on the first text, the finish reason on the last text if it is known by then."""
        text = stream.take_text()
        if self._spoke and stream.finish is None and self._streamed and not self._usage_always:
            # In the middle of an answer chunks differ in their text alone.
            if not text:
                return []
            if self._chunk_ends is None:
                self._chunk_ends = self._cut_chunk()
            begin, end = self._chunk_ends
            return [b"%b%b%b" % (begin, encode(text), end)]
        if stream.ended:
            text += stream.tail
        finish = _FINISH.get(stream.finish) if stream.ended and stream.finish else None
        if not self._streamed:
            self._texts.append(text)
            return []
        parts: list[bytes] = []
        if text or finish is not None:
            delta = chat.Delta(
                role=UNSET if self._spoke else "assistant",
                content=text if text or not self._spoke else UNSET,
            )
            self._spoke = True
            usage = usage_of(stream) if self._usage_always else UNSET
            parts.append(sse(encode(self._chunk((chat.ChunkChoice(0, delta, finish),), usage))))
        if finish is not None and self._usage_chunk:
            parts.append(sse(encode(self._chunk((), usage_of(stream)))))
        return parts

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
        message = chat.AnswerMessage("assistant", "".join(self._texts))
        choice = chat.ChatChoice(0, message, _FINISH[stream.finish])
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
    )
