"""What the server says on the Responses API: objects and events, with the field sets that strict clients need.

Optional fields are left out (UNSET), never null, except where the API itself says null. `sequence_number` and
`stream_id` are repeated in every class because the order of declaration is the order on the wire.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from headrace.server.protocol.logprobs import TokenLogprobPart

Lane = str | UnsetType


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """The text part of a message. Annotations there are none; logprobs where they are asked for."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[TokenLogprobPart, ...] = ()


class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    role: str
    status: str  # in_progress, completed, incomplete
    content: list[OutputText]


class FunctionCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: str


class CustomCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="custom_tool_call"):
    id: str
    call_id: str
    name: str
    input: str
    status: str


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """There are no summaries here: what the model thought is told as it is."""

    id: str
    status: str
    content: list[ReasoningText]
    summary: tuple[()] = ()
    encrypted_content: str | UnsetType = UNSET


CALLS = (FunctionCallItem, CustomCallItem)
OutputItem = MessageItem | FunctionCallItem | CustomCallItem | ReasoningItem


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: str


class ResponseError(msgspec.Struct, frozen=True):
    """`code` is one that strict clients accept; `x_code` says what really happened."""

    code: str
    message: str
    x_code: str | UnsetType = UNSET


class ReasoningEcho(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None


class TextEcho(msgspec.Struct, frozen=True):
    format: dict[str, Any]


class ForkedFrom(msgspec.Struct, frozen=True):
    """The response that this one begins as, and how many of its output tokens are kept."""

    response_id: str
    at_token: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was computed, in hashes (`sha256:` and 64 digits); the seed as a string, since it may have 64 bits."""

    weights: str
    computing: str
    seed: str
    prompt: str
    output: str
    output_tokens: int
    changed: bool = False


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The response object; a new one is made for each event that carries it."""

    id: str
    object: str = "response"
    created_at: int
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    tool_choice: str | dict[str, Any]
    tools: tuple[dict[str, Any], ...] = ()
    status: str
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    metadata: dict[str, str]
    temperature: float
    top_p: float
    top_logprobs: int = 0
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    reasoning: ReasoningEcho
    text: TextEcho
    truncation: str = "disabled"
    store: bool
    usage: Usage | None = None
    service_tier: str | UnsetType = UNSET
    x_forked_from: ForkedFrom | UnsetType = UNSET
    x_receipt: Receipt | UnsetType = UNSET  # in the terminal event, where it was asked for
    x_resume_token: str | UnsetType = UNSET  # in response.created, for clients that asked to come back


class Created(msgspec.Struct, tag_field="type", tag="response.created"):
    sequence_number: int
    response: Response
    stream_id: Lane = UNSET


class InProgress(msgspec.Struct, tag_field="type", tag="response.in_progress"):
    sequence_number: int
    response: Response
    stream_id: Lane = UNSET


class ItemAdded(msgspec.Struct, tag_field="type", tag="response.output_item.added"):
    sequence_number: int
    output_index: int
    item: OutputItem
    stream_id: Lane = UNSET


class PartAdded(msgspec.Struct, tag_field="type", tag="response.content_part.added"):
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputText
    stream_id: Lane = UNSET


class TextDelta(msgspec.Struct, tag_field="type", tag="response.output_text.delta"):
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: tuple[TokenLogprobPart, ...] = ()
    stream_id: Lane = UNSET


class TextDone(msgspec.Struct, tag_field="type", tag="response.output_text.done"):
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: tuple[TokenLogprobPart, ...] = ()
    stream_id: Lane = UNSET


class PartDone(msgspec.Struct, tag_field="type", tag="response.content_part.done"):
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputText
    stream_id: Lane = UNSET


class ReasoningDelta(msgspec.Struct, tag_field="type", tag="response.reasoning_text.delta"):
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    stream_id: Lane = UNSET


class ReasoningDone(msgspec.Struct, tag_field="type", tag="response.reasoning_text.done"):
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    stream_id: Lane = UNSET


class ArgumentsDelta(msgspec.Struct, tag_field="type", tag="response.function_call_arguments.delta"):
    sequence_number: int
    item_id: str
    output_index: int
    delta: str
    stream_id: Lane = UNSET


class ArgumentsDone(msgspec.Struct, tag_field="type", tag="response.function_call_arguments.done"):
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str
    stream_id: Lane = UNSET


class InputDelta(msgspec.Struct, tag_field="type", tag="response.custom_tool_call_input.delta"):
    sequence_number: int
    item_id: str
    output_index: int
    delta: str
    stream_id: Lane = UNSET


class InputDone(msgspec.Struct, tag_field="type", tag="response.custom_tool_call_input.done"):
    sequence_number: int
    item_id: str
    output_index: int
    input: str
    stream_id: Lane = UNSET


class ItemDone(msgspec.Struct, tag_field="type", tag="response.output_item.done"):
    sequence_number: int
    output_index: int
    item: OutputItem
    stream_id: Lane = UNSET


class Completed(msgspec.Struct, tag_field="type", tag="response.completed"):
    sequence_number: int
    response: Response
    stream_id: Lane = UNSET


class Incomplete(msgspec.Struct, tag_field="type", tag="response.incomplete"):
    sequence_number: int
    response: Response
    stream_id: Lane = UNSET


class Failed(msgspec.Struct, tag_field="type", tag="response.failed"):
    sequence_number: int
    response: Response
    stream_id: Lane = UNSET


Event = (
    Created
    | InProgress
    | ItemAdded
    | PartAdded
    | TextDelta
    | TextDone
    | PartDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | InputDelta
    | InputDone
    | ItemDone
    | Completed
    | Incomplete
    | Failed
)


class SteerError(msgspec.Struct, frozen=True):
    type: str
    code: str
    message: str


class SteerEcho(msgspec.Struct, frozen=True):
    previous_response_id: str
    input: Any
    id: str | UnsetType = UNSET


class SteerName(msgspec.Struct, frozen=True):
    id: str
    previous_response_id: str


class SteerAccepted(msgspec.Struct, tag_field="type", tag="response.steer.accepted"):
    """The server owns the input; the successor's `response.created` commits it."""

    sequence_number: int
    steer: SteerName
    stream_id: Lane = UNSET


class RequiredInput(msgspec.Struct, frozen=True):
    """The stub of a tool output that the response waits for."""

    type: str
    call_id: str
    name: str | UnsetType = UNSET


class SteerPending(msgspec.Struct, tag_field="type", tag="response.steer.pending"):
    """The input waits for the tool outputs of the next request."""

    sequence_number: int
    required_input: tuple[RequiredInput, ...]
    steer: SteerName
    reason: str = "waiting_for_required_input"
    stream_id: Lane = UNSET


class SteerFailed(msgspec.Struct, tag_field="type", tag="response.steer.failed"):
    sequence_number: int
    error: SteerError
    steer: SteerEcho
    stream_id: Lane = UNSET


class ErrorBody(msgspec.Struct, frozen=True):
    type: str
    code: str | None
    message: str
    param: str | None
    headers: dict[str, str] | UnsetType = UNSET


class PictureHeld(msgspec.Struct, frozen=True, tag_field="type", tag="x.image"):
    """A binary message was a picture: `ref:` and this name as an `image_url` show it in requests of the socket."""

    image_ref: str
    bytes: int


class ErrorFrame(msgspec.Struct, tag_field="type", tag="error"):
    """A refused request on a socket: no response exists. Carries no sequence number."""

    status: int
    error: ErrorBody
    stream_id: Lane = UNSET


class InputTokens(msgspec.Struct, frozen=True):
    input_tokens: int
    object: str = "response.input_tokens"


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    text: str


class InputImage(msgspec.Struct, frozen=True, tag_field="type", tag="input_image"):
    image_url: str
    detail: str


class InputMessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """What somebody else than the model said, as the input that it may be again."""

    id: str
    role: str
    status: str
    content: list[InputText | InputImage]


class CompactionItem(msgspec.Struct, frozen=True, tag_field="type", tag="compaction"):
    id: str
    encrypted_content: str


class CompactedResponse(msgspec.Struct, frozen=True):
    """What was not said by the model, then the compaction of the rest: input of the request that goes on."""

    id: str
    created_at: int
    output: list[Any]  # InputMessageItem, at the end one CompactionItem
    usage: Usage
    object: str = "response.compaction"


class DeletedResponse(msgspec.Struct, frozen=True):
    id: str
    object: str = "response"
    deleted: bool = True
