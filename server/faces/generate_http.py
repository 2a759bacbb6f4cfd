"""POST /generate and POST /abort_request: SGLang's native shape. Knows its objects; knows no socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from headrace.runtime.interface import (
    Ask,
    FinishReason,
    Prompter,
    Refusal,
    Runtime,
    Tenant,
    TokenStream,
)
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import error_reply, ignored_header, sse, stream_error
from headrace.server.faces.asks import check_model
from headrace.server.faces.elsewhere import Elsewhere
from headrace.server.faces.generate_asks import Wanted, generate_wishes
from headrace.server.faces.many import ManyAnswer
from headrace.server.faces.settings import FaceSettings
from headrace.server.faces.token_logprobs import shown
from headrace.server.protocol import generate as wire
from headrace.server.protocol.codec import TOKEN_IDS, decode, encode
from headrace.server.protocol.errors import WireError

ABORTED = "Aborted by AbortReq."


class GenerateFace:
    """Turns requests into answers, and knows which of them run under which name."""

    def __init__(self, runtime: Runtime, settings: FaceSettings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._running: dict[str, dict[GenerateAnswer, None]] = {}  # by the id of their tenant

    def respond(self, request: HttpRequest, wire_: Wire) -> HttpReply | Answer:
        """POST /generate."""
        headers: dict[str, str] = {}
        try:
            decoded = decode(
                request.body,
                wire.GenerateRequest,
                strict=self._settings.strict_fields,
                entries=TOKEN_IDS,
            )
            headers = ignored_header(decoded.ignored)
            if decoded.ignored:
                self._settings.on_ignored_fields("generate", len(decoded.ignored))
            if decoded.value.model is not None:
                check_model(decoded.value.model, self._runtime.card, self._settings.model_aliases)
            wanted = generate_wishes(decoded.value, request.tenant)
            answer = GenerateAnswer(
                self._runtime, wire_, headers, wanted, self, request.tenant, bool(decoded.value.stream)
            )
            answer.open(wanted.asks, wanted.copies)
            self._running.setdefault(request.tenant.id, {})[answer] = None
            return answer
        except (WireError, Refusal) as error:
            return error_reply(error, headers)

    def abort(self, request: HttpRequest, wire_: Wire) -> HttpReply:
        """POST /abort_request: 200 whether or not anything ran under that name."""
        try:
            decoded = decode(request.body, wire.AbortRequest, strict=self._settings.strict_fields)
        except WireError as error:
            return error_reply(error)
        body = decoded.value
        if decoded.ignored:
            self._settings.on_ignored_fields("abort_request", len(decoded.ignored))
        if body.rid is None and not body.abort_all:
            return error_reply(WireError("missing_required_parameter", "give rid or abort_all", "rid"))
        for answer in list(self._running.get(request.tenant.id, ())):
            answer.abort(None if body.abort_all else body.rid, body.abort_message or ABORTED)
        return HttpReply(200, b"{}", headers=ignored_header(decoded.ignored))

    def forget(self, tenant: Tenant, answer: GenerateAnswer) -> None:
        """The answer is over."""
        running = self._running.get(tenant.id, {})
        running.pop(answer, None)
        if not running:
            self._running.pop(tenant.id, None)


class Item:
    """What has been read of one stream, in the words of the wire."""

    def __init__(
        self, rid: str, ask: Ask, prompter: Prompter, elsewhere: Elsewhere, *, silent: bool, texts: bool
    ) -> None:
        """elsewhere: where a long prompt is named. silent: the one token that is generated is no part of it. texts:
        logprobs name their tokens."""
        self.rid = rid
        self.aborted: str | None = None  # why, in the words of who did it
        self.text = ""
        self.ids: list[int] = []
        self._ask = ask
        self._prompter = prompter
        self._silent = silent
        self._texts = texts
        self._elsewhere = elsewhere
        self._of_prompt: dict[str, Any] = {"input_token_logprobs": []}  # filled when they are named
        if ask.logprobs:
            self._of_prompt["input_top_logprobs"] = []
        self._first = True  # nothing was told yet
        self._values: list[wire.Logprob] = []
        self._tops: list[list[wire.Logprob]] = []

    def ready(self, stream: TokenStream) -> bool:
        """False while the logprobs of the prompt are being named; nothing may be read until then."""
        if self._ask.logprobs is None or not stream.head:
            return True
        found = stream.prompt_logprobs
        names = 0 if found is None else len(found) * (1 + found.width)
        return self._elsewhere.finished(names, lambda: self._name_prompt(stream))

    def read(self, stream: TokenStream) -> bool:
        """Take what waits in the stream; True if there is something to tell."""
        entries, found = stream.take(), stream.take_logprobs()
        if not self._silent:
            self.ids += [entry.token for entry in entries]
            self.text += "".join([entry.text for entry in entries]) + (stream.tail if stream.ended else "")
            for each in found:
                self._values.append(self._named(each.token, each.logprob))
                self._tops.append([self._named(*ranked) for ranked in each.top])
        return bool(entries) or stream.ended

    def meta(self, stream: TokenStream) -> wire.MetaFields:
        """Everything about the answer so far. Of the prompt's logprobs only the first and the last event
        tell: they do not change, and in between they would be nearly all that is sent."""
        times, usage, ended = stream.times, stream.usage, stream.ended
        meta = wire.MetaFields(
            id=self.rid,
            finish_reason=self._finish(stream) if ended else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=len(self.ids),
            cached_tokens=usage.cached_tokens,
            e2e_latency=times.ended - times.opened if ended and times.ended is not None else UNSET,
        )
        if self._ask.logprobs is None:
            return meta
        more: dict[str, Any] = {"output_token_logprobs": self._values}
        if self._ask.logprobs:
            more["output_top_logprobs"] = self._tops
        if self._first or ended:
            self._first = False
            more |= self._of_prompt
        return msgspec.structs.replace(meta, **more)

    def _name_prompt(self, stream: TokenStream) -> None:
        start, found = self._ask.prompt_logprobs, stream.prompt_logprobs
        values: list[wire.Logprob] = []
        tops: list[list[wire.Logprob] | None] = []
        if start is not None and found is not None and start <= len(stream.prompt_ids):
            values.append(self._named(stream.prompt_ids[start - 1], None))
            tops.append(None)
            for place, token in enumerate(stream.prompt_ids[start:]):
                told = found.at(place, token, found.width)
                values.append(self._named(token, told.logprob))
                tops.append([self._named(*ranked) for ranked in told.top])
        self._of_prompt = {"input_token_logprobs": values}
        if self._ask.logprobs:
            self._of_prompt["input_top_logprobs"] = tops

    def _named(self, token: int, value: float | None) -> wire.Logprob:
        return value, token, shown(self._prompter, token) if self._texts else None

    def _finish(self, stream: TokenStream) -> dict[str, Any]:
        if self._silent and stream.finish in (FinishReason.STOP, FinishReason.LENGTH):
            return {"type": "length", "length": 0}
        if stream.finish is FinishReason.STOP:
            return {"type": "stop", "matched": stream.matched_stop}
        if stream.finish is FinishReason.LENGTH:
            return {"type": "length", "length": len(self.ids)}
        return {"type": "abort", "message": self.aborted or stream_error(stream).message}


class GenerateAnswer(ManyAnswer):
    """All answers of one request."""

    pings = False  # the clients of this route read lines, and take a comment for an event

    def __init__(
        self,
        runtime: Runtime,
        wire_: Wire,
        headers: Mapping[str, str],
        wanted: Wanted,
        face: GenerateFace,
        tenant: Tenant,
        streamed: bool,
    ) -> None:
        super().__init__(runtime, wire_, headers, streamed=streamed)
        self._wanted = wanted
        self._face = face
        self._tenant = tenant
        self._items = [
            Item(
                rid if wanted.copies == 1 else f"{rid}_{copy}",
                ask,
                runtime.prompter,
                Elsewhere(runtime, wire_),
                silent=silent,
                texts=wanted.texts,
            )
            for rid, ask, silent in zip(wanted.rids, wanted.asks, wanted.silent, strict=True)
            for copy in range(wanted.copies)
        ]

    def abort(self, name: str | None, why: str) -> None:
        """End the answers to the prompts of that name (None: all), with what they have said so far."""
        for index, stream in enumerate(self.streams):
            prompt = index // self._wanted.copies
            known = (self._wanted.names[prompt], self._wanted.rids[prompt], self._items[index].rid)
            if stream.finish is None and (name is None or name in known):
                self._items[index].aborted = why
                self._runtime.cancel(stream)

    def failed(self, stream: TokenStream) -> bool:
        """An answer that was cut off is an answer here: its finish_reason says so."""
        return stream.finish is FinishReason.ERROR

    def parts(self, index: int, stream: TokenStream) -> list[bytes]:
        """One event with everything so far."""
        if not self._items[index].ready(stream):
            return []
        news = self._items[index].read(stream)
        if not self._streamed or not news or (stream.ended and self.failed(stream)):
            return []
        return [sse(encode(self._generated(index)))]

    def whole(self) -> bytes:
        """One object, or a list of them where there are several answers or the prompts were a list."""
        told = [self._generated(index) for index in range(len(self.streams))]
        return encode(told if self._wanted.many else told[0])

    def failure(self, error: WireError) -> list[bytes]:
        """A nested error as the last data before [DONE]."""
        return [sse(encode(error.fields().nested()))]

    def over(self) -> None:
        """Nothing runs under its names any more."""
        self._face.forget(self._tenant, self)

    def _generated(self, index: int) -> wire.Generated:
        item = self._items[index]
        number = index if self._wanted.many else UNSET
        return wire.Generated(item.text, item.ids, item.meta(self.streams[index]), number)
