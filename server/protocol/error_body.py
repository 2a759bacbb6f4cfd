"""The nested error body of the OpenAI shape as a type: for the OpenAPI page, and to restate it in other shapes."""

from __future__ import annotations

import msgspec


class ErrorSaid(msgspec.Struct, frozen=True):
    """What went wrong: a sentence, its coarse class, the request field and the word that programs read."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """Body of every refused request, except on the routes of other protocols."""

    error: ErrorSaid
