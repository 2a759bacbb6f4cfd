"""Anthropic's events and messages held against the wire protocol's tables and the SDK's own models, strictly."""

from __future__ import annotations

import json
from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
_USAGE = {
    "input_tokens", "output_tokens", "output_tokens_details",
    "cache_read_input_tokens", "cache_creation_input_tokens",
}  # fmt: skip
_DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}


def check_message(message: dict[str, Any]) -> dict[str, Any]:
    """A whole answer; returns it."""
    Message.model_validate_json(json.dumps(message), strict=True)
    assert set(message) == {
        "id", "type", "role", "content", "model", "stop_reason", "stop_sequence", "usage",
    }  # fmt: skip
    assert message["id"].startswith("msg_") and message["role"] == "assistant"
    assert set(message["usage"]) == _USAGE
    assert message["stop_reason"] is not None
    return message


def check_error(body: dict[str, Any], kind: str) -> str:
    """The body of a refused request; returns its message."""
    assert set(body) <= {"type", "error", "request_id"} and body["type"] == "error", body
    assert set(body["error"]) - {"details"} == {"type", "message"} and body["error"]["type"] == kind, body
    return body["error"]["message"]


def events_of(body: bytes) -> list[dict[str, Any]]:
    """The events of an SSE body: each under its own name, pings among them."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def check_events(body: bytes) -> dict[str, Any]:
    """A whole stream that ended well: the order of its events, and the message that a client makes of them."""
    events = [event for event in events_of(body) if event["type"] != "ping"]
    for event in events:
        _EVENT.validate_json(json.dumps(event), strict=True)
    start, *middle, delta, stop = events
    message = dict(start["message"])
    assert start["type"] == "message_start" and message["content"] == []
    assert message["stop_reason"] is None and message["stop_sequence"] is None
    content: list[dict[str, Any]] = []
    arguments = ""
    is_open = False
    for event in middle:
        assert event["index"] == len(content) - is_open
        if event["type"] == "content_block_start":
            assert not is_open
            is_open, arguments = True, ""
            content.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            assert is_open
            piece, block = event["delta"], content[-1]
            if piece["type"] == "signature_delta":
                block["signature"] = piece["signature"]
                continue
            assert piece["type"] == _DELTAS[block["type"]]
            if piece["type"] == "input_json_delta":
                arguments += piece["partial_json"]
            else:
                block[block["type"]] += piece[block["type"]]
        else:
            assert event["type"] == "content_block_stop" and is_open
            if content[-1]["type"] == "tool_use":
                assert content[-1]["input"] == {}
                content[-1]["input"] = json.loads(arguments or "{}")
            is_open = False
    assert not is_open
    assert delta["type"] == "message_delta" and stop == {"type": "message_stop"}
    message |= {"content": content, "usage": delta["usage"], **delta["delta"]}
    return check_message(message)
