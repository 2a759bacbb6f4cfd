"""POST /v1/chat/completions: whole, or as server-sent chunks. Knows chat objects; knows no socket."""

from __future__ import annotations

from msgspec import UNSET, UnsetType, structs

from headrace.runtime.interface import Refusal, Runtime, TokenStream
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import error_reply, ignored_header, sse
from headrace.server.faces.asks import chat_ask, check_model
from headrace.server.faces.chat_choice import ChatSpeaker
from headrace.server.faces.many import ManyAnswer
from headrace.server.faces.settings import FaceSettings
from headrace.server.faces.telemetry import summary_of
from headrace.server.faces.usage import usage_of_many
from headrace.server.ids import new_id
from headrace.server.protocol import chat
from headrace.server.protocol.codec import decode, encode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.extension import Summary

CONTENT_IS = b'"content":'


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
            _check_telemetry(decoded.value)
            ask = chat_ask(decoded.value, request.tenant)
            answer = ChatAnswer(self._runtime, wire, headers, decoded.value, self._settings)
            answer.open((ask,), decoded.value.n or 1)
            if answer.measured:
                self._runtime.meter(answer.streams[0], None)
            return answer
        except (WireError, Refusal) as error:
            return error_reply(error, headers)


def _check_telemetry(request: chat.ChatRequest) -> None:
    """Raise WireError where the summary would have no place, or would be of several answers."""
    if request.x_telemetry != "response":
        return
    if (request.n or 1) > 1:
        raise WireError("invalid_value", "x_telemetry: tells of one answer; n is more", "x_telemetry")
    if request.stream and not (request.stream_options and request.stream_options.include_usage):
        what = "x_telemetry: comes on the usage chunk, which stream_options.include_usage asks for"
        raise WireError("invalid_value", what, "x_telemetry")


class ChatAnswer(ManyAnswer):
    """One chat completion: `n` answers to one prompt."""

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
        self._copies = request.n or 1
        self.measured = request.x_telemetry == "response"  # it tells where its time went
        self._speakers = [ChatSpeaker(index, settings.reasoning_field) for index in range(self._copies)]
        self._chunk_ends: dict[int, tuple[bytes, bytes]] = {}

    def parts(self, index: int, stream: TokenStream) -> list[bytes]:
        """The role rides on the first text, the finish reason on the last text if it is known by then."""
        speaker = self._speakers[index]
        if not self._streamed:
            speaker.collect(stream)
            return []
        if speaker.told and stream.finish is None and stream.logprobs is None and not self._usage_always:
            # In the middle of an answer chunks differ in their text alone.
            text = stream.take_plain()
            if text is not None:
                if not text:
                    return []
                begin, end = self._chunk_ends.get(index) or self._cut_chunk(index)
                return [b"%b%b%b" % (begin, encode(text), end)]
        return [
            sse(encode(self._chunk((choice,), self._usage() if self._usage_always else UNSET)))
            for choice in speaker.chunks(stream)
        ]

    def _cut_chunk(self, index: int) -> tuple[bytes, bytes]:
        """The event of a chunk before and after its text. The name cannot stand in a value: the quotation marks in
        there would be escaped."""
        delta = chat.Delta(content="")
        sample = sse(encode(self._chunk((chat.ChunkChoice(index, delta, None),), UNSET)))
        begin, found, end = sample.partition(CONTENT_IS + b'""')
        assert found
        self._chunk_ends[index] = begin + CONTENT_IS, end
        return self._chunk_ends[index]

    def ending(self) -> list[bytes]:
        """The chunk that holds nothing but usage, if it is asked for."""
        if not self._usage_chunk:
            return []
        chunk = self._chunk((), self._usage())
        if self.measured:
            chunk = structs.replace(chunk, x_telemetry=self._summary())
        return [sse(encode(chunk))]

    def whole(self) -> bytes:
        """One object with all messages."""
        choices = tuple(
            speaker.choice(stream) for speaker, stream in zip(self._speakers, self.streams, strict=True)
        )
        return encode(
            chat.ChatCompletion(
                self._id,
                "chat.completion",
                self._created,
                self._model,
                choices,
                self._usage(),
                self._summary() if self.measured else UNSET,
            )
        )

    def _summary(self) -> Summary:
        (stream,) = self.streams
        assert stream.meter is not None
        return summary_of(stream, stream.meter)

    def _usage(self) -> chat.ChatUsage:
        return usage_of_many(self.streams, self._copies)

    def failure(self, error: WireError) -> list[bytes]:
        """A nested error as the last data before [DONE]."""
        return [sse(encode(error.fields().nested()))]

    def _chunk(
        self, choices: tuple[chat.ChunkChoice, ...], usage: chat.ChatUsage | UnsetType
    ) -> chat.ChatChunk:
        return chat.ChatChunk(
            self._id,
            "chat.completion.chunk",
            self._created,
            self._model,
            choices,
            usage,
        )
