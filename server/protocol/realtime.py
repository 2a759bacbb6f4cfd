"""What a client may send on the Realtime socket, text modality. Knows fields and bounds only.

Types for audio are here because clients name them; what they ask for is refused with `not_supported`, never
dropped. The two bodies that hold fields (`session`, `response`) are types of their own, so that their table in
docs/fields.md is written from them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw

from headrace.server.protocol import fields as f
from headrace.server.protocol.fields import NULL, honoured, ignored, refused
from headrace.server.protocol.tools import ToolName

EventId = f.ShortText
ItemName = Annotated[str, Meta(min_length=1, max_length=256)]


class Part(msgspec.Struct, frozen=True):
    """One content part of a message; which types fit depends on the role. `text` is an older name for both."""

    type: Literal["input_text", "output_text", "text", "input_audio", "output_audio", "audio", "input_image"]
    text: str | None = None
    audio: Raw = NULL
    transcript: Raw = NULL
    image_url: f.ImageUrl | str | None = None
    detail: f.Detail | None = None


class Item(msgspec.Struct, frozen=True):
    """A conversation item as a client sends it. Which fields it needs depends on `type`."""

    type: f.Name
    id: f.OpaqueId | None = None
    object: f.ShortText | None = None
    status: f.ShortText | None = None
    role: Literal["user", "assistant", "system"] | None = None
    content: Annotated[list[Part], Meta(max_length=64)] | None = None
    name: ItemName | None = None
    arguments: str | None = None
    call_id: ItemName | None = None
    output: str | None = None


class Tool(msgspec.Struct, frozen=True):
    """A function the model may call. Other types (mcp) would have the server call out, and are refused."""

    type: f.Name | None = None
    name: ToolName | None = None
    description: str | None = None
    parameters: Raw = NULL
    strict: bool | None = None


class TokenLimits(msgspec.Struct, frozen=True):
    post_instructions: f.Count | None = None


class RetentionRatio(msgspec.Struct, frozen=True, tag_field="type", tag="retention_ratio"):
    """Truncation that cuts deeper than it must, so that the next turns find the same cached prefix."""

    retention_ratio: Annotated[float, Meta(ge=0, le=1)]
    token_limits: TokenLimits | None = None


class Reasoning(msgspec.Struct, frozen=True):
    effort: f.Effort | None = None


Tools = Annotated[list[Tool], Meta(max_length=128)]
Modalities = Annotated[list[Literal["text", "audio"]], Meta(max_length=2)]
MaxTokens = f.Count | Literal["inf"]
Truncation = Literal["auto", "disabled"] | RetentionRatio


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a session sets and one response may set for itself."""

    instructions: Annotated[str | None, honoured("leading system text")] = None
    output_modalities: Annotated[
        Modalities | None, honoured('["text"]; audio is refused with not_supported')
    ] = None
    tools: Annotated[Tools | None, honoured("functions; other types are refused")] = None
    tool_choice: Annotated[Raw, honoured("auto, none, required, or one function")] = NULL
    parallel_tool_calls: Annotated[bool | None, honoured()] = None
    max_output_tokens: Annotated[MaxTokens | None, honoured("a number or inf")] = None
    reasoning: Annotated[Reasoning | None, honoured("effort none turns thinking off")] = None
    prompt: Annotated[Raw, refused(note="stored templates are not offered")] = NULL
    temperature: Annotated[f.Temperature | None, honoured("extra; below 1e-5 is greedy")] = None
    top_p: Annotated[f.TopP | None, honoured("extra")] = None
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


class SessionFields(Options, frozen=True, kw_only=True):
    """`session` of session.update. Only the keys that are present change anything."""

    type: Annotated[
        Literal["realtime", "transcription"] | None, honoured("realtime; transcription is refused")
    ] = None
    truncation: Annotated[Truncation | None, honoured("auto and a ratio drop the oldest items")] = None
    model: Annotated[f.ShortText | None, ignored("the socket's address named it; echoed as it is")] = None
    audio: Annotated[Raw, ignored("kept and echoed")] = NULL
    tracing: Annotated[Raw, ignored("nothing is traced: echoed as null")] = NULL
    include: Annotated[Raw, ignored("it is about audio")] = NULL


class ResponseFields(Options, frozen=True, kw_only=True):
    """`response` of response.create: this one's own settings, over those of the session."""

    conversation: Annotated[f.Name | None, honoured("auto, or none for an answer out of band")] = None
    input: Annotated[
        Annotated[list[Item], Meta(max_length=1024)] | None,
        honoured("the context of this answer in place of the conversation; item_reference allowed"),
    ] = None
    metadata: Annotated[f.Metadata | None, honoured("echoed")] = None
    audio: Annotated[Raw, ignored("it is about audio")] = NULL


class SessionUpdate(msgspec.Struct, frozen=True, tag_field="type", tag="session.update"):
    session: SessionFields
    event_id: EventId | None = None


class ItemCreate(msgspec.Struct, frozen=True, tag_field="type", tag="conversation.item.create"):
    """Adds `item` behind `previous_item_id`, at the start for "root", at the end without it."""

    item: Item
    previous_item_id: f.ShortText | None = None
    event_id: EventId | None = None


class ItemDelete(msgspec.Struct, frozen=True, tag_field="type", tag="conversation.item.delete"):
    item_id: f.ShortText
    event_id: EventId | None = None


class ItemRetrieve(msgspec.Struct, frozen=True, tag_field="type", tag="conversation.item.retrieve"):
    item_id: f.ShortText
    event_id: EventId | None = None


class ResponseCreate(msgspec.Struct, frozen=True, tag_field="type", tag="response.create"):
    response: ResponseFields | None = None
    event_id: EventId | None = None


class ResponseCancel(msgspec.Struct, frozen=True, tag_field="type", tag="response.cancel"):
    """Stops one response; without an id, the one that answers in the conversation."""

    response_id: f.ShortText | None = None
    event_id: EventId | None = None
