"""The input of a response as items, for `GET /v1/responses/{id}/input_items`. Knows fields; keeps what was sent."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from headrace.server.faces.item_ids import input_id
from headrace.server.protocol.codec import compact, encode
from headrace.server.protocol.responses import Item, ResponseRequest


def input_items(request: ResponseRequest, response_id: str) -> list[Raw]:
    """Each item as JSON, oldest first: as the client sent it, with an id, and text as parts."""
    given: Any = request.input
    if given is None or given == "":
        return []
    if isinstance(given, str):
        given = [Item(role="user", content=given)]
    return [
        Raw(encode(_item(item, input_id(item.type, response_id, index)))) for index, item in enumerate(given)
    ]


def _item(item: msgspec.Struct, made_id: str) -> dict[str, Any]:
    fields = _given(item)
    fields.setdefault("id", made_id)
    if fields.setdefault("type", "message") == "message":
        fields.setdefault("status", "completed")
        if isinstance(fields.get("content"), str):
            kind = "output_text" if fields.get("role") == "assistant" else "input_text"
            fields["content"] = [{"type": kind, "text": fields["content"]}]
        for part in fields.get("content", ()):
            if part["type"] == "output_text":
                part.setdefault("annotations", [])
            elif part["type"] == "input_image":
                part.setdefault("detail", "auto")
    return fields


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """The fields that are neither absent nor null."""
    config = struct.__struct_config__
    found: dict[str, Any] = {} if config.tag_field is None else {config.tag_field: config.tag}
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if value is None or value is msgspec.UNSET or (isinstance(value, Raw) and compact(value) == "null"):
            continue
        if isinstance(value, msgspec.Struct):
            value = _given(value)
        elif isinstance(value, list):
            value = [_given(entry) if isinstance(entry, msgspec.Struct) else entry for entry in value]
        found[name] = value
    return found
