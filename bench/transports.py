"""The ways to ask for a token stream: path, request body and how its events are read, by transport.

`sse-completions` is the only one whose prompts can be token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from headrace.bench.reading import ChatReading, Reading, ResponsesReading
from headrace.bench.record import Transport


class Dialect(NamedTuple):
    """What one transport is. carries_ids: prompts may be token ids. shared: many answers on one socket, told apart
    by `stream_id`."""

    path: str
    reading: type[Reading]
    socket: bool = False
    shared: bool = False
    carries_ids: bool = False


DIALECTS: dict[Transport, Dialect] = {
    "ws-responses": Dialect("/v1/responses", ResponsesReading, socket=True),
    "ws-responses-lanes": Dialect("/v1/responses", ResponsesReading, socket=True, shared=True),
    "sse-responses": Dialect("/v1/responses", ResponsesReading),
    "sse-chat": Dialect("/v1/chat/completions", ChatReading),
    "sse-completions": Dialect("/v1/completions", ChatReading, carries_ids=True),
}


class Manner(msgspec.Struct, frozen=True, kw_only=True):
    """How one server wants to be asked; servers differ in the fields that they take.

    limit: what chat calls the number of output tokens. ignore_eos: ask for answers of exact length (a field beyond
    OpenAI's). usage: ask chat and completions for their token counts. totals: ask for them on every chunk.
    temperature: None leaves it out. fields: added to every request, and win.
    """

    model: str
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    ignore_eos: bool = True
    usage: bool = True
    totals: bool = False
    temperature: float | None = 0.0
    fields: dict[str, Any] = {}


class UnfitPrompt(ValueError):
    """A prompt that the transport cannot carry."""


def body(
    transport: Transport,
    manner: Manner,
    turn: str | Sequence[int],
    output_tokens: int,
    before: Sequence[tuple[str, str]] = (),
    previous_id: str | None = None,
) -> bytes:
    """The JSON of one request. before: earlier turns of the conversation with their answers; sockets send
    `previous_id` in their place. Raises UnfitPrompt for token ids where only text can go."""
    dialect = DIALECTS[transport]
    if not isinstance(turn, str) and (not dialect.carries_ids or before):
        raise UnfitPrompt(f"{transport} carries text{' in later turns' if before else ''}, no token ids")
    asked: dict[str, Any] = {"model": manner.model}
    if dialect.socket:
        asked["type"] = "response.create"
    if transport == "sse-completions":
        asked["prompt"] = turn
        if before:
            asked["prompt"] = "\n".join((*(part for pair in before for part in pair), str(turn)))
        asked["max_tokens"] = output_tokens
    elif transport == "sse-chat":
        asked["messages"] = [*said("content", before), {"role": "user", "content": turn}]
        asked[manner.limit] = output_tokens
    else:
        asked["max_output_tokens"] = output_tokens
        asked["store"] = False
        if dialect.socket and before:
            asked["input"], asked["previous_response_id"] = turn, previous_id
        elif before:
            asked["input"] = [*said("content", before), {"role": "user", "content": turn}]
        else:
            asked["input"] = turn
    if not dialect.socket:
        asked["stream"] = True
    if dialect.reading is ChatReading and manner.usage:
        asked["stream_options"] = {"include_usage": True}
        if manner.totals:
            asked["stream_options"]["continuous_usage_stats"] = True
    if manner.temperature is not None:
        asked["temperature"] = manner.temperature
    if manner.ignore_eos:
        asked["ignore_eos"] = True
    return msgspec.json.encode(asked | manner.fields)


def said(key: str, before: Sequence[tuple[str, str]]) -> list[Mapping[str, str]]:
    """Earlier turns as messages."""
    return [
        {"role": role, key: text}
        for pair in before
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def in_lane(body: bytes, lane: str) -> bytes:
    """A request on a lane of a shared socket."""
    assert body.endswith(b"}") and lane.isalnum()
    return body[:-1] + b',"stream_id":"' + lane.encode() + b'"}'


def cancel(response_id: str) -> bytes:
    return msgspec.json.encode({"type": "response.cancel", "response_id": response_id})
