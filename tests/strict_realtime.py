"""A reader of the Realtime socket that takes nothing on trust: exact field sets, allowed values, the SDK's own
models strictly, and the order in which events may come. It mirrors the conversation from the events alone."""

from __future__ import annotations

import json
from typing import Any, get_args

from openai.types.realtime import RealtimeServerEvent

MODELS: dict[str, Any] = {
    get_args(model.model_fields["type"].annotation)[0]: model
    for model in get_args(get_args(RealtimeServerEvent)[0])
}
WHERE = {"response_id", "item_id", "output_index", "content_index"}
EVENTS: dict[str, set[str]] = {
    "session.created": {"session"},
    "session.updated": {"session"},
    "conversation.item.added": {"previous_item_id", "item"},
    "conversation.item.done": {"previous_item_id", "item"},
    "conversation.item.deleted": {"item_id"},
    "conversation.item.retrieved": {"item"},
    "input_audio_buffer.cleared": set(),
    "response.created": {"response"},
    "response.done": {"response"},
    "response.output_item.added": {"response_id", "output_index", "item"},
    "response.output_item.done": {"response_id", "output_index", "item"},
    "response.content_part.added": WHERE | {"part"},
    "response.content_part.done": WHERE | {"part"},
    "response.output_text.delta": WHERE | {"delta"},
    "response.output_text.done": WHERE | {"text"},
    "response.function_call_arguments.delta": {
        "response_id", "item_id", "output_index", "call_id", "delta",
    },
    "response.function_call_arguments.done": {
        "response_id", "item_id", "output_index", "call_id", "name", "arguments",
    },
    "rate_limits.updated": {"rate_limits"},
    "error": {"error"},
}  # fmt: skip
SESSION = {
    "type", "object", "id", "model", "output_modalities", "instructions", "tools", "tool_choice",
    "max_output_tokens", "truncation", "tracing", "prompt", "expires_at",
}  # fmt: skip
ITEMS: dict[str, set[str]] = {
    "message": {"role", "content"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
}
RESPONSE = {
    "object", "id", "status", "status_details", "output", "conversation_id", "output_modalities",
    "max_output_tokens", "metadata", "usage",
}  # fmt: skip
DETAILS = {"cancelled": "client_cancelled", "incomplete": "max_output_tokens"}


class Wrong(Exception):
    """An event that a strict client would not take."""


def need(condition: bool, what: object) -> None:
    if not condition:
        raise Wrong(what)


def check_item(item: dict[str, Any]) -> None:
    need(item["type"] in ITEMS, item)
    need(set(item) == ITEMS[item["type"]] | {"type", "id", "object", "status"}, item)
    need(item["object"] == "realtime.item" and bool(item["id"]), item)
    need(item["status"] in ("in_progress", "completed", "incomplete"), item)
    if item["type"] == "message":
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        for part in item["content"]:
            if part["type"] == "input_image":
                need(set(part) == {"type", "detail"} and item["role"] == "user", part)
                continue
            need(set(part) == {"type", "text"} and part["type"] == kind, part)


def check_usage(usage: dict[str, Any]) -> None:
    inputs, outputs = usage["input_token_details"], usage["output_token_details"]
    need(
        set(usage)
        == {"total_tokens", "input_tokens", "output_tokens", "input_token_details", "output_token_details"},
        usage,
    )
    kinds = {"text_tokens", "audio_tokens", "image_tokens"}
    need(set(inputs) == kinds | {"cached_tokens", "cached_tokens_details"}, inputs)
    need(set(inputs["cached_tokens_details"]) == kinds, inputs)
    need(set(outputs) == {"text_tokens", "audio_tokens"}, outputs)
    need(usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], usage)
    need(sum(inputs[kind] for kind in kinds) == usage["input_tokens"], usage)
    need(sum(inputs["cached_tokens_details"].values()) == inputs["cached_tokens"], usage)
    need(inputs["cached_tokens"] <= usage["input_tokens"], usage)
    need(outputs["text_tokens"] == usage["output_tokens"] and outputs["audio_tokens"] == 0, usage)


def check_response(response: dict[str, Any], *, over: bool) -> None:
    need(set(response) == RESPONSE, set(response) ^ RESPONSE)
    need(response["object"] == "realtime.response" and response["id"].startswith("resp_"), response)
    need(len(response["id"]) >= 5 + 22, "at least 128 random bits")
    need(response["output_modalities"] == ["text"], response)
    for item in response["output"]:
        check_item(item)
        need(item["status"] != "in_progress", item)
    status, details = response["status"], response["status_details"]
    if not over:
        need(status == "in_progress" and details is None and response["usage"] is None, response)
        return
    check_usage(response["usage"])
    if status == "completed":
        need(details is None, response)
    elif status == "failed":
        need(set(details) == {"type", "error"} and details["type"] == "failed", details)
        need(set(details["error"]) == {"type", "code", "message"}, details)
    else:
        need(details == {"type": status, "reason": DETAILS[status]}, details)


def check_event(raw: str) -> dict[str, Any]:
    """The event, if a strict client takes it: exact field set, allowed values, and the SDK's model, strictly."""
    need(len(raw.encode()) < 1 << 20, "some clients take no message of 1 MiB")
    event = json.loads(raw)
    kind = event.get("type")
    need(kind in EVENTS, kind)
    need(set(event) == EVENTS[kind] | {"type", "event_id"}, (kind, set(event)))
    need(event["event_id"].startswith("event_") and len(event["event_id"]) > 6 + 22, event)
    if "item" in event:
        check_item(event["item"])
    if "part" in event:
        need(set(event["part"]) == {"type", "text"} and event["part"]["type"] == "text", event)
    if "response" in event:
        check_response(event["response"], over=kind == "response.done")
    if "session" in event:
        session = event["session"]
        need(set(session) >= SESSION, SESSION - set(session))
        need(session["type"] == "realtime" and session["object"] == "realtime.session", session)
        need(session["output_modalities"] == ["text"], session)
    if kind == "error":
        error = event["error"]
        need(set(error) == {"type", "code", "message", "param", "event_id"}, error)
        need(isinstance(error["code"], str) and 0 < len(error["message"]) <= 600, error)
    if kind == "rate_limits.updated":
        need(event["rate_limits"] == [], event)
    MODELS[kind].model_validate_json(raw, strict=True)
    return event


class Answer:
    """One response as its events tell it."""

    def __init__(self, created: dict[str, Any]) -> None:
        self.id = created["id"]
        self.in_band = created["conversation_id"] is not None
        self.metadata = created["metadata"]
        self.items: list[dict[str, Any]] = []
        self.open: dict[str, Any] | None = None
        self.announced = False  # in the conversation
        self.settled = False
        self.part = False
        self.said: list[str] = []
        self.told: str | None = None  # the whole text or arguments, once they were told
        self.final: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        return "".join(part["text"] for item in self.items for part in item.get("content", ()))

    def take(self, event: dict[str, Any]) -> None:
        kind = event["type"].removeprefix("response.")
        need(self.final is None, "nothing follows response.done")
        if kind == "done":
            need(self.open is None, "an item is left open")
            need(event["response"]["output"] == self.items, (event, self.items))
            need(event["response"]["metadata"] == self.metadata, event)
            self.final = event["response"]
            return
        need(event["output_index"] == len(self.items), event)
        if kind == "output_item.added":
            need(self.open is None and event["item"]["status"] == "in_progress", event)
            self.open, self.said, self.told = event["item"], [], None
            self.announced = self.settled = self.part = False
            return
        need(self.open is not None, event)
        assert self.open is not None
        need(event.get("item_id", self.open["id"]) == self.open["id"], event)
        need(event.get("call_id", self.open.get("call_id")) == self.open.get("call_id"), event)
        need(not self.in_band or self.announced, "the conversation is told of an item first")
        match kind:
            case "content_part.added":
                need(not self.part and event["part"]["text"] == "", event)
                self.part = True
            case "output_text.delta" | "function_call_arguments.delta":
                need(self.told is None and event["delta"] != "", event)
                need(self.part == (self.open["type"] == "message"), event)
                self.said.append(event["delta"])
            case "output_text.done":
                need(self.part, event)
                self.told = event["text"]
                need(self.told == "".join(self.said), event)
            case "function_call_arguments.done":
                self.told = event["arguments"]
                need(self.told == "".join(self.said) and event["name"] == self.open["name"], event)
            case "content_part.done":
                need(self.part and self.told == event["part"]["text"], event)
                self.part = False
            case "output_item.done":
                item = event["item"]
                need(item["id"] == self.open["id"] and item["status"] != "in_progress", event)
                need(not self.part, "a part is left open")
                if item["type"] == "message":
                    need([part["text"] for part in item["content"]] == [self.told], event)
                elif item["status"] == "completed":
                    need(item["arguments"] == self.told, event)
                else:
                    need(self.told is None and item["arguments"] == "".join(self.said), event)
                self.items.append(item)
                self.open = None
            case _:
                raise Wrong(event)


class Reader:
    """Takes every frame of one socket, in order. `items` is the conversation as the events tell it."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.answers: dict[str, Answer] = {}
        self.items: list[dict[str, Any]] = []
        self.ids: set[str] = set()
        self.limits_due = False

    def take(self, raw: str) -> dict[str, Any]:
        event = check_event(raw)
        kind = event["type"]
        need((kind == "session.created") == (not self.events), "session.created is the first, once")
        need(event["event_id"] not in self.ids, "event ids repeat")
        need((kind == "rate_limits.updated") == self.limits_due, "rate limits follow each response.done")
        self.limits_due = kind == "response.done"
        self.ids.add(event["event_id"])
        self.events.append(event)
        if kind == "response.created":
            need(event["response"]["id"] not in self.answers, event)
            active = [a for a in self.answers.values() if a.in_band and a.final is None]
            need(event["response"]["conversation_id"] is None or not active, "one answer at a time")
            self.answers[event["response"]["id"]] = Answer(event["response"])
        elif kind.startswith("response."):
            answer = self.answers[event.get("response_id") or event["response"]["id"]]
            need(not answer.in_band or self.sound(event, answer), event)
            answer.take(event)
        elif kind.startswith("conversation.item."):
            self.conversation(kind.removeprefix("conversation.item."), event)
        return event

    def sound(self, event: dict[str, Any], answer: Answer) -> bool:
        """An item of the conversation is settled there before the response says that it is done."""
        if event["type"] != "response.output_item.done":
            return True
        return answer.settled or all(item["id"] != event["item"]["id"] for item in self.items)

    def conversation(self, kind: str, event: dict[str, Any]) -> None:
        ids = [item["id"] for item in self.items]
        if kind == "deleted":
            need(event["item_id"] in ids, event)
            del self.items[ids.index(event["item_id"])]
            return
        item = event["item"]
        if kind == "retrieved":
            need(item in self.items, event)
            return
        at = 0 if event["previous_item_id"] is None else ids.index(event["previous_item_id"]) + 1
        owner = next((a for a in self.answers.values() if a.open and a.open["id"] == item["id"]), None)
        if kind == "added":
            need(item["id"] not in ids, event)
            need((item["status"] == "in_progress") == (owner is not None), event)
            self.items.insert(at, item)
            if owner is not None:
                need(owner.in_band and not owner.announced, event)
                owner.announced = True
        else:
            need(item["id"] == ids[at], (event, ids))
            need(item["status"] != "in_progress", event)
            self.items[at] = item
            if owner is not None:
                need(not owner.part, event)
                owner.settled = True

    def rest(self) -> None:
        """Nothing is under way."""
        need(not self.limits_due, "rate limits are missing")
        need(all(answer.final is not None for answer in self.answers.values()), "an answer is open")

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [event["error"] for event in self.events if event["type"] == "error"]

    @property
    def finals(self) -> list[dict[str, Any]]:
        return [event["response"] for event in self.events if event["type"] == "response.done"]
