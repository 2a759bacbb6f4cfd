"""What the routes of the table are about, in types: for the OpenAPI document. Knows no face."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.server.exchange import About
from headrace.server.protocol import chat, messages, ollama
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.responses import ResponseRequest

Abouts = Mapping[str, About]


def get(summary: str) -> Abouts:
    """A GET whose JSON has no type of its own."""
    return {"GET": About(summary=summary)}


def text(summary: str) -> Abouts:
    """A GET that answers with plain text."""
    return {"GET": About(summary=summary, reply=str, reply_type="text/plain")}


CHAT = {
    "POST": About(
        summary="A chat completion, whole or as chunks.",
        body=chat.ChatRequest,
        reply=chat.ChatCompletion,
        event=chat.ChatChunk,
    )
}
RESPONSES = {
    "POST": About(
        summary="A response, whole or as events. A GET that upgrades opens the WebSocket.",
        body=ResponseRequest,
        reply=ev.Response,
        event=ev.Event,
    )
}
ONE_RESPONSE = {
    "GET": About(summary="A stored response.", reply=ev.Response),
    "DELETE": About(summary="Forget a stored response.", reply=ev.DeletedResponse),
}
MESSAGES = {
    "POST": About(
        summary="Anthropic's Messages: an answer, whole or as events.",
        body=messages.MessagesRequest,
        reply=messages.AnthropicMessage,
        event=messages.MessageEvent,
        error=messages.AnthropicError,
    )
}
COUNT_TOKENS = {
    "POST": About(
        summary="How many tokens the prompt of such a message has.",
        body=messages.CountTokensRequest,
        reply=messages.InputTokens,
        error=messages.AnthropicError,
    )
}
OLLAMA_CHAT = {
    "POST": About(
        summary="Ollama's chat: lines of JSON unless stream is false.",
        body=ollama.OllamaChatRequest,
        reply=ollama.OllamaChatLine,
        event=ollama.OllamaChatLine,
        event_type="application/x-ndjson",
        error=ollama.OllamaError,
    )
}
OLLAMA_GENERATE = {
    "POST": About(
        summary="Ollama's completion of one prompt: lines of JSON unless stream is false.",
        body=ollama.OllamaGenerateRequest,
        reply=ollama.OllamaGenerateLine,
        event=ollama.OllamaGenerateLine,
        event_type="application/x-ndjson",
        error=ollama.OllamaError,
    )
}
OLLAMA_TAGS = {
    "GET": About(
        summary="The served model, as Ollama lists models.",
        reply=ollama.OllamaModels,
        error=ollama.OllamaError,
    )
}
OLLAMA_PS = {
    "GET": About(
        summary="The served model, which is loaded.", reply=ollama.OllamaModels, error=ollama.OllamaError
    )
}
OLLAMA_SHOW = {
    "POST": About(
        summary="Facts about the served model.",
        body=ollama.OllamaShowRequest,
        reply=ollama.OllamaShown,
        error=ollama.OllamaError,
    )
}
OLLAMA_VERSION = {
    "GET": About(summary="The level of Ollama's API.", reply=ollama.OllamaVersion, error=ollama.OllamaError)
}
