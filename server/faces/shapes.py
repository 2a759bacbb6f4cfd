"""`response_format` and `text.format` → what an Ask carries, and what a response repeats. Opens nothing."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from headrace.runtime.interface import AnswerShape
from headrace.server.protocol.chat import ChatRequest, JsonSchema
from headrace.server.protocol.codec import free_form, typed
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import ResponseRequest


def text_shape(regex: str | None, schema: str | None, path: str) -> AnswerShape | None:
    """What a bare text must look like. schema: a JSON schema as text, the value of the field `path`."""
    if schema is None:
        return None if regex is None else AnswerShape(regex=regex)
    if regex is not None:
        raise WireError("invalid_value", f"{path}: with a regex there is no schema", path)
    value = free_form(Raw(schema), path)
    if not isinstance(value, dict):
        raise WireError("invalid_value", f"{path} must be a JSON schema, as text", path)
    return AnswerShape(value)


def chat_shape(request: ChatRequest) -> AnswerShape | None:
    """What a chat completion must look like; None: any text. Raises WireError."""
    form = request.response_format
    if form is None or form.type == "text":
        return text_shape(request.regex, None, "regex")
    if request.regex is not None:
        raise WireError("invalid_value", "regex: with a response_format there is no regex", "regex")
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
        return text_shape(request.regex, None, "regex"), {"type": "text"}
    if request.regex is not None:
        raise WireError("invalid_value", "regex: with a text.format there is no regex", "regex")
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
