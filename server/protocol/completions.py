"""What a client may send to POST /v1/completions, and what comes back. Knows fields and bounds only."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol import latency
from headrace.server.protocol.chat import ChatUsage, StreamOptions
from headrace.server.protocol.fields import NULL, honoured, ignored, refused
from headrace.server.protocol.logprobs import CompletionLogprobs

MOST_CHOICES = 256  # prompts times n

# Strings and ids in one list of entries: msgspec tells list types apart by nothing, so the face does.
PromptEntry = str | f.TokenId | Annotated[list[f.TokenId], Meta(max_length=1 << 20)]
CompletionPrompt = str | Annotated[list[PromptEntry], Meta(min_length=1, max_length=1 << 20)]


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/completions."""

    model: Annotated[f.Name, honoured("required")]
    prompt: Annotated[
        CompletionPrompt | None,
        honoured("required; text, token ids, or a list of up to 256 texts or lists of ids"),
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None,
        honoured("default 16; 0 tells of the prompt alone"),
    ] = None
    temperature: Annotated[f.Temperature | None, honoured("below 1e-5 is greedy")] = None
    top_p: Annotated[f.TopP | None, honoured()] = None
    top_k: Annotated[f.TopK | None, honoured("extra; 0 and -1 are off")] = None
    min_p: Annotated[f.MinP | None, honoured("extra")] = None
    frequency_penalty: Annotated[f.Penalty | None, honoured()] = None
    presence_penalty: Annotated[f.Penalty | None, honoured()] = None
    repetition_penalty: Annotated[f.RepetitionPenalty | None, honoured("extra; 1 is off")] = None
    logit_bias: Annotated[f.LogitBias | None, honoured()] = None
    seed: Annotated[f.Seed | None, honoured("answer k of a prompt draws with seed + k")] = None
    stop: Annotated[f.Stop | None, honoured("left out of the text")] = None
    stop_token_ids: Annotated[f.StopIds | None, honoured("extra")] = None
    ignore_eos: Annotated[bool | None, honoured("extra")] = None
    min_tokens: Annotated[f.MinTokens | None, honoured("extra")] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=16)] | None,
        honoured("answer k of prompt p has the index p * n + k; at most 256 answers in all"),
    ] = None
    best_of: Annotated[
        Annotated[int, Meta(ge=1, le=16)] | None, honoured("only as n: nothing is ranked and thrown away")
    ] = None
    echo: Annotated[bool | None, honoured("with logprobs, those of the prompt too")] = None
    logprobs: Annotated[f.TopLogprobs | None, honoured("of the model itself, before temperature")] = None
    stream: Annotated[bool | None, honoured()] = None
    stream_options: Annotated[StreamOptions | None, honoured("include_usage, continuous_usage_stats")] = None
    cache_salt: Annotated[
        f.OpaqueId | None, honoured("extra; shares cached prompts only with equal salts")
    ] = None
    suffix: Annotated[str | None, refused("", note="this model does not fill in")] = None
    prompt_logprobs: Annotated[f.TopLogprobs | None, refused(note="ask with echo and logprobs instead")] = (
        None
    )
    prompt_embeds: Annotated[Raw, refused()] = NULL
    add_special_tokens: Annotated[bool | None, refused(True, note="send token ids instead")] = None
    skip_special_tokens: Annotated[bool | None, refused(True)] = None
    return_token_ids: Annotated[bool | None, refused(False)] = None
    return_tokens_as_token_ids: Annotated[bool | None, refused(False)] = None
    response_format: Annotated[Raw, refused('{"type":"text"}')] = NULL
    lora_path: Annotated[Raw, refused()] = NULL
    regex: Annotated[
        f.Regex | None, honoured("extra; the whole answer matches it: no look-around, no back-references")
    ] = None
    ebnf: Annotated[Raw, refused()] = NULL
    json_schema: Annotated[Raw, refused()] = NULL
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
    user: Annotated[f.OpaqueId | None, ignored()] = None
    request_id: Annotated[f.OpaqueId | None, ignored("the reply's ids are made here")] = None
    metadata: Annotated[f.Metadata | None, ignored()] = None
    service_tier: Annotated[f.ServiceTier | None, honoured(latency.TIER)] = None
    x_latency: Annotated[latency.Latency | None, honoured(latency.LATENCY)] = None
    priority: Annotated[latency.Priority | None, honoured(latency.PRIORITY)] = None


# -- replies ---------------------------------------------------------------------------------------------------


class CompletionChoice(msgspec.Struct, frozen=True):
    """In a chunk `finish_reason` is null until the last one of its choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(msgspec.Struct, frozen=True):
    """The whole reply, and each SSE event; `usage` is left out of events unless asked for."""

    id: str
    object: str
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: ChatUsage | UnsetType = UNSET
