"""What a client may send to /tokenize and /detokenize, and what comes back. Knows fields and bounds only."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol.chat import ChatMessage
from headrace.server.protocol.fields import NULL, honoured, ignored, refused


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /tokenize."""

    prompt: Annotated[str | None, honoured("plain text; this, text or messages")] = None
    text: Annotated[str | None, honoured("as prompt")] = None
    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)] | None,
        honoured("as the chat template renders them, ready for an answer"),
    ] = None
    model: Annotated[f.Name | None, honoured("checked, if it is there")] = None
    add_special_tokens: Annotated[
        bool | None, honoured("default true: what the tokenizer puts around a text; messages bring their own")
    ] = None
    return_token_strs: Annotated[bool | None, honoured()] = None
    chat_template_kwargs: Annotated[f.TemplateOptions | None, honoured("a closed list of flags")] = None
    add_generation_prompt: Annotated[bool | None, honoured("of messages; as in a chat completion")] = None
    continue_final_message: Annotated[bool | None, honoured("of messages; as in a chat completion")] = None
    chat_template: Annotated[Raw, refused(note="a client's template is never run")] = NULL
    tools: Annotated[Raw, refused("[]")] = NULL


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /detokenize."""

    tokens: Annotated[Annotated[list[f.TokenId], Meta(max_length=1 << 20)], honoured("required")]
    model: Annotated[f.Name | None, honoured("checked, if it is there")] = None
    skip_special_tokens: Annotated[bool | None, honoured("default true; false spells them")] = None
    user: Annotated[f.OpaqueId | None, ignored()] = None


class Tokenized(msgspec.Struct, frozen=True):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | UnsetType = UNSET


class Detokenized(msgspec.Struct, frozen=True):
    """One text under the two names that clients look for."""

    prompt: str
    text: str
