"""What /v1/chat/completions and /v1/completions have in common, asked and answered. Knows fields and bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Raw

from headrace.server.protocol import fields as f
from headrace.server.protocol import latency
from headrace.server.protocol.fields import NULL, honoured, ignored, refused


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class OpenAiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that both read alike."""

    model: Annotated[f.Name, honoured("required")]
    temperature: Annotated[f.Temperature | None, honoured("below 1e-5 is greedy")] = None
    top_p: Annotated[f.TopP | None, honoured()] = None
    top_k: Annotated[f.TopK | None, honoured("extra; 0 and -1 are off")] = None
    min_p: Annotated[f.MinP | None, honoured("extra")] = None
    frequency_penalty: Annotated[f.Penalty | None, honoured()] = None
    presence_penalty: Annotated[f.Penalty | None, honoured()] = None
    repetition_penalty: Annotated[f.RepetitionPenalty | None, honoured("extra; 1 is off")] = None
    logit_bias: Annotated[f.LogitBias | None, honoured()] = None
    stop: Annotated[f.Stop | None, honoured("left out of the text")] = None
    stop_token_ids: Annotated[f.StopIds | None, honoured("extra")] = None
    ignore_eos: Annotated[bool | None, honoured("extra")] = None
    min_tokens: Annotated[f.MinTokens | None, honoured("extra")] = None
    cache_salt: Annotated[
        f.OpaqueId | None, honoured("extra; shares cached prompts only with equal salts")
    ] = None
    stream: Annotated[bool | None, honoured()] = None
    stream_options: Annotated[StreamOptions | None, honoured("include_usage, continuous_usage_stats")] = None
    regex: Annotated[
        f.Regex | None, honoured("extra; the whole answer matches it: no look-around, no back-references")
    ] = None
    skip_special_tokens: Annotated[bool | None, refused(True)] = None
    return_token_ids: Annotated[bool | None, refused(False)] = None
    lora_path: Annotated[Raw, refused()] = NULL
    ebnf: Annotated[Raw, refused()] = NULL
    guided_json: Annotated[Raw, refused()] = NULL
    guided_regex: Annotated[Raw, refused()] = NULL
    guided_choice: Annotated[Raw, refused()] = NULL
    guided_grammar: Annotated[Raw, refused()] = NULL
    structured_outputs: Annotated[Raw, refused()] = NULL
    bad_words: Annotated[Raw, refused("[]")] = NULL
    allowed_token_ids: Annotated[Raw, refused()] = NULL
    logits_processors: Annotated[Raw, refused()] = NULL
    truncate_prompt_tokens: Annotated[Raw, refused()] = NULL
    length_penalty: Annotated[Raw, refused("1", "1.0")] = NULL
    use_beam_search: Annotated[bool | None, refused(False)] = None
    service_tier: Annotated[f.ServiceTier | None, honoured(latency.TIER)] = None
    x_latency: Annotated[latency.Latency | None, honoured(f"extra; {latency.LATENCY}")] = None
    metadata: Annotated[f.Metadata | None, ignored()] = None
    user: Annotated[f.OpaqueId | None, ignored()] = None
    request_id: Annotated[f.OpaqueId | None, ignored("the reply's ids are made here")] = None
    priority: Annotated[latency.Priority | None, honoured(latency.PRIORITY)] = None


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class ChatUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails = CompletionDetails()
