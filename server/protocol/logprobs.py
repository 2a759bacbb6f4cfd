"""How logprobs look on the wire: in chat completions, in responses, and in completions. Knows shapes only."""

from __future__ import annotations

import msgspec


class ChatTopLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens of a place. `bytes` is null for a token without text (a special one)."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """One entry for each completion token of the choice, or of the chunk."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class TopLogprob(msgspec.Struct, frozen=True):
    """As in chat; strict models of the Responses API want a list of bytes, empty for a token without text."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprobPart(msgspec.Struct, frozen=True):
    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TopLogprob]


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Columns over the tokens of the text. Only the first token of an echoed prompt has null: nothing stands before
    it. `text_offset` counts code points of the choice's text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]
