"""What the server says, as typed events: the server's own wire types, read. Knows JSON; knows no socket.

Tolerant where the server is strict: unknown fields are skipped, and an event without a type here becomes an
`UnknownEvent`, so that a newer server does not break an older client.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.clients.errors import ResponseFailed, ServerRefused
from headrace.server.protocol.drafts import InputAck, InputCommitted, InputEnded
from headrace.server.protocol.extension import (
    CacheEvicted,
    Goaway,
    Paused,
    Pinned,
    PrefillProgress,
    Promoted,
    Pruned,
    Queue,
    Resumed,
    Step,
    StepStream,
    Summary,
    Updated,
)
from headrace.server.protocol.extension import Error as VerbRefused
from headrace.server.protocol.response_events import (
    Completed,
    Created,
    ErrorBody,
    ErrorFrame,
    Failed,
    Incomplete,
    InProgress,
    ItemAdded,
    ItemDone,
    MessageItem,
    PartAdded,
    PartDone,
    Response,
    TextDelta,
    TextDone,
    Usage,
)

__all__ = [
    "TERMINAL",
    "AnyEvent",
    "CacheEvicted",
    "Completed",
    "Created",
    "ErrorFrame",
    "Failed",
    "Goaway",
    "InProgress",
    "Incomplete",
    "InputAck",
    "InputCommitted",
    "InputEnded",
    "ItemAdded",
    "ItemDone",
    "NotAnEvent",
    "PartAdded",
    "PartDone",
    "Paused",
    "Pinned",
    "PrefillProgress",
    "Promoted",
    "Pruned",
    "Queue",
    "Response",
    "Resumed",
    "Step",
    "StepStream",
    "Summary",
    "TextDelta",
    "TextDone",
    "UnknownEvent",
    "Updated",
    "Usage",
    "VerbRefused",
    "answer_of",
    "failure_of",
    "lane_of",
    "read_event",
    "read_model_ids",
    "read_refusal",
    "refusal_of",
]


class UnknownEvent(msgspec.Struct, frozen=True):
    """An event that this client has no type for; `data` is the whole of it."""

    type: str
    data: dict[str, Any]


KnownEvent = (
    Created
    | InProgress
    | ItemAdded
    | PartAdded
    | TextDelta
    | TextDone
    | PartDone
    | ItemDone
    | Completed
    | Incomplete
    | Failed
    | ErrorFrame
    | Paused
    | Resumed
    | Updated
    | Pruned
    | Promoted
    | VerbRefused
    | Goaway
    | InputAck
    | InputCommitted
    | InputEnded
    | Queue
    | PrefillProgress
    | Step
    | Pinned
    | CacheEvicted
)
AnyEvent = KnownEvent | UnknownEvent
TERMINAL = (Completed, Incomplete, Failed)
# Without these a stream cannot begin or end, so a broken one breaks the connection instead of passing unknown.
_PILLARS = frozenset(kind.__struct_config__.tag for kind in (Created, ErrorFrame, *TERMINAL))

_known: msgspec.json.Decoder[KnownEvent] = msgspec.json.Decoder(KnownEvent)
_object = msgspec.json.Decoder(dict[str, Any])
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class NotAnEvent(ValueError):
    """The server sent something that no Responses server sends."""


def read_event(message: bytes) -> AnyEvent:
    """One text message of the server. Raises NotAnEvent for what is no JSON object with a type, and for a broken
    event that begins or ends a response."""
    try:
        return _known.decode(message)
    except _UNREADABLE as error:
        reason = error
    try:
        data = _object.decode(message)
    except _UNREADABLE as error:
        raise NotAnEvent(f"the server sent no event: {error}") from None
    kind = data.get("type")
    if not isinstance(kind, str) or kind in _PILLARS:
        raise NotAnEvent(f"the server sent a broken event: {reason}")
    return UnknownEvent(kind, data)


def lane_of(event: AnyEvent) -> str | None:
    """The lane an event belongs to; None for one that answers the connection as a whole."""
    if isinstance(event, Goaway | Step | Pinned | CacheEvicted):
        return None
    if isinstance(event, (Pruned, Promoted)):
        return event.branch
    lane = event.data.get("stream_id") if isinstance(event, UnknownEvent) else event.stream_id
    return lane if isinstance(lane, str) else None


def answer_of(response: Response) -> str:
    """The text of all messages in a response."""
    items = (item for item in response.output if isinstance(item, MessageItem))
    return "".join(part.text for item in items for part in item.content)


def failure_of(event: Failed) -> ResponseFailed:
    """The failure as an exception, under the code that says what really happened."""
    failure = event.response.error
    if failure is None:
        return ResponseFailed("server_error", "the server gave no reason")
    code = failure.x_code if isinstance(failure.x_code, str) else failure.code
    return ResponseFailed(code, failure.message)


def refusal_of(error: ErrorBody, status: int | None) -> ServerRefused:
    """An error body as an exception; its headers may say when to try again."""
    after = None
    if isinstance(error.headers, dict):
        try:
            after = float(error.headers["retry-after-ms"]) / 1000
        except (KeyError, ValueError):
            pass  # no advice, or none that can be read: then there is none
    return ServerRefused(error.code, error.message, error.param, status, after)


class _ErrorReply(msgspec.Struct, frozen=True):
    error: ErrorBody


class _ModelEntry(msgspec.Struct, frozen=True):
    id: str


class _ModelList(msgspec.Struct, frozen=True):
    data: list[_ModelEntry]


_error_reply = msgspec.json.Decoder(_ErrorReply)
_model_list = msgspec.json.Decoder(_ModelList)


def read_refusal(status: int, body: bytes) -> ServerRefused:
    """An HTTP error reply as an exception, whatever its body holds."""
    try:
        return refusal_of(_error_reply.decode(body).error, status)
    except _UNREADABLE:
        return ServerRefused(None, f"the server answered with status {status}", status=status)


def read_model_ids(body: bytes) -> list[str]:
    """The ids in a reply of GET /v1/models. Raises NotAnEvent if it is no such list."""
    try:
        return [entry.id for entry in _model_list.decode(body).data]
    except _UNREADABLE as error:
        raise NotAnEvent(f"the server sent no list of models: {error}") from None
