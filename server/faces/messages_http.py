"""POST /v1/messages and /v1/messages/count_tokens as Anthropic's clients expect them. Knows no socket."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

from msgspec import UNSET

from headrace.runtime.interface import FinishReason, Refusal, Runtime, TokenStream, joined
from headrace.server.exchange import WITH_IMAGES, Answer, HttpReply, HttpRequest, HttpRoute, Wire
from headrace.server.faces.answers import StreamAnswer, ignored_header
from headrace.server.faces.asks import check_model
from headrace.server.faces.later import Later
from headrace.server.faces.messages_ask import count_ask, messages_ask
from headrace.server.faces.messages_blocks import AnswerBlocks
from headrace.server.faces.settings import FaceSettings, rfc3339
from headrace.server.ids import new_id
from headrace.server.protocol import messages as m
from headrace.server.protocol.codec import decode, encode
from headrace.server.protocol.error_body import ErrorBody
from headrace.server.protocol.errors import WireError

VERSION_HEADER = "anthropic-version"
Respond = Callable[[HttpRequest, Wire], HttpReply | Answer]
Body = TypeVar("Body", bound=m.CountTokensRequest)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def restated(reply: HttpReply, request_id: str) -> HttpReply:
    """A refusal of the front in Anthropic's shape."""
    said = decode(reply.body, ErrorBody).value.error
    headers = {**reply.headers, "request-id": request_id}
    return HttpReply(reply.status, _error_body(reply.status, said.message, request_id), headers=headers)


def _error_body(status: int, message: str, request_id: str, param: str | None = None) -> bytes:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    # The one refusal after which the SDK goes on by itself, with the whole history and without a thread.
    details = m.ErrorDetails("thread_unsupported_request") if param == "thread" else UNSET
    return encode(m.AnthropicError(m.AnthropicErrorSaid(kind, message, details), request_id))


def _said(error: WireError) -> str:
    """The sentence of an error, which is all that its shape has room for: it names the field."""
    message = error.fields().message
    return message if error.param is None or error.param in message else f"{error.param}: {message}"


def _refusal(error: WireError | Refusal, headers: Mapping[str, str]) -> HttpReply:
    wire = WireError.of(error)
    body = _error_body(wire.status, _said(wire), headers["request-id"], wire.param)
    return HttpReply(wire.status, body, headers={**headers, **wire.headers()})


class MessagesFace:
    """Turns one HTTP request into one answer."""

    def __init__(self, runtime: Runtime, settings: FaceSettings) -> None:
        self._runtime = runtime
        self._settings = settings

    def create(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /v1/messages."""
        headers = {"request-id": request.request_id}
        try:
            body = self._decoded(request, m.MessagesRequest, headers)
            answer = MessageAnswer(self._runtime, wire, headers, body)
            answer.open(messages_ask(body, request.tenant))
            return answer
        except (WireError, Refusal) as error:
            return _refusal(error, headers)

    def count_tokens(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /v1/messages/count_tokens."""
        headers = {"request-id": request.request_id}
        try:
            body = self._decoded(request, m.CountTokensRequest, headers)
            answer = Later(wire)

            def counted(count: int | Refusal) -> None:
                if isinstance(count, Refusal):
                    answer.settle(_refusal(count, headers))
                else:
                    answer.settle(HttpReply(200, encode(m.InputTokens(count)), headers=headers))

            self._runtime.count(count_ask(body, request.tenant), counted)
            return answer
        except (WireError, Refusal) as error:
            return _refusal(error, headers)

    def models(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /v1/models."""
        model = self._model()
        return HttpReply(
            200, encode(m.ModelPage((model,), model.id, model.id)), headers={"request-id": request.request_id}
        )

    def model(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /v1/models/{id}."""
        headers = {"request-id": request.request_id}
        try:
            check_model(request.parameters["id"], self._runtime.card, self._settings.model_aliases)
        except WireError as error:
            return _refusal(error, headers)
        return HttpReply(200, encode(self._model()), headers=headers)

    def _model(self) -> m.ModelInfo:
        card, limit = self._runtime.card, self._runtime.max_context
        return m.ModelInfo(card.id, card.id, rfc3339(card.created), limit, limit)

    def _decoded(self, request: HttpRequest, type_: type[Body], headers: dict[str, str]) -> Body:
        decoded = decode(request.body, type_, strict=self._settings.strict_fields)
        headers |= ignored_header(decoded.ignored)
        if decoded.ignored:
            self._settings.on_ignored_fields("messages", len(decoded.ignored))
        check_model(decoded.value.model, self._runtime.card, self._settings.model_aliases)
        return decoded.value


def routes(runtime: Runtime, settings: FaceSettings, others: Mapping[str, HttpRoute]) -> dict[str, HttpRoute]:
    """The paths of this face. The models share theirs with `others`, which go on to answer everybody else."""
    face = MessagesFace(runtime, settings)
    post = frozenset({"POST"})
    models, model = others["/v1/models"], others["/v1/models/{id:path}"]
    return {
        "/v1/models": dataclasses.replace(models, respond=_for_ours(face.models, models.respond)),
        "/v1/models/{id:path}": dataclasses.replace(model, respond=_for_ours(face.model, model.respond)),
        "/v1/messages": HttpRoute(post, face.create, body_limit=WITH_IMAGES, restate=restated),
        "/v1/messages/count_tokens": HttpRoute(
            post, face.count_tokens, body_limit=WITH_IMAGES, restate=restated
        ),
    }


def _for_ours(ours: Respond, theirs: Respond) -> Respond:
    """Anthropic's clients say in every request which version of its API they speak."""
    return lambda request, wire: (ours if VERSION_HEADER in request.headers else theirs)(request, wire)


def _event(event: m.MessageEvent) -> bytes:
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return b"event: " + tag.encode() + b"\ndata: " + encode(event) + b"\n\n"


class MessageAnswer(StreamAnswer):
    """One message. Its events begin with the first token, so that a request which cannot run is still refused."""

    silence = _event(m.Ping())
    last_part = b""  # message_stop has said it

    def __init__(
        self, runtime: Runtime, wire: Wire, headers: Mapping[str, str], request: m.MessagesRequest
    ) -> None:
        super().__init__(runtime, wire, headers, streamed=bool(request.stream))
        self._limit = request.max_tokens
        self._id = new_id("msg")
        self._model = runtime.card.id
        self._began = False
        thinking = request.thinking
        self._blocks = AnswerBlocks(hidden=thinking is not None and thinking.display == "omitted")
        self._delta_ends: tuple[int, bytes, bytes] | None = None

    def parts(self, stream: TokenStream) -> list[bytes]:
        """The events that the stream's news become."""
        if self._streamed and stream.finish is None and self._blocks.in_text:
            # Nearly every event is one of these, and all of a block differ in their text alone.
            text = stream.take_plain()
            if text is not None:
                return [self._text_delta(text)] if text else []
        pieces = stream.take_pieces()
        if stream.ended:
            pieces = joined([*pieces, *stream.tail_pieces])
        events = self._blocks.add(pieces)
        over = stream.ended and stream.finish in (FinishReason.STOP, FinishReason.LENGTH)
        if over:
            events += self._blocks.end()
            stop = m.StopFacts(*self._stop(stream))
            events += [m.MessageDelta(stop, _usage(stream)), m.MessageStop()]
        if not self._streamed or not events:
            return []
        if not self._began:
            self._began = True
            events.insert(0, m.MessageStart(self._message(stream, (), None, None)))
        return [_event(event) for event in events]

    def _text_delta(self, text: str) -> bytes:
        index = self._blocks.index
        if self._delta_ends is None or self._delta_ends[0] != index:
            begin, found, end = _event(m.BlockDelta(index, m.TextDelta(""))).partition(b'"text":""')
            assert found
            self._delta_ends = (index, begin + b'"text":', end)
        _, begin, end = self._delta_ends
        return b"%b%b%b" % (begin, encode(text), end)

    def whole(self, stream: TokenStream) -> bytes:
        """One message with all of its blocks; an answer that says nothing has none."""
        return encode(self._message(stream, self._blocks.whole(), *self._stop(stream)))

    def refused(self, error: WireError) -> HttpReply:
        """In Anthropic's shape."""
        return _refusal(error, self._headers)

    def failure(self, error: WireError) -> list[bytes]:
        """An `error` event is the last one."""
        kind = _TYPES.get(error.status, "api_error")
        return [_event(m.AnthropicError(m.AnthropicErrorSaid(kind, _said(error))))]

    def _message(
        self,
        stream: TokenStream,
        content: tuple[m.AnswerBlock, ...],
        reason: m.StopReason | None,
        sequence: str | None,
    ) -> m.AnthropicMessage:
        return m.AnthropicMessage(
            self._id, "assistant", self._model, content, reason, sequence, _usage(stream)
        )

    def _stop(self, stream: TokenStream) -> tuple[m.StopReason, str | None]:
        if stream.finish is FinishReason.STOP:
            if isinstance(stream.matched_stop, str):
                return "stop_sequence", stream.matched_stop
            return ("tool_use" if self._blocks.calls else "end_turn"), None
        if stream.usage.output_tokens < self._limit:
            return "model_context_window_exceeded", None
        return "max_tokens", None


def _usage(stream: TokenStream) -> m.MessageUsage:
    usage = stream.usage
    return m.MessageUsage(
        usage.prompt_tokens - usage.cached_tokens,
        usage.output_tokens,
        m.ThinkingTokens(usage.reasoning_tokens),
        usage.cached_tokens,
    )
