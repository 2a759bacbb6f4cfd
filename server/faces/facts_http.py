"""Small GET routes: which model, is it alive, which version, numbers. Knows no generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.runtime.interface import Runtime
from headrace.server.exchange import HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import error_reply
from headrace.server.faces.settings import FaceSettings
from headrace.server.protocol.codec import encode
from headrace.server.protocol.errors import WireError


class FactsFace:
    """What the server says about itself."""

    def __init__(
        self,
        runtime: Runtime,
        settings: FaceSettings,
        metrics_text: Callable[[], tuple[bytes, str]],
        alive: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._metrics_text = metrics_text
        self._alive = alive

    def models(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /v1/models."""
        return HttpReply(200, encode({"object": "list", "data": [self._model()]}))

    def model(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /v1/models/{id}."""
        name = request.parameters["id"]
        if name != self._runtime.card.id and name not in self._settings.model_aliases:
            return error_reply(
                WireError("model_not_found", f"The model '{name[:200]}' does not exist.", "model")
            )
        return HttpReply(200, encode(self._model()))

    def _model(self) -> dict[str, Any]:
        card = self._runtime.card
        model: dict[str, Any] = {
            "id": card.id,
            "object": "model",
            "created": card.created,
            "owned_by": "headrace",
            "root": card.id,
            "parent": None,
            "max_model_len": self._runtime.max_context,
            "x_architecture": card.architecture,
            "x_parameters": card.parameters,
            "x_dtype": card.dtype,
            "x_embedded": card.embedded,
            "x_pictures": card.sees,
            "x_type_ahead": self._settings.drafts > 0,
        }
        if card.notice:
            model["x_notice"] = card.notice
        return model

    def health(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /health: is the step loop alive."""
        if self._alive():
            return HttpReply(200, b"ok\n", "text/plain; charset=utf-8")
        return HttpReply(503, b"the step loop does not run\n", "text/plain; charset=utf-8")

    def ready(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /ready: can a request be admitted."""
        if self._alive() and self._runtime.ready and not self._runtime.draining:
            return HttpReply(200, b"ready\n", "text/plain; charset=utf-8")
        why = b"draining\n" if self._runtime.draining else b"not ready\n"
        return HttpReply(503, why, "text/plain; charset=utf-8", {"retry-after": "1"})

    def version(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /version."""
        return HttpReply(200, encode({"version": self._settings.version}))

    def metrics(self, request: HttpRequest, wire: Wire) -> HttpReply:
        """GET /metrics: text for Prometheus."""
        text, content_type = self._metrics_text()
        return HttpReply(200, text, content_type)
