"""What the server says on the Realtime socket: objects and events, with the field sets that strict clients need.

Optional fields are left out (UNSET), never null, except where the API itself says null. `event_id` is repeated
in every class because the order of declaration is the order on the wire.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

# -- items -------------------------------------------------------------------------------------------------------


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    text: str


class InputImage(msgspec.Struct, frozen=True, tag_field="type", tag="input_image"):
    """A picture of the user. What is told back has no `image_url`: some clients take no message above 1 MiB."""

    image_url: str | UnsetType = UNSET
    detail: str = "auto"


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str


class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """A turn. Users and the system write input_text, users also show pictures, the assistant writes output_text."""

    id: str
    object: str = "realtime.item"
    status: str = "completed"  # in_progress, completed, incomplete
    role: str = "user"
    content: tuple[InputText | InputImage | OutputText, ...] = ()

    @property
    def pictures(self) -> int:
        """How many it shows."""
        return sum(isinstance(part, InputImage) for part in self.content)


class CallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    object: str = "realtime.item"
    status: str = "completed"
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class CallOutputItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call_output"):
    id: str
    object: str = "realtime.item"
    status: str = "completed"
    call_id: str = ""
    output: str = ""


Item = MessageItem | CallItem | CallOutputItem


def shown(item: Item) -> Item:
    """The item as a client is told of it: without the bytes of its pictures."""
    if not isinstance(item, MessageItem) or not item.pictures:
        return item
    parts = [
        InputImage(UNSET, part.detail) if isinstance(part, InputImage) else part for part in item.content
    ]
    return msgspec.structs.replace(item, content=tuple(parts))


# -- the session -------------------------------------------------------------------------------------------------


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    name: str
    description: str | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class ReasoningEcho(msgspec.Struct, frozen=True):
    effort: str | None = None


class SessionObject(msgspec.Struct, frozen=True, kw_only=True):
    """The whole session, as session.created and session.updated carry it."""

    type: str = "realtime"
    object: str = "realtime.session"
    id: str
    model: str
    output_modalities: tuple[str, ...] = ("text",)
    instructions: str = ""
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: str | dict[str, str] = "auto"
    max_output_tokens: int | str = "inf"
    truncation: Any = "auto"
    tracing: None = None
    prompt: None = None
    expires_at: int
    parallel_tool_calls: bool | UnsetType = UNSET
    reasoning: ReasoningEcho | UnsetType = UNSET
    audio: Any = UNSET
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    min_p: float | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    presence_penalty: float | UnsetType = UNSET
    repetition_penalty: float | UnsetType = UNSET
    logit_bias: dict[str, float] | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    stop: Any = UNSET
    stop_token_ids: list[int] | UnsetType = UNSET
    ignore_eos: bool | UnsetType = UNSET
    min_tokens: int | UnsetType = UNSET
    chat_template_kwargs: dict[str, bool | str] | UnsetType = UNSET


class SessionCreated(msgspec.Struct, tag_field="type", tag="session.created"):
    event_id: str
    session: SessionObject


class SessionUpdated(msgspec.Struct, tag_field="type", tag="session.updated"):
    event_id: str
    session: SessionObject


# -- the conversation --------------------------------------------------------------------------------------------


class ConversationItemAdded(msgspec.Struct, tag_field="type", tag="conversation.item.added"):
    event_id: str
    previous_item_id: str | None
    item: Item


class ConversationItemDone(msgspec.Struct, tag_field="type", tag="conversation.item.done"):
    event_id: str
    previous_item_id: str | None
    item: Item


class ConversationItemDeleted(msgspec.Struct, tag_field="type", tag="conversation.item.deleted"):
    event_id: str
    item_id: str


class ConversationItemRetrieved(msgspec.Struct, tag_field="type", tag="conversation.item.retrieved"):
    event_id: str
    item: Item


class InputAudioBufferCleared(msgspec.Struct, tag_field="type", tag="input_audio_buffer.cleared"):
    event_id: str


# -- a response --------------------------------------------------------------------------------------------------


class CachedDetails(msgspec.Struct, frozen=True):
    text_tokens: int
    audio_tokens: int = 0
    image_tokens: int = 0


class InputDetails(msgspec.Struct, frozen=True):
    text_tokens: int
    audio_tokens: int
    image_tokens: int
    cached_tokens: int
    cached_tokens_details: CachedDetails


class OutputDetails(msgspec.Struct, frozen=True):
    text_tokens: int
    audio_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_token_details: InputDetails
    output_token_details: OutputDetails


class StatusError(msgspec.Struct, frozen=True):
    type: str
    code: str
    message: str


class StatusDetails(msgspec.Struct, frozen=True):
    """Why a response is not `completed`."""

    type: str
    reason: str | UnsetType = UNSET
    error: StatusError | UnsetType = UNSET


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """`conversation_id` is null for a response out of band."""

    object: str = "realtime.response"
    id: str
    status: str
    status_details: StatusDetails | None = None
    output: tuple[Item, ...] = ()
    conversation_id: str | None
    output_modalities: tuple[str, ...] = ("text",)
    max_output_tokens: int | str
    metadata: dict[str, str] | None = None
    usage: Usage | None = None


class ResponseCreated(msgspec.Struct, tag_field="type", tag="response.created"):
    event_id: str
    response: ResponseObject


class ResponseDone(msgspec.Struct, tag_field="type", tag="response.done"):
    event_id: str
    response: ResponseObject


class OutputItemAdded(msgspec.Struct, tag_field="type", tag="response.output_item.added"):
    event_id: str
    response_id: str
    output_index: int
    item: Item


class OutputItemDone(msgspec.Struct, tag_field="type", tag="response.output_item.done"):
    event_id: str
    response_id: str
    output_index: int
    item: Item


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """The part of the two content_part events. Strict clients know it as `text`, unlike the part in an item."""

    text: str


class PartAdded(msgspec.Struct, tag_field="type", tag="response.content_part.added"):
    event_id: str
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    part: TextPart


class PartDone(msgspec.Struct, tag_field="type", tag="response.content_part.done"):
    event_id: str
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    part: TextPart


class TextDelta(msgspec.Struct, tag_field="type", tag="response.output_text.delta"):
    event_id: str
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    delta: str


class TextDone(msgspec.Struct, tag_field="type", tag="response.output_text.done"):
    event_id: str
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    text: str


class ArgumentsDelta(msgspec.Struct, tag_field="type", tag="response.function_call_arguments.delta"):
    event_id: str
    response_id: str
    item_id: str
    output_index: int
    call_id: str
    delta: str


class ArgumentsDone(msgspec.Struct, tag_field="type", tag="response.function_call_arguments.done"):
    event_id: str
    response_id: str
    item_id: str
    output_index: int
    call_id: str
    name: str
    arguments: str


class RateLimitsUpdated(msgspec.Struct, tag_field="type", tag="rate_limits.updated"):
    """No rate limit is kept per minute here: the list is empty, and says so after each response."""

    event_id: str
    rate_limits: tuple[()] = ()


class ErrorBody(msgspec.Struct, frozen=True):
    """`event_id` is that of the client event which caused it, null if that had none."""

    type: str
    code: str | None
    message: str
    param: str | None
    event_id: str | None


class ErrorEvent(msgspec.Struct, tag_field="type", tag="error"):
    """One client event was refused; the session goes on."""

    event_id: str
    error: ErrorBody


Event = (
    SessionCreated
    | SessionUpdated
    | ConversationItemAdded
    | ConversationItemDone
    | ConversationItemDeleted
    | ConversationItemRetrieved
    | InputAudioBufferCleared
    | ResponseCreated
    | ResponseDone
    | OutputItemAdded
    | OutputItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ArgumentsDelta
    | ArgumentsDone
    | RateLimitsUpdated
    | ErrorEvent
)
