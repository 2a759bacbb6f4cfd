"""What a client may send to POST /v1/completions, and what comes back. Knows fields and bounds only."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol.fields import NULL, honoured, refused
from headrace.server.protocol.logprobs import CompletionLogprobs
from headrace.server.protocol.openai_request import ChatUsage, OpenAiRequest

MOST_CHOICES = 256  # prompts times n

# Strings and ids in one list of entries: msgspec tells list types apart by nothing, so the face does.
PromptEntry = str | f.TokenId | Annotated[list[f.TokenId], Meta(max_length=1 << 20)]
CompletionPrompt = str | Annotated[list[PromptEntry], Meta(min_length=1, max_length=1 << 20)]


class CompletionRequest(OpenAiRequest, frozen=True, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        CompletionPrompt | None,
        honoured("required; text, token ids, or a list of up to 256 texts or lists of ids"),
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None,
        honoured("default 16; 0 tells of the prompt alone"),
    ] = None
    seed: Annotated[f.Seed | None, honoured("answer k of a prompt draws with seed + k")] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=16)] | None,
        honoured("answer k of prompt p has the index p * n + k; at most 256 answers in all"),
    ] = None
    best_of: Annotated[
        Annotated[int, Meta(ge=1, le=16)] | None, honoured("only as n: nothing is ranked and thrown away")
    ] = None
    echo: Annotated[bool | None, honoured("with logprobs, those of the prompt too")] = None
    logprobs: Annotated[f.TopLogprobs | None, honoured("of the model itself, before temperature")] = None
    suffix: Annotated[str | None, refused("", note="this model does not fill in")] = None
    prompt_logprobs: Annotated[f.TopLogprobs | None, refused(note="ask with echo and logprobs instead")] = (
        None
    )
    prompt_embeds: Annotated[Raw, refused()] = NULL
    add_special_tokens: Annotated[bool | None, refused(True, note="send token ids instead")] = None
    return_tokens_as_token_ids: Annotated[bool | None, refused(False)] = None
    response_format: Annotated[Raw, refused('{"type":"text"}')] = NULL
    json_schema: Annotated[Raw, refused()] = NULL


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
