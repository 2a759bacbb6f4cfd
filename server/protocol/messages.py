"""What a client may send to Anthropic's routes under /v1/messages, and what comes back. Knows fields only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol.fields import NULL, honoured, ignored, refused
from headrace.server.protocol.tools import TOOLS


class ImageSource(msgspec.Struct, frozen=True):
    type: Literal["base64", "url", "file"]
    media_type: f.ShortText | None = None
    data: str | None = None
    url: str | None = None
    file_id: f.ShortText | None = None


class Block(msgspec.Struct, frozen=True):
    """One content block; which fields it needs depends on `type`."""

    type: f.Name
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: f.ShortText | None = None
    name: f.ShortText | None = None
    input: Raw = NULL
    tool_use_id: f.ShortText | None = None
    content: Raw = NULL
    is_error: bool | None = None
    source: ImageSource | None = None
    title: Raw = NULL
    context: Raw = NULL
    citations: Raw = NULL
    caller: Raw = NULL
    cache_control: Raw = NULL


Blocks = Annotated[list[Block], Meta(max_length=1024)]


class ResultBlock(msgspec.Struct, frozen=True):
    """One block inside of a tool's result."""

    type: f.Name
    text: str | None = None


ResultContent = str | Annotated[list[ResultBlock], Meta(max_length=64)] | None


class Turn(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class SystemBlock(msgspec.Struct, frozen=True):
    type: Literal["text"]
    text: str
    citations: Raw = NULL
    cache_control: Raw = NULL


class Thinking(msgspec.Struct, frozen=True):
    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: f.Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class MessagesTool(msgspec.Struct, frozen=True):
    """A tool of the client's own; with another `type` than custom, one that Anthropic defines."""

    name: f.ShortText | None = None
    type: f.Name | None = None
    description: str | None = None
    input_schema: Raw = NULL
    strict: bool | None = None
    cache_control: Raw = NULL
    input_examples: Raw = NULL
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: Raw = NULL


class MessagesChoice(msgspec.Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: f.ShortText | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema"):
    """`output_config.format`."""

    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Raw = NULL
    task_budget: Raw = NULL


class CountTokensRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/messages/count_tokens: what makes the prompt."""

    model: Annotated[f.Name, honoured("required")]
    messages: Annotated[
        Annotated[list[Turn], Meta(min_length=1, max_length=1024)],
        honoured(
            "required; blocks text, image (base64, or a data: URL), thinking, tool_use, tool_result; "
            "neighbours of one role are joined; a last one of the assistant's is continued (prefill)"
        ),
    ]
    system: Annotated[
        str | Annotated[list[SystemBlock], Meta(max_length=64)] | None, honoured("a string or text blocks")
    ] = None
    thinking: Annotated[
        Thinking | None,
        honoured(
            "enabled and adaptive turn the template's thinking on, disabled off; budget_tokens is no limit"
        ),
    ] = None
    tools: Annotated[
        Annotated[list[MessagesTool], Meta(max_length=TOOLS)] | None,
        honoured("the client's own; those that run on Anthropic's servers are left out, others refused"),
    ] = None
    tool_choice: Annotated[
        MessagesChoice | None, honoured("enforced; any and tool are refused where the device cannot")
    ] = None
    output_config: Annotated[
        OutputConfig | None,
        honoured("format is enforced, and refused where the device cannot; effort has no effect"),
    ] = None
    thread: Annotated[
        Raw, refused(note="nothing is kept here; clients that hear this send whole histories")
    ] = NULL
    compaction: Annotated[Raw, refused()] = NULL
    mcp_servers: Annotated[Raw, refused("[]")] = NULL
    chat_template_kwargs: Annotated[f.TemplateOptions | None, honoured("extra; a closed list of flags")] = (
        None
    )
    cache_control: Annotated[Raw, ignored("prompts are cached by themselves")] = NULL
    context_management: Annotated[Raw, ignored("the messages are used as they were sent")] = NULL
    speed: Annotated[Literal["standard", "fast"] | None, ignored("there is one speed")] = None


class MessagesRequest(CountTokensRequest, frozen=True, kw_only=True):
    """Body of POST /v1/messages."""

    max_tokens: Annotated[
        f.Count, honoured("required; what the context has no room for is left out, with its own stop_reason")
    ]
    stop_sequences: Annotated[
        Annotated[list[f.StopText], Meta(max_length=16)] | None, honoured("left out of the text")
    ] = None
    stream: Annotated[bool | None, honoured()] = None
    temperature: Annotated[f.Temperature | None, honoured("below 1e-5 is greedy")] = None
    top_p: Annotated[f.TopP | None, honoured()] = None
    top_k: Annotated[f.TopK | None, honoured("0 and -1 are off")] = None
    min_p: Annotated[f.MinP | None, honoured("extra")] = None
    repetition_penalty: Annotated[f.RepetitionPenalty | None, honoured("extra; 1 is off")] = None
    seed: Annotated[f.Seed | None, honoured("extra")] = None
    ignore_eos: Annotated[bool | None, honoured("extra")] = None
    min_tokens: Annotated[f.MinTokens | None, honoured("extra")] = None
    cache_salt: Annotated[
        f.OpaqueId | None, honoured("extra; shares cached prompts only with equal salts")
    ] = None
    container: Annotated[Raw, refused()] = NULL
    metadata: Annotated[Raw, ignored()] = NULL
    service_tier: Annotated[
        Literal["auto", "standard_only"] | None, ignored("all of this endpoint is of the standard class")
    ] = None
    inference_geo: Annotated[f.ShortText | None, ignored()] = None
    diagnostics: Annotated[Raw, ignored()] = NULL
    user_profile_id: Annotated[f.ShortText | None, ignored()] = None
    workspace_id: Annotated[f.ShortText | None, ignored()] = None


# -- replies ---------------------------------------------------------------------------------------------------


class InputTokens(msgspec.Struct, frozen=True):
    """The reply of count_tokens."""

    input_tokens: int


class ModelInfo(msgspec.Struct, frozen=True, tag="model"):
    """The served model, for clients that send `anthropic-version`."""

    id: str
    display_name: str
    created_at: str
    max_input_tokens: int
    max_tokens: int
    lifecycle: Literal["active"] = "active"


class ModelPage(msgspec.Struct, frozen=True):
    data: tuple[ModelInfo, ...]
    first_id: str
    last_id: str
    has_more: bool = False


class ThinkingTokens(msgspec.Struct, frozen=True):
    thinking_tokens: int


class MessageUsage(msgspec.Struct, frozen=True):
    """The three input counts add up to the prompt; writing to the cache is not counted apart."""

    input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking"):
    thinking: str
    signature: str


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use"):
    id: str
    name: str
    input: Any


AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class AnthropicMessage(msgspec.Struct, frozen=True, tag="message"):
    """A whole answer; in message_start without content and stop_reason."""

    id: str
    role: Literal["assistant"]
    model: str
    content: tuple[AnswerBlock, ...]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    message: AnthropicMessage


class BlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    index: int
    content_block: AnswerBlock


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag="signature_delta"):
    signature: str


class InputJsonDelta(msgspec.Struct, frozen=True, tag="input_json_delta"):
    partial_json: str


BlockPiece = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class BlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    index: int
    delta: BlockPiece


class BlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    index: int


class StopFacts(msgspec.Struct, frozen=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    """Why the answer ended; `usage` holds the counts of the whole answer."""

    delta: StopFacts
    usage: MessageUsage


class MessageStop(msgspec.Struct, frozen=True, tag="message_stop"):
    pass


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    pass


class ErrorDetails(msgspec.Struct, frozen=True):
    error_code: str


class AnthropicErrorSaid(msgspec.Struct, frozen=True, omit_defaults=True):
    type: str
    message: str
    details: ErrorDetails | UnsetType = UNSET


class AnthropicError(msgspec.Struct, frozen=True, tag="error", omit_defaults=True):
    """Body of a refused request, and the event that ends a failed stream."""

    error: AnthropicErrorSaid
    request_id: str | UnsetType = UNSET


MessageEvent = (
    MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping | AnthropicError
)
