"""Typed-ahead prompts on the Responses socket (`x.input.…`): what a client says, and what it is told. Fields
only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol.extension import Lane, Verb
from headrace.server.protocol.fields import NULL, honoured
from headrace.server.protocol.responses import ResponseCreate, Tool
from headrace.server.protocol.tools import TOOLS

Place = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]


# -- what a client says ----------------------------------------------------------------------------------------


class InputAppend(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.input.append"):
    """Text, or a picture, at the end of what is typed in a lane. The first one opens the draft; only it may say
    what the prompt is besides."""

    text: Annotated[str | None, honoured("this or image_ref; empty text opens a draft of nothing")] = None
    image_ref: Annotated[
        f.ShortText | None, honoured("the name in x.image of a picture that came as a binary message")
    ] = None
    stream_id: Annotated[f.ShortText | None, honoured("the lane; without one, the unnamed lane")] = None
    model: Annotated[f.Name | None, honoured("as on response.create; on the first one")] = None
    instructions: Annotated[str | None, honoured("on the first one")] = None
    tools: Annotated[Annotated[list[Tool], Meta(max_length=TOOLS)] | None, honoured("on the first one")] = (
        None
    )
    tool_choice: Annotated[Raw, honoured("on the first one")] = NULL
    previous_response_id: Annotated[f.Name | None, honoured("on the first one")] = None
    role: Annotated[Literal["user", "system", "developer"] | None, honoured("on the first one")] = None
    cache_salt: Annotated[
        f.OpaqueId | None, honoured("on the first one; that of the commit must equal it")
    ] = None
    event_id: Annotated[f.ShortText | None, honoured("echoed in the reply")] = None


class InputReplace(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.input.replace"):
    """Other text instead of a part of what is typed; places are Unicode code points. Pictures inside go with
    it."""

    from_char: Annotated[Place, honoured("where the part begins")]
    text: Annotated[str, honoured("empty: a deletion")]
    to_char: Annotated[Place | None, honoured("where it ends; without one, at the end of the text")] = None
    stream_id: Annotated[f.ShortText | None, honoured("the lane; without one, the unnamed lane")] = None
    event_id: Annotated[f.ShortText | None, honoured("echoed in the reply")] = None


class InputDiscard(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.input.discard"):
    """The draft of a lane is dropped, and nothing else (a `response.cancel` stops the lane's answer as well)."""

    stream_id: Annotated[f.ShortText | None, honoured("the lane; without one, the unnamed lane")] = None
    event_id: Annotated[f.ShortText | None, honoured("echoed if the verb fails")] = None


class InputCommit(ResponseCreate, frozen=True, kw_only=True, tag_field="type", tag="x.input.commit"):
    """What is typed in the lane is asked for: the fields of a `response.create`, without its `input`. Those
    that the draft was opened with need not be said again."""

    rev: Annotated[
        Place | None,
        honoured("the changes that were said, the opening included; if one was refused, so is this"),
    ] = None


# -- what it is told -------------------------------------------------------------------------------------------


class InputAck(msgspec.Struct, frozen=True, tag_field="type", tag="x.input.ack"):
    """How far a draft has come, at most ten times a second. `rev` counts the changes since it was opened, the
    opening included; the tokens are those of the whole prompt: read so far and not going to change, and
    computed."""

    rev: int
    chars: int
    tokens_stable: int
    tokens_prefilled: int
    settled: bool  # all that was typed was read, and all that is certain of it is computed
    event_id: str | UnsetType = UNSET
    stream_id: Lane = UNSET


class InputEnded(msgspec.Struct, frozen=True, tag_field="type", tag="x.input.ended"):
    """A draft was dropped by the server."""

    reason: str  # idle
    stream_id: Lane = UNSET


class InputCommitted(msgspec.Struct, frozen=True, tag_field="type", tag="x.input.committed"):
    """What reading ahead was worth. Of the prompt's tokens, `tokens_ready` needed no computing when it was
    sent: those that the cache had, and `tokens_ahead` that were computed while it was typed. `tokens_wasted`
    were computed for what was changed again."""

    response_id: str
    tokens_ready: int
    tokens_ahead: int
    tokens_wasted: int
    event_id: str | UnsetType = UNSET
    stream_id: Lane = UNSET
