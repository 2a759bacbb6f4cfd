"""`response_format` and `text.format` → what an Ask carries, and what a response repeats. Opens nothing."""

from __future__ import annotations

from typing import Any

from headrace.runtime.interface import AnswerShape
from headrace.server.protocol.chat import ChatRequest, JsonSchema
from headrace.server.protocol.codec import free_form, typed
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import ResponseRequest


def chat_shape(request: ChatRequest) -> AnswerShape | None:
    """What a chat completion must look like; None: any text. Raises WireError."""
    form = request.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return AnswerShape()
    path = "response_format.json_schema"
    given = free_form(form.json_schema, path)
    if given is None:
        raise _missing(path)
    described: JsonSchema = typed(given, JsonSchema, path)
    return _by_schema(described.schema, f"{path}.schema")


def response_shape(request: ResponseRequest) -> tuple[AnswerShape | None, dict[str, Any]]:
    """What the text of a response must look like, and how its `text.format` is echoed. Raises WireError."""
    form = request.text.format if request.text else None
    if form is None or form.type == "text":
        return None, {"type": "text"}
    if form.type == "json_object":
        return AnswerShape(), {"type": "json_object"}
    path = "text.format"
    fields = {
        "name": form.name,
        "schema": form.schema,
        "strict": form.strict,
        "description": form.description,
    }
    given = {
        name: value for name, raw in fields.items() if (value := free_form(raw, f"{path}.{name}")) is not None
    }
    described: JsonSchema = typed(given, JsonSchema, path)
    return _by_schema(described.schema, f"{path}.schema"), {"type": "json_schema", **given}


def _by_schema(schema: dict[str, Any] | None, path: str) -> AnswerShape:
    if schema is None:
        raise _missing(path)
    return AnswerShape(schema)


def _missing(path: str) -> WireError:
    return WireError("missing_required_parameter", f"missing field: {path}", path)
