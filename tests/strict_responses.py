"""A validator written from the tables of the wire protocol (fields, values), and the SDK's own models, strictly."""

from __future__ import annotations

import json
import re
from typing import Any

from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseCustomToolCallInputDeltaEvent,
    ResponseCustomToolCallInputDoneEvent,
    ResponseErrorEvent,
    ResponseFailedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseIncompleteEvent,
    ResponseInProgressEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseReasoningTextDeltaEvent,
    ResponseReasoningTextDoneEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)
from openai.types.responses.response_steer_accepted_event import ResponseSteerAcceptedEvent
from openai.types.responses.response_steer_failed_event import ResponseSteerFailedEvent
from openai.types.responses.response_steer_pending_event import ResponseSteerPendingEvent

ITEM = {"output_index", "item"}
PART = {"item_id", "output_index", "content_index"}
EVENTS: dict[str, set[str]] = {
    "response.created": {"response"},
    "response.in_progress": {"response"},
    "response.completed": {"response"},
    "response.incomplete": {"response"},
    "response.failed": {"response"},
    "response.output_item.added": ITEM,
    "response.output_item.done": ITEM,
    "response.content_part.added": PART | {"part"},
    "response.content_part.done": PART | {"part"},
    "response.output_text.delta": PART | {"delta", "logprobs"},
    "response.output_text.done": PART | {"text", "logprobs"},
    "response.reasoning_text.delta": PART | {"delta"},
    "response.reasoning_text.done": PART | {"text"},
    "response.function_call_arguments.delta": {"item_id", "output_index", "delta"},
    "response.function_call_arguments.done": {"item_id", "output_index", "name", "arguments"},
    "response.custom_tool_call_input.delta": {"item_id", "output_index", "delta"},
    "response.custom_tool_call_input.done": {"item_id", "output_index", "input"},
    "response.steer.accepted": {"steer"},
    "response.steer.failed": {"error", "steer"},
    "response.steer.pending": {"reason", "required_input", "steer"},
}
MODELS: dict[str, Any] = {
    "response.created": ResponseCreatedEvent,
    "response.in_progress": ResponseInProgressEvent,
    "response.completed": ResponseCompletedEvent,
    "response.incomplete": ResponseIncompleteEvent,
    "response.failed": ResponseFailedEvent,
    "response.output_item.added": ResponseOutputItemAddedEvent,
    "response.output_item.done": ResponseOutputItemDoneEvent,
    "response.content_part.added": ResponseContentPartAddedEvent,
    "response.content_part.done": ResponseContentPartDoneEvent,
    "response.output_text.delta": ResponseTextDeltaEvent,
    "response.output_text.done": ResponseTextDoneEvent,
    "response.reasoning_text.delta": ResponseReasoningTextDeltaEvent,
    "response.reasoning_text.done": ResponseReasoningTextDoneEvent,
    "response.function_call_arguments.delta": ResponseFunctionCallArgumentsDeltaEvent,
    "response.function_call_arguments.done": ResponseFunctionCallArgumentsDoneEvent,
    "response.custom_tool_call_input.delta": ResponseCustomToolCallInputDeltaEvent,
    "response.custom_tool_call_input.done": ResponseCustomToolCallInputDoneEvent,
    "response.steer.accepted": ResponseSteerAcceptedEvent,
    "response.steer.failed": ResponseSteerFailedEvent,
    "response.steer.pending": ResponseSteerPendingEvent,
}
assert EVENTS.keys() == MODELS.keys() and ResponseErrorEvent

RESPONSE = {
    "id", "object", "created_at", "model", "output", "parallel_tool_calls", "tool_choice", "tools", "status",
    "error", "incomplete_details", "instructions", "metadata", "temperature", "top_p", "top_logprobs",
    "previous_response_id", "max_output_tokens", "reasoning", "text", "truncation", "store", "usage",
}  # fmt: skip
STEER_ERRORS = {
    "response_not_found", "invalid_input", "steering_not_supported", "too_many_pending_steers",
    "response_already_completed", "response_not_active", "successor_creation_failed",
}  # fmt: skip
STATUSES = {"completed", "failed", "in_progress", "cancelled", "queued", "incomplete"}
ITEM_STATUSES = {"in_progress", "completed", "incomplete"}
REASONS = {"max_output_tokens", "max_messages", "content_filter", "steered"}
ERROR_CODES = {"server_error", "rate_limit_exceeded", "invalid_prompt"}
TIERS = {"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"}
EFFORTS = {None, "none", "minimal", "low", "medium", "high", "xhigh", "max"}
FORMATS = {"text", "json_object", "json_schema"}
CHOICES = {"function", "custom", "allowed_tools"}
TERMINAL = ("response.completed", "response.incomplete", "response.failed")


class Wrong(Exception):
    """An event that a strict client would not take."""


def need(condition: bool, what: object) -> None:
    if not condition:
        raise Wrong(what)


def check_part(part: dict[str, Any]) -> None:
    need(set(part) == {"type", "text", "annotations", "logprobs"}, part)
    need(part["type"] == "output_text" and isinstance(part["text"], str), part)
    need(part["annotations"] == [], part)
    check_logprobs(part["logprobs"])


def check_logprobs(found: list[dict[str, Any]]) -> None:
    """Every entry whole: what parts and deltas hold is the same."""
    for entry in found:
        need(set(entry) == {"token", "bytes", "logprob", "top_logprobs"}, entry)
        for each in (entry, *entry["top_logprobs"]):
            need(set(each) - {"top_logprobs"} == {"token", "bytes", "logprob"}, each)
            need(isinstance(each["token"], str) and -9999.0 <= each["logprob"] <= 0.0, each)
            need(all(type(byte) is int and 0 <= byte < 256 for byte in each["bytes"]), each)


ITEMS: dict[str, tuple[str, set[str]]] = {  # → the beginning of its id, and its fields
    "message": ("msg_", {"role", "content"}),
    "reasoning": ("rs_", {"content", "summary"}),
    "function_call": ("fc_", {"call_id", "name", "arguments"}),
    "custom_tool_call": ("ctc_", {"call_id", "name", "input"}),
}


def check_item(item: dict[str, Any]) -> None:
    need(item.get("type") in ITEMS, item)
    prefix, fields = ITEMS[item["type"]]
    need(set(item) - {"encrypted_content"} == fields | {"id", "type", "status"}, item)
    need(item["id"].startswith(prefix) and len(item["id"]) >= len(prefix) + 22, item)
    need(item["status"] in ITEM_STATUSES, item)
    if item["type"] == "message":
        need(item["role"] == "assistant", item)
        for part in item["content"]:
            check_part(part)
    elif item["type"] == "reasoning":
        need(item["summary"] == [], item)
        need(all(set(part) == {"type", "text"} for part in item["content"]), item)
    else:
        need(len(item["call_id"]) >= 5 + 22, item)


def check_usage(usage: dict[str, Any]) -> None:
    need(
        set(usage)
        == {"input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details", "total_tokens"},
        usage,
    )
    need(set(usage["input_tokens_details"]) == {"cached_tokens", "cache_write_tokens"}, usage)
    need(set(usage["output_tokens_details"]) == {"reasoning_tokens"}, usage)
    need(usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], usage)
    need(usage["input_tokens_details"]["cached_tokens"] <= usage["input_tokens"], usage)


def check_response(response: dict[str, Any]) -> None:
    need(set(response) - {"service_tier"} == RESPONSE, set(response) ^ RESPONSE)
    need(response["object"] == "response" and response["id"].startswith("resp_"), response)
    need(len(response["id"]) >= 5 + 22, "at least 128 random bits")
    need(response["status"] in STATUSES, response["status"])
    need(isinstance(response["created_at"], int), response["created_at"])
    for item in response["output"]:
        check_item(item)
    details = response["incomplete_details"]
    need(details is None or (set(details) == {"reason"} and details["reason"] in REASONS), details)
    need((response["status"] == "incomplete") == (details is not None), response)
    error = response["error"]
    need((response["status"] == "failed") == (error is not None), response)
    if error is not None:
        need(set(error) - {"x_code"} == {"code", "message"} and error["code"] in ERROR_CODES, error)
    need(response.get("service_tier", "default") in TIERS, response)
    need(set(response["reasoning"]) == {"effort", "summary"}, response["reasoning"])
    need(response["reasoning"]["effort"] in EFFORTS, response["reasoning"])
    need(
        set(response["text"]) == {"format"} and response["text"]["format"]["type"] in FORMATS,
        response["text"],
    )
    need(all(tool["type"] in ("function", "custom") for tool in response["tools"]), response["tools"])
    choice = response["tool_choice"]
    need(choice in ("auto", "none", "required") or choice["type"] in CHOICES, choice)
    need(all(isinstance(v, str) for v in response["metadata"].values()), response["metadata"])
    if response["status"] in ("in_progress", "queued"):
        need(response["usage"] is None and response["output"] == [], response)
    else:
        check_usage(response["usage"])


def check_steer(event: dict[str, Any]) -> None:
    steer = event["steer"]
    failed = event["type"] == "response.steer.failed"
    need(set(steer) - {"id"} == {"previous_response_id"} | ({"input"} if failed else set()), steer)
    need(failed or "id" in steer, steer)
    need(steer.get("id", "steer_").startswith("steer_"), steer)
    if failed:
        need(set(event["error"]) == {"type", "code", "message"}, event)
        need(
            event["error"]["type"] == "invalid_request_error" and event["error"]["code"] in STEER_ERRORS,
            event,
        )
    for stub in event.get("required_input", ()):
        name = {"name"} if stub["type"] == "function_call_output" else set()
        need(set(stub) == {"type", "call_id"} | name, stub)


def check_event(raw: str) -> dict[str, Any]:
    """The event, if a strict client takes it: exact field set, allowed values, and the SDK's model, strictly."""
    event = json.loads(raw)
    kind = event.get("type")
    need(kind in EVENTS, kind)
    need(set(event) - {"stream_id"} == EVENTS[kind] | {"type", "sequence_number"}, (kind, set(event)))
    need(isinstance(event["sequence_number"], int), event)
    need(event.get("content_index", 0) == 0, event)
    if "item" in event:
        check_item(event["item"])
    if "part" in event:
        check_part(event["part"])
    if "response" in event:
        check_response(event["response"])
    if "steer" in event:
        check_steer(event)
    if "logprobs" in event:
        check_logprobs(event["logprobs"])
    MODELS[kind].model_validate_json(raw, strict=True)
    return event


def check_error_frame(raw: str) -> dict[str, Any]:
    """The error of an error frame, if its shape is the documented one."""
    frame = json.loads(raw)
    need(frame["type"] == "error" and set(frame) - {"stream_id"} == {"type", "status", "error"}, frame)
    error = frame["error"]
    need(set(error) - {"headers"} == {"type", "code", "message", "param"}, error)
    need(isinstance(error["type"], str) and isinstance(error["message"], str), error)
    need(isinstance(frame["status"], int) and 400 <= frame["status"] < 600, frame)
    need(len(error["message"]) <= 600, "client text is cut")
    return frame


def shape(events: list[dict[str, Any]]) -> str:
    """The sequence as words, runs of deltas as one."""
    words = " ".join(event["type"].removeprefix("response.") for event in events)
    return re.sub(r"(output_text\.delta ?)+", "delta* ", words).strip()


def check_sequence(raws: list[str]) -> list[dict[str, Any]]:
    """All events of one response, in order: no gap in the numbers, one terminal event, equal texts, one lane."""
    events = [check_event(raw) for raw in raws]
    need([e["sequence_number"] for e in events] == list(range(len(events))), "sequence numbers")
    need(sum(e["type"] in TERMINAL for e in events) == 1 and events[-1]["type"] in TERMINAL, "one terminal")
    need(len({e.get("stream_id") for e in events}) == 1, "one lane")
    need(len({e["response"]["id"] for e in events if "response" in e}) == 1, "one id")
    check_items(events)
    return events


WRITTEN = {  # item type → its delta event, its done event, and the field that holds all of it
    "message": ("output_text", "text"),
    "reasoning": ("reasoning_text", "text"),
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
}


def check_items(events: list[dict[str, Any]]) -> None:
    """One item after the other, each told whole by its deltas, its done event, its done item, and the response."""
    final = events[-1]["response"]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    added = [e["item"] for e in events if e["type"] == "response.output_item.added"]
    indices = [e["output_index"] for e in events if e["type"] == "response.output_item.added"]
    need(indices == list(range(len(indices))), indices)
    need([item["id"] for item in added] == [item["id"] for item in final["output"]], (added, final["output"]))
    if final["status"] == "failed":
        need(done == final["output"][: len(done)] and len(final["output"]) - len(done) <= 1, (done, final))
    else:
        need(done == final["output"], (done, final["output"]))
    told = [e["output_index"] for e in events if "output_index" in e]
    need(told == sorted(told), "one item is told after the other")
    for index, item in enumerate(final["output"]):
        event, field = WRITTEN[item["type"]]
        mine = [e for e in events if e.get("output_index") == index]
        need(all(e["item_id"] == item["id"] for e in mine if "item_id" in e), mine)
        whole = "".join(part["text"] for part in item["content"]) if "content" in item else item[field]
        need(
            "".join(e["delta"] for e in mine if e["type"] == f"response.{event}.delta") == whole, (mine, item)
        )
        if item["type"] == "message":
            found = [each for part in item["content"] for each in part["logprobs"]]
            sent = [each for e in mine if e["type"] == "response.output_text.delta" for each in e["logprobs"]]
            need(sent == found, (sent, found))
            need(all(e["logprobs"] == found for e in mine if e["type"] == "response.output_text.done"), mine)
        ends = [e[field] for e in mine if e["type"] == f"response.{event}.done"]
        cut = item["type"].endswith("_call") and item["status"] == "incomplete"
        need(
            ends == ([] if cut or (final["status"] == "failed" and index == len(done)) else [whole]),
            (ends, item),
        )
