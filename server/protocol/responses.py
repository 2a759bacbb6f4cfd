"""What a client may send on the Responses API, over HTTP and over WebSocket. Knows fields and bounds only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw

from headrace.server.protocol import extension as x
from headrace.server.protocol import fields as f
from headrace.server.protocol import latency
from headrace.server.protocol.fields import NULL, honoured, ignored, refused
from headrace.server.protocol.tools import TOOLS

# Tools of these types are the provider's own. Stock clients always send some of them beside their functions, so
# they are left out of the prompt and of the echo instead of failing the request.
HOSTED_TOOLS = frozenset(
    {
        "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11",
        "file_search", "computer", "computer_use", "computer_use_preview", "code_interpreter", "mcp",
        "image_generation", "local_shell", "shell", "apply_patch", "namespace", "tool_search",
    }
)  # fmt: skip


class Part(msgspec.Struct, frozen=True):
    """One content part of an input item; which fields it needs depends on `type`."""

    type: Literal[
        "input_text",
        "output_text",
        "text",
        "refusal",
        "input_image",
        "input_file",
        "input_audio",
        "reasoning_text",
    ]
    text: str | None = None
    refusal: str | None = None
    image_url: f.ImageUrl | str | None = None
    file_id: Raw = NULL
    file_data: Raw = NULL
    file_url: Raw = NULL
    filename: Raw = NULL
    detail: f.Detail | None = None
    input_audio: Raw = NULL
    annotations: Raw = NULL
    logprobs: Raw = NULL
    prompt_cache_breakpoint: Raw = NULL


Content = str | Annotated[list[Part], Meta(max_length=64)]


class Item(msgspec.Struct, frozen=True):
    """One input item. `type` may be missing on messages, so the kind is decided after decoding."""

    type: f.Name | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    id: f.ShortText | None = None
    status: f.ShortText | None = None
    phase: f.ShortText | None = None
    call_id: f.ShortText | None = None
    name: f.ShortText | None = None
    arguments: str | None = None
    input: str | None = None
    output: Raw = NULL
    summary: Raw = NULL
    encrypted_content: str | None = None


class Tool(msgspec.Struct, frozen=True):
    """A tool. Its fields are read once its type is known: hosted ones, left out, spell some of them otherwise."""

    type: f.Name
    name: Raw = NULL
    description: Raw = NULL
    parameters: Raw = NULL
    strict: Raw = NULL
    format: Raw = NULL


class TextFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    name: Raw = NULL
    schema: Raw = NULL
    strict: Raw = NULL
    description: Raw = NULL


class TextOptions(msgspec.Struct, frozen=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct, frozen=True):
    effort: f.Effort | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: f.ShortText | None = None
    mode: f.ShortText | None = None


class CacheOptions(msgspec.Struct, frozen=True):
    mode: f.ShortText | None = None
    ttl: f.ShortText | None = None
    prewarm: bool | None = None
    comparison_response_id: f.ShortText | None = None


Input = str | Annotated[list[Item], Meta(max_length=1024)]


class ResponseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/responses, and the flat fields of `response.create`."""

    model: Annotated[f.Name | None, honoured("required, unless the socket's address named one")] = None
    input: Annotated[
        Input | None,
        honoured(
            "text, or items: messages of text and pictures (data: URLs), calls, their outputs, reasoning, "
            "item_reference of items that are held here, compaction; empty only when continuing"
        ),
    ] = None
    instructions: Annotated[str | None, honoured("leading system text, not inherited")] = None
    previous_response_id: Annotated[f.Name | None, honoured("continues or forks that response")] = None
    max_output_tokens: Annotated[f.Count | None, honoured()] = None
    temperature: Annotated[f.Temperature | None, honoured("below 1e-5 is greedy")] = None
    top_p: Annotated[f.TopP | None, honoured()] = None
    top_k: Annotated[f.TopK | None, honoured("extra; 0 and -1 are off")] = None
    min_p: Annotated[f.MinP | None, honoured("extra")] = None
    frequency_penalty: Annotated[f.Penalty | None, honoured("extra")] = None
    presence_penalty: Annotated[f.Penalty | None, honoured("extra")] = None
    repetition_penalty: Annotated[f.RepetitionPenalty | None, honoured("extra; 1 is off")] = None
    logit_bias: Annotated[f.LogitBias | None, honoured("extra")] = None
    seed: Annotated[f.Seed | None, honoured("extra")] = None
    stop: Annotated[f.Stop | None, honoured("extra; left out of the text")] = None
    stop_token_ids: Annotated[f.StopIds | None, honoured("extra")] = None
    ignore_eos: Annotated[bool | None, honoured("extra")] = None
    min_tokens: Annotated[f.MinTokens | None, honoured("extra")] = None
    chat_template_kwargs: Annotated[f.TemplateOptions | None, honoured("extra; a closed list of flags")] = (
        None
    )
    cache_salt: Annotated[
        f.OpaqueId | None, honoured("extra; shares cached prompts only with equal salts")
    ] = None
    metadata: Annotated[f.Metadata | None, honoured("echoed")] = None
    store: Annotated[
        bool | None, honoured("default true; in memory, bounded; with --store in a file too")
    ] = None
    reasoning: Annotated[Reasoning | None, honoured("effort none turns thinking off; echoed")] = None
    text: Annotated[
        TextOptions | None,
        honoured("format is enforced; verbosity has no effect"),
    ] = None
    regex: Annotated[
        f.Regex | None, honoured("extra; the whole answer matches it: no look-around, no back-references")
    ] = None
    tools: Annotated[
        Annotated[list[Tool], Meta(max_length=TOOLS)] | None,
        honoured(
            "function and custom, where the model's chat template has a place; hosted types are left out; a custom "
            "tool's grammar is enforced, except for models that write calls in qwen_coder's way"
        ),
    ] = None
    tool_choice: Annotated[Raw, honoured("enforced")] = NULL
    parallel_tool_calls: Annotated[bool | None, honoured("false: the answer ends with its first call")] = None
    service_tier: Annotated[f.ServiceTier | None, honoured(f"{latency.TIER}; the tier in use is echoed")] = (
        None
    )
    x_latency: Annotated[latency.Latency | None, honoured(f"extra; {latency.LATENCY}")] = None
    priority: Annotated[latency.Priority | None, honoured(latency.PRIORITY)] = None
    stream: Annotated[bool | None, honoured("HTTP; a socket always streams")] = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None,
        honoured("auto drops the oldest turns; default disabled: a too long input is an error"),
    ] = None
    include: Annotated[
        Annotated[list[f.Name], Meta(max_length=32)] | None,
        honoured("message.output_text.logprobs; the rest has no effect"),
    ] = None
    top_logprobs: Annotated[
        f.TopLogprobs | None, honoured("needs message.output_text.logprobs in include")
    ] = None
    x_telemetry: Annotated[
        x.Telemetry | None,
        honoured("extra; response: where the time went, in the metadata of the end; step: each step too"),
    ] = None
    background: Annotated[bool | None, honoured("HTTP: answered at once, runs on without a connection")] = (
        None
    )
    conversation: Annotated[Raw, refused()] = NULL
    prompt: Annotated[Raw, refused(note="stored templates are not offered")] = NULL
    ebnf: Annotated[Raw, refused()] = NULL
    lora_path: Annotated[Raw, refused()] = NULL
    n: Annotated[Annotated[int, Meta(ge=1, le=16)] | None, refused(1)] = None
    best_of: Annotated[Annotated[int, Meta(ge=1, le=1)] | None, refused(1)] = None
    prompt_cache_options: Annotated[
        CacheOptions | None, honoured("prewarm reads the prompt and answers nothing; the rest has no effect")
    ] = None
    prompt_cache_key: Annotated[f.ShortText | None, ignored()] = None
    prompt_cache_retention: Annotated[Raw, ignored()] = NULL
    user: Annotated[f.OpaqueId | None, ignored()] = None
    safety_identifier: Annotated[f.ShortText | None, ignored()] = None
    max_tool_calls: Annotated[f.Count | None, ignored()] = None
    context_management: Annotated[Raw, ignored()] = NULL
    moderation: Annotated[Raw, ignored()] = NULL
    access_programs: Annotated[Raw, ignored()] = NULL
    background_options: Annotated[Raw, ignored()] = NULL
    image: Annotated[Raw, ignored()] = NULL
    stream_options: Annotated[Raw, ignored()] = NULL
    x_receipt: Annotated[
        bool | None,
        honoured(
            "the terminal event tells what was computed, in hashes; only with a server that is --deterministic"
        ),
    ] = None


class CompactRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/responses/compact."""

    model: Annotated[f.Name | None, honoured("required")] = None
    input: Annotated[Input | None, honoured("as on /v1/responses; empty only when continuing")] = None
    instructions: Annotated[
        str | None, honoured("leading system text of the summary; no part of the result")
    ] = None
    previous_response_id: Annotated[f.Name | None, honoured("its conversation comes before the input")] = None
    service_tier: Annotated[f.ServiceTier | None, ignored("summaries are of the standard class")] = None
    prompt_cache_key: Annotated[f.ShortText | None, ignored()] = None
    prompt_cache_options: Annotated[CacheOptions | None, ignored()] = None
    prompt_cache_retention: Annotated[Raw, ignored()] = NULL
    image: Annotated[Raw, ignored()] = NULL


class ResponseCreate(ResponseRequest, frozen=True, kw_only=True, tag_field="type", tag="response.create"):
    """The client event that starts a response on a socket."""

    stream_id: Annotated[Raw, honoured("the lane: 1 to 256 of A-Z, a-z, 0-9, _ . -")] = NULL
    generate: Annotated[
        bool | None, honoured("false reads the prompt into the cache, and answers nothing")
    ] = None
    background: Annotated[bool | None, refused(False, note="a socket's responses end with it")] = None
    x_credit: Annotated[
        x.Credit | None, honoured("tokens that may be told until x.credit grants more; unlimited without it")
    ] = None
    x_on_slow: Annotated[
        x.OnSlow | None,
        honoured("at the unread mark: pause (default), pause at `buffer` tokens, or drop the connection"),
    ] = None
    x_on_disconnect: Annotated[
        x.OnDisconnect | None,
        honoured("default continue on a connection with ?ext=1 or engine.v1, else cancel"),
    ] = None
    x_branches: Annotated[
        x.Branching | None,
        honoured(
            "`n` answers, in the lanes `LANE#0` to `LANE#(n-1)`, that part `at` a token of the first one"
        ),
    ] = None
    event_id: Annotated[f.ShortText | None, ignored()] = None


class ResponseCancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="response.cancel"):
    """Stops one response; without an id, what is in flight in the unnamed lane (or in `stream_id`)."""

    response_id: Annotated[f.ShortText | None, honoured("that response, in any lane")] = None
    stream_id: Annotated[f.ShortText | None, honoured("extra: what is in flight in this lane")] = None
    event_id: Annotated[f.ShortText | None, ignored()] = None


class SteerPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["input_text", "input_image", "input_file"]
    text: str | None = None
    image_url: Raw = NULL
    file_id: Raw = NULL
    file_data: Raw = NULL
    file_url: Raw = NULL
    filename: Raw = NULL
    detail: Raw = NULL


class SteerItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user"]
    content: str | Annotated[list[SteerPart], Meta(min_length=1, max_length=64)]
    type: Literal["message"] = "message"


class ResponseSteer(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="response.steer",
):
    """Adds user input to a running response."""

    previous_response_id: Annotated[f.Name, honoured("required; the running response")]
    input: Annotated[
        str | Annotated[list[SteerItem], Meta(min_length=1, max_length=1024)],
        honoured("required; messages of the user. Any other field is an error"),
    ]
