"""What the routes of the table are about, in types: for the OpenAPI document. Knows no face."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from headrace.server.exchange import About, HttpRoute
from headrace.server.faces.engine_http import NOT_GENERATIVE
from headrace.server.protocol import chat, completions, generate, messages, ollama, profile, tokenizing
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.responses import CompactRequest, ResponseRequest


def described(routes: Mapping[str, HttpRoute]) -> dict[str, HttpRoute]:
    """The routes with what is known here about them."""
    return {path: dataclasses.replace(route, about=ABOUT.get(path, {})) for path, route in routes.items()}


def _get(summary: str) -> dict[str, About]:
    """A GET whose JSON has no type of its own."""
    return {"GET": About(summary=summary)}


def _text(summary: str) -> dict[str, About]:
    return {"GET": About(summary=summary, reply=str, reply_type="text/plain")}


def _ollama(
    method: str, summary: str, reply: type, body: Any = None, *, lines: bool = False
) -> dict[str, About]:
    about = About(
        summary=summary,
        body=body,
        reply=reply,
        event=reply if lines else None,
        event_type="application/x-ndjson",
        error=ollama.OllamaError,
    )
    return {method: about}


def _said(summary: str) -> dict[str, About]:
    """A POST of which only a refusal can come back."""
    return {"POST": About(summary=summary, body=Any)}


_TOKENIZE = {
    "POST": About(
        summary="A text or messages as the ids of tokens.",
        body=tokenizing.TokenizeRequest,
        reply=tokenizing.Tokenized,
    )
}
_DETOKENIZE = {
    "POST": About(
        summary="Ids of tokens as text.", body=tokenizing.DetokenizeRequest, reply=tokenizing.Detokenized
    )
}
_FLUSHED = About(summary="Forget every cached prompt, if nothing runs.", reply=str, reply_type="text/plain")
_TIMEOUT = {"timeout": "seconds to wait for what runs"}

# By path of the route table; tests/serve/test_openapi.py wants a row for every path but those of the page.
ABOUT: dict[str, dict[str, About]] = {
    "/v1/chat/completions": {
        "POST": About(
            summary="A chat completion, whole or as chunks.",
            body=chat.ChatRequest,
            reply=chat.ChatCompletion,
            event=chat.ChatChunk,
        )
    },
    "/v1/completions": {
        "POST": About(
            summary="Completions of prompts, whole or as events.",
            body=completions.CompletionRequest,
            reply=completions.Completion,
            event=completions.Completion,
        )
    },
    "/generate": {
        "POST": About(
            summary="SGLang's native shape: answers with their ids, whole or growing.",
            body=generate.GenerateRequest,
            reply=generate.Generated | list[generate.Generated],
            event=generate.Generated,
        )
    },
    "/abort_request": {
        "POST": About(summary="End requests of /generate.", body=generate.AbortRequest, reply=Any)
    },
    "/flush_cache": {
        "GET": dataclasses.replace(_FLUSHED, query=_TIMEOUT),
        "POST": dataclasses.replace(_FLUSHED, query=_TIMEOUT),
    },
    "/start_profile": {
        "POST": About(
            summary="Note what the steps do, with torch.profiler.",
            body=profile.StartProfile,
            reply=str,
            reply_type="text/plain",
        )
    },
    "/stop_profile": {
        "POST": About(summary="End it and write the trace.", reply=str, reply_type="text/plain")
    },
    "/server_info": _get("The server's settings and counts."),
    "/get_server_info": _get("As /server_info."),
    "/model_info": _get("What the served model is."),
    "/get_model_info": _get("As /model_info."),
    "/tokenize": _TOKENIZE,
    "/v1/tokenize": _TOKENIZE,
    "/detokenize": _DETOKENIZE,
    "/v1/detokenize": _DETOKENIZE,
    "/tokenizer_info": _get("What the tokenizer is."),
    **{
        path: _said(f"Refused: a model that generates text has no {ability}.")
        for path, ability in NOT_GENERATIVE.items()
    },
    "/v1/responses": {
        "POST": About(
            summary="A response, whole or as events. A GET that upgrades opens the WebSocket.",
            body=ResponseRequest,
            reply=ev.Response,
            event=ev.Event,
        )
    },
    "/v1/responses/compact": {
        "POST": About(
            summary="A conversation made shorter: what was not said by the model, and one compaction item.",
            body=CompactRequest,
            reply=ev.CompactedResponse,
        )
    },
    "/v1/responses/{id}": {
        "GET": About(
            summary="A response, running or stored: the object, or with stream=true its events.",
            reply=ev.Response,
            event=ev.Event,
            query={
                "stream": "true: as events",
                "starting_after": "the number of the last event that is known",
            },
        ),
        "DELETE": About(summary="Forget a stored response.", reply=ev.DeletedResponse),
    },
    "/v1/responses/{id}/cancel": {
        "POST": About(summary="Stop a response; the object as it was cut.", reply=ev.Response)
    },
    "/v1/responses/{id}/input_items": {
        "GET": About(
            summary="The items that this response was asked with.",
            query={
                "limit": "1 to 100, default 20",
                "order": "asc or desc (default)",
                "after": "the id of an item",
            },
        )
    },
    "/v1/responses/input_tokens": {
        "POST": About(
            summary="How many tokens the input of such a response has.",
            body=ResponseRequest,
            reply=ev.InputTokens,
        )
    },
    "/v1/messages": {
        "POST": About(
            summary="Anthropic's Messages: an answer, whole or as events.",
            body=messages.MessagesRequest,
            reply=messages.AnthropicMessage,
            event=messages.MessageEvent,
            error=messages.AnthropicError,
        )
    },
    "/v1/messages/count_tokens": {
        "POST": About(
            summary="How many tokens the prompt of such a message has.",
            body=messages.CountTokensRequest,
            reply=messages.InputTokens,
            error=messages.AnthropicError,
        )
    },
    "/api/chat": _ollama(
        "POST",
        "Ollama's chat: lines of JSON unless stream is false.",
        ollama.OllamaChatLine,
        ollama.OllamaChatRequest,
        lines=True,
    ),
    "/api/generate": _ollama(
        "POST",
        "Ollama's completion of one prompt: lines of JSON unless stream is false.",
        ollama.OllamaGenerateLine,
        ollama.OllamaGenerateRequest,
        lines=True,
    ),
    "/api/embed": _ollama("POST", "Refused: the model has no embeddings.", ollama.OllamaError, Any),
    "/api/embeddings": _ollama("POST", "As /api/embed.", ollama.OllamaError, Any),
    "/api/show": _ollama(
        "POST", "Facts about the served model.", ollama.OllamaShown, ollama.OllamaShowRequest
    ),
    "/api/pull": _ollama(
        "POST",
        "Is the model there? Nothing is fetched.",
        ollama.OllamaStatus,
        ollama.OllamaPullRequest,
        lines=True,
    ),
    "/api/tags": _ollama("GET", "The served model, as Ollama lists models.", ollama.OllamaModels),
    "/api/ps": _ollama("GET", "The served model, which is loaded.", ollama.OllamaModels),
    "/api/version": _ollama("GET", "The level of Ollama's API.", ollama.OllamaVersion),
    "/v1/models": _get("The served model, as a list; in Anthropic's shape for who sends anthropic-version."),
    "/v1/models/{id:path}": _get("The served model, in the same two shapes."),
    "/health": _text("Does the step loop run?"),
    "/healthz": _text("As /health."),
    "/ready": _text("Can a request be admitted?"),
    "/readyz": _text("As /ready."),
    "/ping": _text("As /ready."),
    "/health_generate": _text("As /ready."),
    "/version": _get("The server's own version."),
    "/metrics": _text("Numbers for Prometheus."),
    "/openapi.json": _get("This document."),
}
