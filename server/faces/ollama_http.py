"""/api/chat, /api/generate and the small routes beside them as Ollama's clients expect them. Knows no socket."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from headrace.runtime.interface import (
    Ask,
    CallArguments,
    CallBegin,
    CallEnd,
    FinishReason,
    Piece,
    ReasoningPiece,
    Refusal,
    Runtime,
    Tenant,
    TextPiece,
    TokenStream,
    joined,
)
from headrace.server.exchange import Answer, HttpReply, HttpRequest, HttpRoute, Wire
from headrace.server.faces.answers import StreamAnswer, ignored_header
from headrace.server.faces.ollama_ask import chat_ask, check_ollama_model, generate_ask
from headrace.server.faces.settings import FaceSettings, new_id, rfc3339
from headrace.server.protocol import ollama as o
from headrace.server.protocol.codec import decode, encode
from headrace.server.protocol.error_body import ErrorBody
from headrace.server.protocol.errors import WireError

# Clients read /api/version as the level of the API and leave servers below some level alone: this is the Ollama
# whose API these routes follow, not a version of ours.
API_VERSION = "0.13.0"
NDJSON = "application/x-ndjson"
_DONE = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_NEVER = "2318-01-01T00:00:00Z"

Thinking = str | UnsetType
Calls = tuple[o.SaidCall, ...] | UnsetType
Body = TypeVar("Body", o.OllamaChatRequest, o.OllamaGenerateRequest, o.OllamaShowRequest, o.OllamaPullRequest)


def restated(reply: HttpReply, request_id: str) -> HttpReply:
    """A refusal of the front in Ollama's shape."""
    said = decode(reply.body, ErrorBody).value.error
    return HttpReply(reply.status, encode(o.OllamaError(said.message)), headers=reply.headers)


def _said(error: WireError) -> str:
    """The sentence of an error, which is all that its shape has room for: it names the field."""
    message = error.fields().message
    if error.param is None or error.param in message or error.code == "model_not_found":
        return message
    return f"{error.param}: {message}"


def _refusal(error: WireError | Refusal, headers: Mapping[str, str]) -> HttpReply:
    wire = WireError.of(error)
    return HttpReply(wire.status, encode(o.OllamaError(_said(wire))), headers={**headers, **wire.headers()})


class OllamaFace:
    """Turns one HTTP request into one answer."""

    def __init__(self, runtime: Runtime, settings: FaceSettings) -> None:
        self._runtime = runtime
        self._settings = settings

    def chat(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /api/chat."""
        return self._answer(request, wire, o.OllamaChatRequest, chat_ask, ChatLines)

    def generate(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /api/generate."""
        return self._answer(request, wire, o.OllamaGenerateRequest, generate_ask, GenerateLines)

    def _answer(
        self,
        request: HttpRequest,
        wire: Wire,
        type_: type[Body],
        to_ask: Callable[[Body, Tenant], Ask | None],
        lines: type[LinesAnswer],
    ) -> HttpReply | Answer:
        headers: dict[str, str] = {}
        try:
            body = self._decoded(request, type_, headers)
            assert isinstance(body, o.OllamaRequest)
            answer = lines(self._runtime, wire, headers, body, self._settings)
            ask = to_ask(body, request.tenant)
            if ask is None:
                return HttpReply(200, answer.loaded(), headers=headers)
            answer.open(ask)
            return answer
        except (WireError, Refusal) as error:
            return _refusal(error, headers)

    def _decoded(self, request: HttpRequest, type_: type[Body], headers: dict[str, str]) -> Body:
        decoded = decode(request.body, type_, strict=self._settings.strict_fields)
        headers |= ignored_header(decoded.ignored)
        if decoded.ignored:
            self._settings.on_ignored_fields("ollama", len(decoded.ignored))
        body = decoded.value
        name = body.model
        if isinstance(body, o.OllamaShowRequest | o.OllamaPullRequest) and name is None:
            name = body.name
        check_ollama_model(name, self._runtime.card, self._settings.model_aliases)
        return body

    # -- what there is ---

    def tags(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /api/tags: the one model."""
        return HttpReply(200, encode(o.OllamaModels((self._model(),))))

    def running(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /api/ps: the same model, loaded for good."""
        model = self._model()
        loaded = msgspec.structs.replace(
            model,
            expires_at=_NEVER,
            size_vram=model.size,
            context_length=self._runtime.max_context,
        )
        return HttpReply(200, encode(o.OllamaModels((loaded,))))

    def version(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /api/version."""
        return HttpReply(200, encode(o.OllamaVersion(API_VERSION)))

    def pull(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """POST /api/pull: programs ask for their model before they use it, and the served one is there."""
        headers: dict[str, str] = {}
        try:
            body = self._decoded(request, o.OllamaPullRequest, headers)
        except WireError as error:
            return _refusal(error, headers)
        done = encode(o.OllamaStatus("success"))
        if body.stream is False:
            return HttpReply(200, done, headers=headers)
        return HttpReply(200, done + b"\n", NDJSON, headers)

    def show(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """POST /api/show."""
        headers: dict[str, str] = {}
        try:
            self._decoded(request, o.OllamaShowRequest, headers)
        except WireError as error:
            return _refusal(error, headers)
        card, model = self._runtime.card, self._model()
        family = model.details.family
        defaults = self._runtime.prompter.defaults
        shown = o.OllamaShown(
            modelfile=f"FROM {card.id}\n",
            parameters="\n".join(f"{name:<30} {value:g}" for name, value in sorted(defaults.items())),
            template="",
            details=model.details,
            model_info={
                "general.architecture": family,
                "general.parameter_count": card.parameters,
                f"{family}.context_length": self._runtime.max_context,
                f"{family}.vocab_size": card.vocab_size,
            },
            capabilities=("completion", *sorted(self._runtime.prompter.abilities)),
            modified_at=model.modified_at,
        )
        return HttpReply(200, encode(shown), headers=headers)

    def _model(self) -> o.OllamaModel:
        card = self._runtime.card
        family = card.architecture.lower()
        name = f"{card.id}:latest"
        return o.OllamaModel(
            name=name,
            model=name,
            modified_at=rfc3339(card.created),
            size=card.parameters * _BYTES.get(card.dtype, 2),
            digest=hashlib.sha256(f"{card.id}\n{card.created}\n{card.parameters}".encode()).hexdigest(),
            details=o.Details(
                format="safetensors",
                family=family,
                families=(family,),
                parameter_size=_size(card.parameters),
                quantization_level={"bfloat16": "BF16", "float16": "F16"}.get(card.dtype, "F32"),
            ),
        )


def routes(runtime: Runtime, settings: FaceSettings) -> dict[str, HttpRoute]:
    """The paths of this face."""
    face = OllamaFace(runtime, settings)
    get, post = frozenset({"GET"}), frozenset({"POST"})
    return {
        "/api/chat": HttpRoute(post, face.chat, restate=restated),
        "/api/generate": HttpRoute(post, face.generate, restate=restated),
        "/api/pull": HttpRoute(post, face.pull, restate=restated),
        "/api/show": HttpRoute(post, face.show, restate=restated),
        "/api/tags": HttpRoute(get, face.tags, restate=restated),
        "/api/ps": HttpRoute(get, face.running, restate=restated),
        "/api/version": HttpRoute(get, face.version, restate=restated),
    }


def _size(parameters: int) -> str:
    if parameters >= 10**9:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.2f}M"


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
        self._texts: list[str] = []  # these three are for the whole reply
        self._thoughts: list[str] = []
        self._calls: list[o.SaidCall] = []
        self._call_count = 0
        self._called, self._arguments = "", ""  # of the call that is being written
        # Every line must be an object, so a silence is broken by a piece of nothing.
        self.silence = self._line("")

    def parts(self, stream: TokenStream) -> list[bytes]:
        """The lines that the stream's news become."""
        pieces = stream.take_pieces()
        if stream.ended:
            pieces = joined([*pieces, *stream.tail_pieces])
        parts = [line for piece in pieces if (line := self._told(piece)) is not None]
        if not self._streamed:
            return []
        if stream.ended and stream.finish in _DONE:
            parts.append(self._last(stream, "") + b"\n")
        return parts

    def _told(self, piece: Piece) -> bytes | None:
        """The line of one piece of a stream; a whole reply keeps what it says."""
        text, thinking = "", ""
        calls: tuple[o.SaidCall, ...] = ()
        match piece:
            case TextPiece():
                text = piece.text
            case ReasoningPiece():
                thinking = piece.text
            case CallBegin():
                self._called, self._arguments = piece.name, ""
                return None
            case CallArguments():
                self._arguments += piece.text
                return None
            case CallEnd() if piece.whole:
                calls = (self._whole_call(),)
            case CallEnd():
                # Arguments are an object here: of a call that went wrong only what was said can be told.
                text = f"{self._called}({self._arguments}"
        if self._streamed:
            return self._line(text, thinking, calls)
        self._texts.append(text)
        self._thoughts.append(thinking)
        self._calls += calls
        return None

    def _whole_call(self) -> o.SaidCall:
        # The model's own text is JSON already, and no reader of ours changes a digit of it.
        given = msgspec.Raw(self._arguments.encode() or b"{}")
        function = o.SaidFunction(self._called, given, self._call_count)
        self._call_count += 1
        return o.SaidCall(new_id("call"), function)

    def whole(self, stream: TokenStream) -> bytes:
        """One object: the last line, with everything that was said."""
        return self._last(stream, "".join(self._texts), "".join(self._thoughts), tuple(self._calls))

    def refused(self, error: WireError) -> HttpReply:
        """In Ollama's shape."""
        return _refusal(error, self._headers)

    def failure(self, error: WireError) -> list[bytes]:
        """A line with the error is the last one."""
        return [encode(o.OllamaError(_said(error))) + b"\n"]

    def loaded(self) -> bytes:
        """The whole reply to a request that asks for nothing: the model is there."""
        return encode(self._object("", done=True, done_reason="load"))

    def _line(self, text: str, thinking: str = "", calls: tuple[o.SaidCall, ...] = ()) -> bytes:
        return encode(self._object(text, thinking, calls, done=False)) + b"\n"

    def _last(
        self, stream: TokenStream, text: str, thinking: str = "", calls: tuple[o.SaidCall, ...] = ()
    ) -> bytes:
        assert stream.finish is not None
        times, usage = stream.times, stream.usage
        assert times.ended is not None
        admitted = times.ended if times.admitted is None else times.admitted
        first = times.ended if times.first_token is None else times.first_token
        return encode(
            self._object(
                text,
                thinking,
                calls,
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

    def _object(
        self, text: str, thinking: str = "", calls: tuple[o.SaidCall, ...] = (), **facts: Any
    ) -> o.OllamaLine:
        facts |= {"model": self._model, "created_at": rfc3339(self._now())}
        return self.piece(text, thinking or UNSET, calls or UNSET, facts)

    @abstractmethod
    def piece(self, text: str, thinking: Thinking, calls: Calls, facts: Mapping[str, Any]) -> o.OllamaLine:
        """One line of this endpoint."""


class ChatLines(LinesAnswer):
    """Lines of /api/chat."""

    def piece(self, text: str, thinking: Thinking, calls: Calls, facts: Mapping[str, Any]) -> o.OllamaLine:
        return o.OllamaChatLine(message=o.Said("assistant", text, thinking, calls), **facts)


class GenerateLines(LinesAnswer):
    """Lines of /api/generate."""

    def piece(self, text: str, thinking: Thinking, calls: Calls, facts: Mapping[str, Any]) -> o.OllamaLine:
        assert calls is UNSET, "this endpoint offers no tools"
        return o.OllamaGenerateLine(response=text, thinking=thinking, **facts)


def _nanoseconds(seconds: float) -> int:
    """Never 0: clients divide by it."""
    return max(1, int(seconds * 1e9))
