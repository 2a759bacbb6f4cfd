"""Conversation items of the Realtime protocol: what a client sent → an item we keep → messages for the model.

Knows the kinds of items and what each must hold; knows neither their order nor any socket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from msgspec import UNSET

from headrace.runtime.interface import Message, Picture, ToolCall
from headrace.runtime.refusal import Refusal, shorten
from headrace.server.faces.pictures import picture
from headrace.server.ids import new_id
from headrace.server.protocol import realtime as rt
from headrace.server.protocol import realtime_events as ev
from headrace.server.protocol.codec import encode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.fields import ImageUrl

T = TypeVar("T")
PictureCheck = Callable[[Picture], None]

ITEM_BYTES = 768 << 10  # as it is told back: two clients of this protocol take no message above 1 MiB
PICTURES = 8  # as many as one request may hold
PICTURE_CHARACTERS = 1024  # what a picture counts for where a share of the prompt is estimated

_AUDIO = frozenset({"input_audio", "output_audio", "audio"})
_TEXT = {
    "user": ("input_text", "text"),
    "system": ("input_text", "text"),
    "assistant": ("output_text", "text"),
}


def item_of(given: rt.Item, path: str, *, sees: bool, check: PictureCheck) -> ev.Item:
    """The item that a client's one becomes, with an id. sees: the model takes pictures; check: raises Refusal for
    one that is named by an address which is not taken. Raises WireError, naming the field below `path`."""
    id = new_id("item") if given.id is None else given.id
    item: ev.Item
    match given.type:
        case "message":
            item = _message(given, id, path, sees, check)
        case "function_call":
            item = ev.CallItem(
                id,
                call_id=new_id("call") if given.call_id is None else given.call_id,
                name=_needed(given.name, path, "name"),
                arguments=_needed(given.arguments, path, "arguments"),
            )
        case "function_call_output":
            item = ev.CallOutputItem(
                id,
                call_id=_needed(given.call_id, path, "call_id"),
                output=_needed(given.output, path, "output"),
            )
        case other:
            known = "message, function_call and function_call_output"
            raise WireError(
                "unsupported_parameter",
                f"items of type '{other[:200]}': only {known} are known",
                f"{path}.type",
            )
    if len(encode(ev.shown(item))) > ITEM_BYTES:
        raise WireError("invalid_value", f"{path} has more than {ITEM_BYTES} bytes", path)
    return item


def _message(given: rt.Item, id: str, path: str, sees: bool, check: PictureCheck) -> ev.MessageItem:
    role = _needed(given.role, path, "role")
    parts = _needed(given.content, path, "content")
    if not parts:
        raise WireError("invalid_value", f"{path}.content is empty", f"{path}.content")
    content: list[ev.InputText | ev.InputImage | ev.OutputText] = []
    for index, part in enumerate(parts):
        at = f"{path}.content[{index}]"
        if part.type in _AUDIO:
            raise WireError("not_supported", "This server speaks text only: no audio.", at)
        if part.type == "input_image" and role == "user":
            content.append(_image(part, at, sees, check))
            continue
        if part.type not in _TEXT[role]:
            raise WireError(
                "invalid_value", f"{at}: a message of the {role} has no {part.type}", f"{at}.type"
            )
        text = _needed(part.text, at, "text")
        content.append(ev.OutputText(text) if role == "assistant" else ev.InputText(text))
    item = ev.MessageItem(id, role=role, content=tuple(content))
    if item.pictures > PICTURES:
        what = f"{path}.content holds {item.pictures} pictures; at most {PICTURES} are taken"
        raise WireError("invalid_value", what, f"{path}.content")
    return item


def _image(part: rt.Part, path: str, sees: bool, check: PictureCheck) -> ev.InputImage:
    found = picture(part.image_url, part.detail, 0, path)
    if not sees:
        what = f"{path}: this model takes no pictures: it reads text alone"
        raise WireError("invalid_value", what, path)
    try:
        check(found)
    except Refusal as refusal:
        raise WireError.of(refusal) from refusal
    assert isinstance(found.source, str), "a client sends a text"
    detail = part.image_url.detail if isinstance(part.image_url, ImageUrl) else part.detail
    return ev.InputImage(found.source, detail or "auto")


def _needed(value: T | None, path: str, name: str) -> T:
    if value is None:
        raise WireError("missing_required_parameter", f"missing field: {path}.{name}", f"{path}.{name}")
    return value


def messages_of(items: Sequence[ev.Item]) -> tuple[Message, ...]:
    """What the model reads of `items`. A template knows turns: what an assistant said and called is one turn.

    A call that was cut off is left out, unless a client answered it all the same."""
    answered = {item.call_id for item in items if isinstance(item, ev.CallOutputItem)}
    messages: list[Message] = []
    for item in items:
        match item:
            case ev.MessageItem():
                messages.append(_turn(item))
            case ev.CallOutputItem():
                messages.append(Message("tool", item.output, call_id=item.call_id))
            case ev.CallItem() if item.status != "incomplete" or item.call_id in answered:
                call = ToolCall(item.call_id, item.name, item.arguments)
                if messages and messages[-1].role == "assistant":
                    messages[-1] = replace(messages[-1], calls=(*messages[-1].calls, call))
                else:
                    messages.append(Message("assistant", "", calls=(call,)))
    return tuple(messages)


def _turn(item: ev.MessageItem) -> Message:
    text = ""
    pictures: list[Picture] = []
    for index, part in enumerate(item.content):
        if not isinstance(part, ev.InputImage):
            text += part.text
        elif part.image_url is not UNSET:
            at = f"item {item.id}: content[{index}]"
            pictures.append(picture(part.image_url, part.detail, len(text), at))
    return Message(item.role, text, pictures=tuple(pictures))


def no_call(call_id: str, param: str) -> WireError:
    """The answer to the output of a call that is not there. Clients know this sentence."""
    what = f"No tool call found for function call output with call_id {shorten(call_id)}."
    return WireError("invalid_value", what, param)


def characters(item: ev.Item) -> int:
    """How much of an item the model reads: what its share of the prompt is estimated from."""
    match item:
        case ev.MessageItem():
            texts = [part.text for part in item.content if not isinstance(part, ev.InputImage)]
            return sum(map(len, texts)) + PICTURE_CHARACTERS * item.pictures
        case ev.CallItem():
            return len(item.name) + len(item.arguments)
        case ev.CallOutputItem():
            return len(item.output)


def newest(items: Sequence[ev.Item], limit: float) -> list[ev.Item]:
    """The longest tail of `items` with at most `limit` characters, and no more pictures than one request may hold:
    always the last item, never the output of a call that is not in it, unless that is all there is."""
    start = len(items)
    left, pictures = limit, PICTURES
    while start > 0:
        item = items[start - 1]
        left -= characters(item)
        pictures -= item.pictures if isinstance(item, ev.MessageItem) else 0
        if left < 0 or pictures < 0:
            break
        start -= 1
    start = min(start, len(items) - 1)
    calls = {item.call_id for item in items[start:] if isinstance(item, ev.CallItem)}
    while start < len(items) - 1:
        first = items[start]
        if not isinstance(first, ev.CallOutputItem) or first.call_id in calls:
            break
        start += 1
    return list(items[max(start, 0) :])
