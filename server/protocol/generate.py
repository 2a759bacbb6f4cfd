"""What a client may send to POST /generate and to the routes beside it, and what comes back: the native shape
of SGLang. Knows fields and bounds only."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol import latency
from headrace.server.protocol.fields import NULL, honoured, ignored, refused

MOST_PROMPTS = 256
_Ids = Annotated[list[f.TokenId], Meta(max_length=1 << 20)]
_Start = Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)]


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """`sampling_params`. What is not said is what the model folder recommends."""

    max_new_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None,
        honoured("default 128; 0 tells of the prompt alone"),
    ] = None
    min_new_tokens: Annotated[f.MinTokens | None, honoured()] = None
    temperature: Annotated[f.Temperature | None, honoured("below 1e-5 is greedy")] = None
    top_p: Annotated[f.TopP | None, honoured()] = None
    top_k: Annotated[f.TopK | None, honoured("0 and -1 are off")] = None
    min_p: Annotated[f.MinP | None, honoured()] = None
    frequency_penalty: Annotated[f.Penalty | None, honoured()] = None
    presence_penalty: Annotated[f.Penalty | None, honoured()] = None
    repetition_penalty: Annotated[f.RepetitionPenalty | None, honoured("1 is off")] = None
    logit_bias: Annotated[f.LogitBias | None, honoured()] = None
    stop: Annotated[f.Stop | None, honoured("left out of the text")] = None
    stop_token_ids: Annotated[f.StopIds | None, honoured()] = None
    ignore_eos: Annotated[bool | None, honoured()] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=16)] | None,
        honoured("answer k of prompt p is item p * n + k; at most 256 answers in all"),
    ] = None
    sampling_seed: Annotated[f.Seed | None, honoured("answer k of a prompt draws with sampling_seed + k")] = (
        None
    )
    skip_special_tokens: Annotated[bool | None, refused(True)] = None
    no_stop_trim: Annotated[bool | None, refused(False)] = None
    stop_regex: Annotated[Raw, refused("[]")] = NULL
    json_schema: Annotated[
        f.SchemaText | None, honoured("a JSON schema as text; the answer is one such value")
    ] = None
    regex: Annotated[
        f.Regex | None, honoured("the whole answer matches it: no look-around, no back-references")
    ] = None
    ebnf: Annotated[Raw, refused()] = NULL
    structural_tag: Annotated[Raw, refused()] = NULL
    custom_params: Annotated[Raw, refused("{}")] = NULL
    spaces_between_special_tokens: Annotated[bool | None, ignored("special tokens have no text")] = None


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /generate."""

    text: Annotated[
        str | Annotated[list[str], Meta(min_length=1, max_length=MOST_PROMPTS)] | None,
        honoured("a prompt, or a list of up to 256; this or input_ids"),
    ] = None
    input_ids: Annotated[
        Annotated[list[f.TokenId | _Ids], Meta(min_length=1, max_length=1 << 20)] | None,
        honoured("a prompt as token ids, or a list of up to 256"),
    ] = None
    sampling_params: Annotated[
        SamplingFields | Annotated[list[SamplingFields], Meta(min_length=1, max_length=MOST_PROMPTS)] | None,
        honoured("fields below; a list has one for each prompt"),
    ] = None
    stream: Annotated[bool | None, honoured("every event holds the whole text so far")] = None
    rid: Annotated[
        f.Name | Annotated[list[f.Name], Meta(min_length=1, max_length=MOST_PROMPTS)] | None,
        honoured("names the request for /abort_request, and its answers"),
    ] = None
    return_logprob: Annotated[
        bool | Annotated[list[bool], Meta(min_length=1, max_length=MOST_PROMPTS)] | None,
        honoured("of the model itself, before temperature"),
    ] = None
    logprob_start_len: Annotated[
        _Start | Annotated[list[_Start], Meta(min_length=1, max_length=MOST_PROMPTS)] | None,
        honoured("where logprobs of the prompt begin; -1: none of the prompt"),
    ] = None
    top_logprobs_num: Annotated[
        f.TopLogprobs | Annotated[list[f.TopLogprobs], Meta(min_length=1, max_length=MOST_PROMPTS)] | None,
        honoured(),
    ] = None
    return_text_in_logprobs: Annotated[bool | None, honoured("else the text of a logprob is null")] = None
    extra_key: Annotated[
        f.OpaqueId | None, honoured("shares cached prompts only with equal keys; cache_salt is the same")
    ] = None
    cache_salt: Annotated[f.OpaqueId | None, honoured("as extra_key")] = None
    model: Annotated[f.Name | None, honoured("checked, if it is there")] = None
    token_ids_logprob: Annotated[Raw, refused("[]")] = NULL
    input_embeds: Annotated[Raw, refused()] = NULL
    image_data: Annotated[Raw, refused("[]")] = NULL
    video_data: Annotated[Raw, refused("[]")] = NULL
    audio_data: Annotated[Raw, refused("[]")] = NULL
    lora_path: Annotated[Raw, refused()] = NULL
    session_params: Annotated[Raw, refused()] = NULL
    custom_logit_processor: Annotated[Raw, refused()] = NULL
    return_hidden_states: Annotated[bool | None, refused(False)] = None
    stream_output: Annotated[bool | None, ignored("output_ids are always all so far")] = None
    log_metrics: Annotated[bool | None, ignored()] = None
    priority: Annotated[
        latency.Priority | None, honoured("above 0: interactive, below: batch; x_latency.class comes first")
    ] = None
    x_latency: Annotated[latency.Latency | None, honoured(f"extra; {latency.LATENCY}")] = None
    bootstrap_host: Annotated[Raw, ignored()] = NULL
    bootstrap_port: Annotated[Raw, ignored()] = NULL
    bootstrap_room: Annotated[Raw, ignored()] = NULL


class AbortRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /abort_request."""

    rid: Annotated[str | None, honoured("requests of /generate with this rid and the same key")] = None
    abort_all: Annotated[bool | None, honoured("all requests of /generate with the same key")] = None
    abort_message: Annotated[str | None, honoured("what finish_reason says")] = None


# -- replies ---------------------------------------------------------------------------------------------------

Logprob = tuple[float | None, int, str | None]


class MetaFields(msgspec.Struct, frozen=True, kw_only=True):
    """`meta_info`. `finish_reason` is null until the end; logprobs are there where they were asked for, those
    of the most likely tokens where their number was above 0."""

    id: str
    finish_reason: dict[str, Any] | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0
    input_token_logprobs: list[Logprob] | UnsetType = UNSET
    output_token_logprobs: list[Logprob] | UnsetType = UNSET
    input_top_logprobs: list[list[Logprob] | None] | UnsetType = UNSET
    output_top_logprobs: list[list[Logprob]] | UnsetType = UNSET
    e2e_latency: float | UnsetType = UNSET


class Generated(msgspec.Struct, frozen=True):
    """One answer, and in a stream one event of it: everything so far. Of several answers each has its
    `index`."""

    text: str
    output_ids: list[int]
    meta_info: MetaFields
    index: int | UnsetType = UNSET
