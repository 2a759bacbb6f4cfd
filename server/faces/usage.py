"""Token counts in the words of chat and completions. Knows streams; knows no endpoint."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.runtime.interface import TokenStream
from headrace.server.protocol.openai_request import ChatUsage, CompletionDetails, PromptDetails


def usage_of_many(streams: Sequence[TokenStream], copies: int = 1, *, silent: bool = False) -> ChatUsage:
    """The counts of all streams together; a prompt that `copies` of them answer counts once. silent: what was
    generated is none of the answer."""
    firsts = streams[::copies]
    prompt = sum([stream.prompt_tokens for stream in firsts])
    cached = sum([stream.cached_tokens for stream in firsts])
    output = 0 if silent else sum([stream.head for stream in streams])
    thought = sum([stream.reasoning_tokens for stream in streams])
    return ChatUsage(prompt, output, prompt + output, PromptDetails(cached), CompletionDetails(thought))
