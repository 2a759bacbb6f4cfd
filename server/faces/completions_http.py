"""POST /v1/completions: whole, or as server-sent chunks. Knows completion objects; knows no socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType

from headrace.runtime.interface import Ask, FinishReason, Prompter, Refusal, Runtime, TokenStream
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import error_reply, ignored_header, sse
from headrace.server.faces.asks import check_model
from headrace.server.faces.elsewhere import Elsewhere
from headrace.server.faces.many import ManyAnswer
from headrace.server.faces.prompt_asks import completion_asks
from headrace.server.faces.settings import FaceSettings
from headrace.server.faces.token_logprobs import CompletionColumns
from headrace.server.faces.usage import usage_of_many
from headrace.server.ids import new_id
from headrace.server.protocol import completions as wire
from headrace.server.protocol.codec import TOKEN_IDS, decode, encode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.logprobs import CompletionLogprobs
from headrace.server.protocol.openai_request import ChatUsage

TEXT_IS = b'"text":'
_FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class CompletionsFace:
    """Turns one HTTP request into one answer."""

    def __init__(self, runtime: Runtime, settings: FaceSettings) -> None:
        self._runtime = runtime
        self._settings = settings

    def respond(self, request: HttpRequest, wire_: Wire) -> HttpReply | Answer:
        """See exchange.HttpRoute."""
        headers: dict[str, str] = {}
        try:
            decoded = decode(
                request.body,
                wire.CompletionRequest,
                strict=self._settings.strict_fields,
                entries=TOKEN_IDS,
            )
            headers = ignored_header(decoded.ignored)
            if decoded.ignored:
                self._settings.on_ignored_fields("completions", len(decoded.ignored))
            check_model(decoded.value.model, self._runtime.card, self._settings.model_aliases)
            asks = completion_asks(decoded.value, request.tenant)
            answer = CompletionAnswer(self._runtime, wire_, headers, decoded.value, asks, self._settings)
            answer.open(asks, decoded.value.n or 1)
            return answer
        except (WireError, Refusal) as error:
            return error_reply(error, headers)


class Choice:
    """What is told of one stream: the prompt first, if it is echoed, then the text as it becomes certain."""

    def __init__(
        self, index: int, ask: Ask, prompter: Prompter, elsewhere: Elsewhere, *, silent: bool
    ) -> None:
        """elsewhere: where a long prompt is named. silent: the one token that is generated is no part of it."""
        self.index = index
        self.texts: list[str] = []
        self.begun = False  # a chunk of it went out
        self._echoed = not ask.echo
        self._ask = ask
        self._prompter = prompter
        self._elsewhere = elsewhere
        self._prompt = ""  # what is echoed, once it is named
        self._silent = silent
        self._columns: CompletionColumns | None = None
        if ask.logprobs is not None:
            self._columns = CompletionColumns(prompter, begins=ask.echo)

    def ready(self, stream: TokenStream) -> bool:
        """False while an echoed prompt is being named; nothing may be read until then."""
        if self._echoed or not stream.head:
            return True
        names = len(stream.prompt_ids) * (1 + (self._ask.logprobs or 0))
        return self._elsewhere.finished(names, lambda: self._echo(stream))

    def read(self, stream: TokenStream) -> str:
        """What waits in the stream, as text of this choice."""
        text = stream.take_text()
        if stream.ended:
            text += stream.tail
        found = stream.take_logprobs()
        if self._silent:
            text, found = "", []
        if not self._echoed and stream.head:
            self._echoed = True
            text = self._prompt + text
        if self._columns is not None:
            for each in found:
                self._columns.add(each)
        return text

    def _echo(self, stream: TokenStream) -> None:
        ids = stream.prompt_ids
        if self._columns is not None and stream.prompt_logprobs is not None:
            assert self._ask.logprobs is not None
            self._columns.add_unknown(ids[0])
            for place, token in enumerate(ids[1:]):
                self._columns.add(stream.prompt_logprobs.at(place, token, stream.prompt_logprobs.width))
        prompt = self._ask.prompt
        self._prompt = prompt if isinstance(prompt, str) else self._prompter.detokenize(ids)

    def logprobs(self) -> CompletionLogprobs | None:
        """Those of the tokens read since the last call; None where they are not asked for."""
        return None if self._columns is None else self._columns.take()

    def finish(self, stream: TokenStream) -> str | None:
        """Why it ended, once everything was read."""
        if not stream.ended or stream.finish is None:
            return None
        return "length" if self._silent and stream.finish in _FINISH else _FINISH.get(stream.finish)


class CompletionAnswer(ManyAnswer):
    """The completions of all prompts of one request."""

    def __init__(
        self,
        runtime: Runtime,
        wire_: Wire,
        headers: Mapping[str, str],
        request: wire.CompletionRequest,
        asks: Sequence[Ask],
        settings: FaceSettings,
    ) -> None:
        super().__init__(runtime, wire_, headers, streamed=bool(request.stream))
        options = request.stream_options
        self._usage_chunk = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)
        self._id = new_id("cmpl").replace("_", "-", 1)
        self._created = int(settings.now())
        self._model = runtime.card.id
        self._copies = request.n or 1
        self._silent = request.max_tokens == 0
        self._choices = [
            Choice(
                place * self._copies + copy,
                ask,
                runtime.prompter,
                Elsewhere(runtime, wire_),
                silent=self._silent,
            )
            for place, ask in enumerate(asks)
            for copy in range(self._copies)
        ]
        self._wanted = asks[0].logprobs is not None
        self._chunk_ends: dict[int, tuple[bytes, bytes]] = {}

    def parts(self, index: int, stream: TokenStream) -> list[bytes]:
        """The finish reason rides on the last text if it is known by then."""
        choice = self._choices[index]
        if not choice.ready(stream):
            return []
        text = choice.read(stream)
        if not self._streamed:
            choice.texts.append(text)
            return []
        if choice.begun and stream.finish is None and not self._usage_always and not self._wanted:
            # In the middle of an answer chunks differ in their text alone.
            if not text:
                return []
            begin, end = self._chunk_ends.get(index) or self._cut_chunk(index)
            return [b"%b%b%b" % (begin, encode(text), end)]
        finish = choice.finish(stream)
        if not text and finish is None:
            return []
        choice.begun = True
        told = wire.CompletionChoice(choice.index, text, choice.logprobs(), finish)
        return [sse(encode(self._chunk((told,), self._usage() if self._usage_always else UNSET)))]

    def _cut_chunk(self, index: int) -> tuple[bytes, bytes]:
        """The event of a chunk before and after its text. The name cannot stand in a value: the quotation marks in
        there would be escaped."""
        told = wire.CompletionChoice(self._choices[index].index, "", None, None)
        begin, found, end = sse(encode(self._chunk((told,), UNSET))).partition(TEXT_IS + b'""')
        assert found
        self._chunk_ends[index] = begin + TEXT_IS, end
        return self._chunk_ends[index]

    def ending(self) -> list[bytes]:
        """The chunk that holds nothing but usage, if it is asked for."""
        return [sse(encode(self._chunk((), self._usage())))] if self._usage_chunk else []

    def whole(self) -> bytes:
        """One object with all texts."""
        choices = tuple(
            wire.CompletionChoice(
                choice.index, "".join(choice.texts), choice.logprobs(), choice.finish(stream)
            )
            for choice, stream in zip(self._choices, self.streams, strict=True)
        )
        return encode(self._chunk(choices, self._usage()))

    def failure(self, error: WireError) -> list[bytes]:
        """A nested error as the last data before [DONE]."""
        return [sse(encode(error.fields().nested()))]

    def _chunk(
        self, choices: tuple[wire.CompletionChoice, ...], usage: ChatUsage | UnsetType
    ) -> wire.Completion:
        return wire.Completion(self._id, "text_completion", self._created, self._model, choices, usage)

    def _usage(self) -> ChatUsage:
        return usage_of_many(self.streams, self._copies, silent=self._silent)
