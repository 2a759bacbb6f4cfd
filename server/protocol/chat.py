"""What a client may send to POST /v1/chat/completions, and what comes back. Knows fields and bounds only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol.extension import Summary
from headrace.server.protocol.fields import NULL, honoured, ignored, refused
from headrace.server.protocol.logprobs import ChatLogprobs
from headrace.server.protocol.openai_request import ChatUsage, OpenAiRequest
from headrace.server.protocol.tools import TOOLS, CallDelta, ChatCall, ChatTool, ToolName


class ChatPart(msgspec.Struct, frozen=True):
    """One content part of a message: text, or a picture."""

    type: Literal["text", "refusal", "image_url", "input_audio", "file", "video_url"]
    text: str | None = None
    refusal: str | None = None
    image_url: f.ImageUrl | str | None = None
    input_audio: Raw = NULL
    file: Raw = NULL
    video_url: Raw = NULL
    prompt_cache_breakpoint: Raw = NULL


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ChatPart], Meta(max_length=64)] | None = None
    name: f.ShortText | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[ChatCall], Meta(max_length=TOOLS)] | None = None
    function_call: Raw = NULL
    tool_call_id: f.ShortText | None = None
    audio: Raw = NULL
    annotations: Raw = NULL


class JsonSchema(msgspec.Struct, frozen=True):
    """`json_schema`, in both APIs."""

    name: ToolName
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Raw = NULL


class ChatRequest(OpenAiRequest, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)],
        honoured("required; text, pictures (`image_url` with a data: URL), calls and their results"),
    ]
    max_completion_tokens: Annotated[f.Count | None, honoured("wins over max_tokens")] = None
    max_tokens: Annotated[f.Count | None, honoured()] = None
    seed: Annotated[f.Seed | None, honoured()] = None
    chat_template_kwargs: Annotated[f.TemplateOptions | None, honoured("extra; a closed list of flags")] = (
        None
    )
    reasoning_effort: Annotated[f.Effort | None, honoured("none turns thinking off")] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=16)] | None,
        honoured("answer k draws with seed + k; one prefill for all"),
    ] = None
    best_of: Annotated[Annotated[int, Meta(ge=1, le=1)] | None, refused(1)] = None
    logprobs: Annotated[bool | None, honoured("of the model itself, before temperature")] = None
    top_logprobs: Annotated[f.TopLogprobs | None, honoured("needs logprobs")] = None
    prompt_logprobs: Annotated[
        f.TopLogprobs | None, refused(note="/v1/completions has them, with echo and logprobs")
    ] = None
    response_format: Annotated[
        ResponseFormat | None,
        honoured("enforced; a schema that cannot be enforced is refused"),
    ] = None
    tools: Annotated[
        Annotated[list[ChatTool], Meta(max_length=TOOLS)] | None,
        honoured("functions; refused where the model's chat template has no place for them"),
    ] = None
    tool_choice: Annotated[Raw, honoured("enforced")] = NULL
    x_telemetry: Annotated[
        Literal["off", "response"] | None,
        honoured("extra; where the time went, on the usage chunk or the whole reply; needs n 1"),
    ] = None
    functions: Annotated[Raw, refused("[]")] = NULL
    function_call: Annotated[Raw, refused('"none"', '"auto"')] = NULL
    modalities: Annotated[Raw, refused('["text"]')] = NULL
    audio: Annotated[Raw, refused()] = NULL
    web_search_options: Annotated[Raw, refused()] = NULL
    continue_final_message: Annotated[
        bool | None, honoured("extra; the answer goes on with the last message, which is the assistant's")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, honoured("extra; false: the prompt ends behind the last message, without an opening")
    ] = None
    echo: Annotated[bool | None, refused(False)] = None
    chat_template: Annotated[Raw, refused(note="a client's template is never run")] = NULL
    documents: Annotated[Raw, refused()] = NULL
    parallel_tool_calls: Annotated[bool | None, honoured("false: the answer ends with its first call")] = None
    store: Annotated[bool | None, ignored("chat completions are not stored")] = None
    safety_identifier: Annotated[f.ShortText | None, ignored()] = None
    prompt_cache_key: Annotated[f.ShortText | None, ignored()] = None
    prompt_cache_options: Annotated[Raw, ignored()] = NULL
    prompt_cache_retention: Annotated[Raw, ignored()] = NULL
    prediction: Annotated[Raw, ignored("only ever a speed hint")] = NULL
    verbosity: Annotated[Literal["low", "medium", "high"] | None, ignored()] = None
    moderation: Annotated[Raw, ignored()] = NULL


# -- replies ---------------------------------------------------------------------------------------------------


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: tuple[CallDelta, ...] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: str | None
    logprobs: ChatLogprobs | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True):
    """One SSE event; `usage` is left out unless asked for."""

    id: str
    object: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: ChatUsage | UnsetType = UNSET
    x_telemetry: Summary | UnsetType = UNSET


class AnswerMessage(msgspec.Struct, frozen=True):
    """`content` is null in an answer of nothing but calls."""

    role: str
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: tuple[ChatCall, ...] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: ChatLogprobs | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True):
    """The whole reply."""

    id: str
    object: str
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: ChatUsage
    x_telemetry: Summary | UnsetType = UNSET
