"""Text to ids and back, and what the tokenizer is. Knows no generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.runtime.interface import Ask, Refusal, Runtime
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import error_reply, ignored_header
from headrace.server.faces.asks import chat_ending, chat_messages, check_model
from headrace.server.faces.later import Later
from headrace.server.faces.settings import FaceSettings
from headrace.server.protocol import fields as f
from headrace.server.protocol import tokenizing as wire
from headrace.server.protocol.codec import TOKEN_IDS, decode, encode
from headrace.server.protocol.errors import WireError


class TokenizerFace:
    """The tokenizer as a service. Text is worked on in the threads that prepare prompts."""

    def __init__(self, runtime: Runtime, settings: FaceSettings) -> None:
        self._runtime = runtime
        self._settings = settings

    def tokenize(self, request: HttpRequest, wire_: Wire) -> HttpReply | Answer:
        """POST /tokenize."""
        headers: dict[str, str] = {}
        try:
            decoded = decode(request.body, wire.TokenizeRequest, strict=self._settings.strict_fields)
            headers = self._headers("tokenize", decoded.ignored, decoded.value.model)
            work = self._tokenizing(decoded.value, request)
        except (WireError, Refusal) as error:
            return error_reply(error, headers)
        return self._later(wire_, headers, len(request.body), work)

    def detokenize(self, request: HttpRequest, wire_: Wire) -> HttpReply | Answer:
        """POST /detokenize."""
        headers: dict[str, str] = {}
        try:
            decoded = decode(
                request.body, wire.DetokenizeRequest, strict=self._settings.strict_fields, entries=TOKEN_IDS
            )
            headers = self._headers("detokenize", decoded.ignored, decoded.value.model)
        except WireError as error:
            return error_reply(error, headers)
        prompter, body = self._runtime.prompter, decoded.value

        def work() -> wire.Detokenized:
            for token in body.tokens:
                if token >= prompter.embedding_rows:
                    raise WireError(
                        "invalid_value", f"tokens: token ids lie in [0, {prompter.embedding_rows})", "tokens"
                    )
            text = prompter.detokenize(body.tokens, special=body.skip_special_tokens is False)
            return wire.Detokenized(text, text)

        return self._later(wire_, headers, len(request.body), work)

    def facts(self, request: HttpRequest, wire_: Wire) -> HttpReply:
        """GET /tokenizer_info: what the model folder says, and what the model's ids are."""
        prompter = self._runtime.prompter
        names = ("tokenizer_class", "bos_token", "eos_token", "pad_token", "chat_template")
        about = prompter.about()
        body: dict[str, Any] = {name: about.get(name) for name in names}
        body["eos_token_ids"] = sorted(prompter.eos_ids)
        body["vocab_size"] = prompter.embedding_rows
        body["model_max_length"] = self._runtime.max_context
        return HttpReply(200, encode(body))

    def _headers(self, endpoint: str, ignored: tuple[str, ...], model: str | None) -> dict[str, str]:
        if ignored:
            self._settings.on_ignored_fields(endpoint, len(ignored))
        if model is not None:
            check_model(model, self._runtime.card, self._settings.model_aliases)
        return ignored_header(ignored)

    def _tokenizing(self, body: wire.TokenizeRequest, request: HttpRequest) -> Callable[[], wire.Tokenized]:
        f.check_supported(body)
        if [body.prompt, body.text, body.messages].count(None) != 2:
            raise WireError(
                "missing_required_parameter", "give prompt, text or messages, and only one of them", "prompt"
            )
        prompter, limit = self._runtime.prompter, self._runtime.max_context
        text = body.prompt if body.prompt is not None else body.text
        plain = text == "" or body.add_special_tokens is False
        ask: Ask | None = None
        if body.messages is not None:
            options = body.chat_template_kwargs.given() if body.chat_template_kwargs else {}
            messages = chat_messages(body.messages)
            ask = Ask(
                tenant=request.tenant,
                messages=messages,
                ending=chat_ending(body, messages),
                template_options=options,
                param_names={"template_options": "chat_template_kwargs"},
            )
        elif body.continue_final_message or body.add_generation_prompt is False:
            name = "continue_final_message" if body.continue_final_message else "add_generation_prompt"
            raise WireError("invalid_value", f"{name} is about messages, and there are none", name)
        elif not plain:
            ask = Ask(tenant=request.tenant, prompt=text)

        def work() -> wire.Tokenized:
            if ask is None:
                assert text is not None
                try:
                    text.encode()
                except UnicodeEncodeError:
                    what = "prompt holds a lone surrogate, which is no character"
                    raise WireError("invalid_value", what, "prompt") from None
                ids = prompter.tokenize(text) if text else []
            else:
                ids = list(prompter.prepare(ask).ids)
            told = wire.Tokenized(ids, len(ids), limit)
            if not body.return_token_strs:
                return told
            return wire.Tokenized(ids, len(ids), limit, [prompter.spell(token)[0] for token in ids])

        return work

    def _later(
        self, wire_: Wire, headers: dict[str, str], size: int, work: Callable[[], object]
    ) -> HttpReply | Answer:
        answer = Later(wire_)

        def told(found: bytes | Refusal | WireError) -> None:
            if isinstance(found, bytes):
                answer.settle(HttpReply(200, found, headers=headers))
            else:
                answer.settle(error_reply(found, headers))

        def made() -> bytes | WireError:
            try:
                return encode(work())
            except WireError as error:
                return error

        try:
            self._runtime.work_on_text(size, made, told)
        except Refusal as error:
            return error_reply(error, headers)
        return answer
