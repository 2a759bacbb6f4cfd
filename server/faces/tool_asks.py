"""Tools and tool choices of the OpenAI shapes → what an Ask carries. Knows both spellings; opens nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw

from headrace.runtime.interface import TextForm, Tool, ToolCall, ToolChoice
from headrace.server.faces.offered import check_offered, object_schema, offered
from headrace.server.protocol.chat import ChatRequest
from headrace.server.protocol.codec import compact, free_form, typed
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import HOSTED_TOOLS, ResponseRequest
from headrace.server.protocol.responses import Tool as WireTool
from headrace.server.protocol.tools import (
    ChatCall,
    CustomTool,
    FunctionTool,
    GrammarFormat,
    NamedChoice,
)

ECHO_LIMIT = 64 << 10  # bytes of descriptions and schemas that every response object repeats
# How a tool that takes free text is shown to a model that only knows functions.
TEXT_SCHEMA = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request. custom: names of those that take free text. echo: how a response repeats them."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)
    custom: frozenset[str] = frozenset()
    echo: tuple[dict[str, Any], ...] = ()
    choice_echo: str | dict[str, Any] = "auto"


# -- chat ------------------------------------------------------------------------------------------------------


def chat_tools(request: ChatRequest) -> Tools:
    """The tools of a chat request. Raises WireError."""
    tools = []
    size = 0
    for index, tool in enumerate(request.tools or ()):
        path = f"tools[{index}]"
        if tool.type == "custom":
            raise WireError(
                "unsupported_parameter",
                f"{path}: custom tools are offered on /v1/responses only",
                f"{path}.type",
            )
        spec = tool.function
        if spec is None:
            raise _missing(f"{path}.function")
        size += len(bytes(spec.parameters)) + len(spec.description or "")
        at = f"{path}.function.parameters"
        tools.append(offered(spec.name, spec.description, spec.parameters, at, strict=bool(spec.strict)))
    check_offered(tools, size)
    parallel = request.parallel_tool_calls is not False
    return Tools(tuple(tools), _choice(request.tool_choice, tools, frozenset(), parallel, nested=True))


def chat_calls(calls: Sequence[ChatCall] | None) -> tuple[ToolCall, ...]:
    """The calls of an assistant's message."""
    return tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in calls or ())


# -- responses -------------------------------------------------------------------------------------------------


def response_tools(request: ResponseRequest) -> Tools:
    """The tools of a Responses request; those of the provider's own kinds are left out. Raises WireError."""
    tools: list[Tool] = []
    echo: list[dict[str, Any]] = []
    custom = set()
    size = 0
    for index, wire in enumerate(request.tools or ()):
        path = f"tools[{index}]"
        if wire.type == "function":
            function = _typed(wire, FunctionTool, path, ("name", "description", "parameters", "strict"))
            schema = object_schema(function.parameters, f"{path}.parameters")
            tools.append(Tool(function.name, function.description, schema, bool(function.strict)))
            shown: dict[str, Any] = {"type": "function", "name": function.name}
            if function.description is not None:
                shown["description"] = function.description
            echo.append({**shown, "parameters": function.parameters, "strict": function.strict})
        elif wire.type == "custom":
            text = _typed(wire, CustomTool, path, ("name", "description", "format"))
            form = _form(text, f"{path}.format.definition")
            tools.append(Tool(text.name, _told_format(text), TEXT_SCHEMA, form=form))
            custom.add(text.name)
            shown = {"type": "custom", "name": text.name}
            if text.description is not None:
                shown["description"] = text.description
            if text.format is not None:
                shown["format"] = msgspec.to_builtins(text.format)
            echo.append(shown)
        elif wire.type not in HOSTED_TOOLS:
            path = f"{path}.type"
            raise WireError("invalid_value", f"{path}: unknown tool type '{wire.type[:200]}'", path)
        if wire.type in ("function", "custom"):
            size += sum(len(bytes(raw)) for raw in (wire.description, wire.parameters, wire.format))
    check_offered(tools, size)
    if size > ECHO_LIMIT:
        echo = [_briefly(tool) for tool in echo]
    names = frozenset(custom)
    choice = _choice(
        request.tool_choice, tools, names, request.parallel_tool_calls is not False, nested=False
    )
    given = free_form(request.tool_choice, "tool_choice")
    return Tools(tuple(tools), choice, names, tuple(echo), "auto" if given is None else given)


def _briefly(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's echo without what is long in it; clients want these keys."""
    brief = {"type": tool["type"], "name": tool["name"]}
    return brief if tool["type"] == "custom" else {**brief, "parameters": None, "strict": tool["strict"]}


def _typed(wire: WireTool, kind: type[Any], path: str, names: Sequence[str]) -> Any:
    values = {
        name: free_form(raw, f"{path}.{name}")
        for name in names
        if compact(raw := getattr(wire, name)) != "null"
    }
    return typed(values, kind, path)


def _form(tool: CustomTool, place: str) -> TextForm | None:
    given = tool.format
    return TextForm(given.syntax, given.definition, place) if isinstance(given, GrammarFormat) else None


def _told_format(tool: CustomTool) -> str | None:
    """The description of a custom tool, with the grammar that its text follows."""
    form = tool.format
    if not isinstance(form, GrammarFormat):
        return tool.description
    return f"{tool.description or ''}\n\nThe input follows this {form.syntax} grammar:\n{form.definition}".strip()


# -- both ------------------------------------------------------------------------------------------------------


def _choice(
    raw: Raw, tools: Sequence[Tool], custom: frozenset[str], parallel: bool, *, nested: bool
) -> ToolChoice:
    """nested: as chat spells it, with the name one object further in."""
    choice = free_form(raw, "tool_choice")
    if choice is None:
        return ToolChoice(parallel=parallel)
    if choice in ("none", "auto", "required"):
        return ToolChoice(choice, None, parallel)
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "allowed_tools":
        inner = choice.get("allowed_tools", {}) if nested else choice
        mode = inner.get("mode", "auto") if isinstance(inner, dict) else None
        listed = inner.get("tools") if isinstance(inner, dict) else None
        if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
            raise WireError(
                "invalid_value", "tool_choice: allowed_tools needs a mode and tools", "tool_choice"
            )
        # Tools of the provider's own kinds may be listed; they were left out of the tools as well.
        named = [each for each in listed if not (isinstance(each, dict) and each.get("type") in HOSTED_TOOLS)]
        only = frozenset(_named(each, tools, custom, nested) for each in named)
        return ToolChoice(mode, only, parallel)
    if kind in HOSTED_TOOLS:
        raise WireError("unsupported_parameter", f"tool_choice: {kind} is not offered here", "tool_choice")
    return ToolChoice("required", frozenset({_named(choice, tools, custom, nested)}), parallel)


def _named(choice: Any, tools: Sequence[Tool], custom: frozenset[str], nested: bool) -> str:
    if nested and isinstance(choice, dict) and isinstance(inner := choice.get("function"), dict):
        choice = {"type": choice.get("type"), "name": inner.get("name")}
    try:
        found: NamedChoice = typed(choice, NamedChoice, "tool_choice")
    except WireError:
        raise WireError("invalid_value", "tool_choice names no tool", "tool_choice") from None
    if not any(
        tool.name == found.name and (tool.name in custom) == (found.type == "custom") for tool in tools
    ):
        raise WireError(
            "invalid_value", f"tool_choice: there is no {found.type} tool named '{found.name}'", "tool_choice"
        )
    return found.name


def text_arguments(text: str) -> str:
    """The arguments of a call whose tool takes free text."""
    return json.dumps({"input": text}, ensure_ascii=False)


def _missing(path: str) -> WireError:
    return WireError("missing_required_parameter", f"missing field: {path}", path)
