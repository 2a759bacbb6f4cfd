"""Tools, calls and choices as the two OpenAI shapes spell them. Knows fields and bounds only.

What is free-form in them (schemas, formats, the choice itself) stays raw here and is bounded where it is read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol.fields import NULL

TOOLS = 512  # in one request
TOOLS_BYTES = 256 << 10  # descriptions and schemas of one request together
ToolName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,128}\Z")]


# -- chat ------------------------------------------------------------------------------------------------------


class ChatFunction(msgspec.Struct, frozen=True):
    name: ToolName
    description: str | None = None
    parameters: Raw = NULL
    strict: bool | None = None


class ChatTool(msgspec.Struct, frozen=True):
    type: Literal["function", "custom"]
    function: ChatFunction | None = None
    custom: Raw = NULL


class CalledFunction(msgspec.Struct, frozen=True):
    name: ToolName
    arguments: str


class ChatCall(msgspec.Struct, frozen=True):
    """A call in a message: in a request an assistant's earlier one, in a reply a new one."""

    id: f.ShortText
    function: CalledFunction
    type: Literal["function"] = "function"


class CallFunctionDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A fragment of a call: the index in every one, id and name in the first alone."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: CallFunctionDelta | UnsetType = UNSET


# -- responses -------------------------------------------------------------------------------------------------


class FunctionTool(msgspec.Struct, frozen=True):
    """`{"type":"function",…}`, without its type."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class GrammarFormat(msgspec.Struct, frozen=True, tag_field="type", tag="grammar"):
    """Text by a grammar, which the model is told."""

    definition: str
    syntax: Literal["lark", "regex"]


class CustomTool(msgspec.Struct, frozen=True):
    """`{"type":"custom",…}`, without its type: a tool that takes free text."""

    name: ToolName
    description: str | None = None
    format: TextFormat | GrammarFormat | None = None


class NamedChoice(msgspec.Struct, frozen=True):
    """One tool by its name: in a choice, and in a choice's list."""

    type: Literal["function", "custom"]
    name: ToolName
