"""Routes about the engine behind the port: its settings, its cache, and what it is not. Knows no generation."""

from __future__ import annotations

import math
from typing import Any

from headrace.runtime.interface import Runtime
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import error_reply
from headrace.server.faces.later import Later
from headrace.server.faces.settings import FaceSettings
from headrace.server.protocol.codec import encode
from headrace.server.protocol.errors import WireError

LOOK_EVERY = 0.02  # seconds between two looks at whether the server is idle
LONGEST_WAIT = 600.0
TEXT = "text/plain; charset=utf-8"
# What other kinds of models answer; the path names the ability.
NOT_GENERATIVE = {
    "/v1/embeddings": "embeddings",
    "/embeddings": "embeddings",
    "/v1/rerank": "reranking",
    "/rerank": "reranking",
    "/v1/score": "scores of text pairs",
    "/score": "scores of text pairs",
    "/v1/classify": "classification",
    "/classify": "classification",
    "/v1/moderations": "moderation",
    "/pooling": "pooling",
    "/encode": "embeddings",
}


class EngineFace:
    """What operators and benchmarks ask of the engine."""

    def __init__(self, runtime: Runtime, settings: FaceSettings) -> None:
        self._runtime = runtime
        self._settings = settings

    def server_facts(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /server_info: settings and counts of now. No key of it is called `decode`: one benchmark takes a
        server that has one for half of a pair."""
        runtime, card = self._runtime, self._runtime.card
        body: dict[str, Any] = {
            "version": self._settings.version,
            "model_path": card.id,
            "tokenizer_path": card.id,
            "served_model_name": card.id,
            "dtype": card.dtype,
            "context_length": runtime.max_context,
            **runtime.sizes(),
            "internal_states": [{name: _plain(value) for name, value in runtime.stats().items()}],
        }
        return HttpReply(200, encode(body))

    def model_facts(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /model_info."""
        card = self._runtime.card
        body = {
            "model_path": card.id,
            "tokenizer_path": card.id,
            "is_generation": True,
            "architecture": card.architecture,
            "max_model_len": self._runtime.max_context,
            "vocab_size": card.vocab_size,
        }
        return HttpReply(200, encode(body))

    def flush_cache(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """GET or POST /flush_cache: every cached prompt is forgotten, if nothing runs, or stops running within
        `timeout` seconds."""
        try:
            timeout = float(request.query.get("timeout", "0"))
        except ValueError:
            timeout = math.nan
        if not 0.0 <= timeout <= LONGEST_WAIT:
            what = f"timeout must be a number between 0 and {LONGEST_WAIT:g}"
            return error_reply(WireError("invalid_value", what, "timeout"))
        found = self._runtime.flush_cache()
        if found is None and timeout:
            answer = Later(wire)
            self._look(answer, self._settings.clock() + timeout)
            return answer
        return _flushed(found)

    def _look(self, answer: Later, until: float) -> None:
        def look() -> None:
            found = self._runtime.flush_cache()
            if found is None and self._settings.clock() < until:
                self._settings.call_later(LOOK_EVERY, look)
            else:
                answer.settle(_flushed(found))

        self._settings.call_later(LOOK_EVERY, look)

    def refuse(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """Paths of NOT_GENERATIVE."""
        ability = NOT_GENERATIVE[request.path]
        what = f"The model '{self._runtime.card.id}' generates text; it offers no {ability}."
        return error_reply(WireError("unsupported_endpoint", what, "model"))


def _flushed(pages: int | None) -> HttpReply:
    if pages is None:
        text = "The cache was not flushed: requests are running.\n"
        return HttpReply(400, text.encode(), TEXT)
    return HttpReply(200, f"Cache flushed: {pages} pages.\n".encode(), TEXT)


def _plain(value: float) -> float:
    return int(value) if value == int(value) else value
