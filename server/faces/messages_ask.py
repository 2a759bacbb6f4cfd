"""Requests of the Anthropic shape → `Ask`: the only place that decides what a field of /v1/messages means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from headrace.runtime.interface import AnswerShape, Ask, Message, Tenant, Tool, ToolChoice
from headrace.server.faces.asks import join_leading_system, scoped
from headrace.server.faces.messages_turns import Turns, given
from headrace.server.faces.offered import check_offered, offered
from headrace.server.protocol import fields as f
from headrace.server.protocol.codec import compact, free_form, typed
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.messages import CountTokensRequest, MessagesRequest, MessagesTool, OutputFormat
from headrace.server.protocol.tools import ToolName

_NAMES = {
    "stop": "stop_sequences",
    "shape": "output_config.format",
    "prompt": "messages",
    "template_options": "chat_template_kwargs",
}
_MODES: Mapping[str, Literal["auto", "required", "none"]] = {
    "auto": "auto",
    "any": "required",
    "none": "none",
}
# Tools that Anthropic's own servers would run. Clients that offer them beside their own get along without.
_HOSTED = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "mcp_toolset", "advisor_")


def messages_ask(request: MessagesRequest, tenant: Tenant) -> Ask:
    """The Ask of one answer. Raises WireError or Refusal."""
    return Ask(
        tenant=scoped(tenant, request.cache_salt),
        max_tokens=request.max_tokens,
        fit=True,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
        stop=tuple(request.stop_sequences or ()),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
        **_prompt(request),
    )


def count_ask(request: CountTokensRequest, tenant: Tenant) -> Ask:
    """An Ask with the same prompt, to be counted only. Raises WireError or Refusal."""
    return Ask(tenant=tenant, **_prompt(request))


def _prompt(request: CountTokensRequest) -> dict[str, Any]:
    """The fields of Ask that make the prompt."""
    f.check_supported(request)
    tools = _tools(request)
    messages, continued = _messages(request)
    shape = _shape(request)
    if continued and shape is not None:
        what = "output_config.format: a last turn that is continued (prefill) has no format"
        raise WireError("invalid_value", what, "output_config.format")
    return {
        "messages": messages,
        "ending": "open" if continued else "answer",
        "tools": tools,
        "tool_choice": _choice(request, tools),
        "shape": shape,
        "template_options": _options(request),
        "param_names": _NAMES,
    }


def _messages(request: CountTokensRequest) -> tuple[tuple[Message, ...], bool]:
    """The conversation, and whether the answer goes on with its last turn."""
    turns = Turns()
    if isinstance(request.system, str):
        turns.add_system(request.system)
    else:
        turns.add_system("\n\n".join(block.text for block in request.system or ()))
    for index, turn in enumerate(request.messages):
        turns.add(turn, f"messages[{index}]")
    messages = turns.messages()
    last = messages[-1]
    continued = last.role == "assistant"
    if continued and last == Message("assistant", ""):
        # The one turn that may be empty: the answer begins by itself.
        messages, continued = messages[:-1], False
    if continued:
        _check_continued(request, last)
    return join_leading_system(messages), continued


def _check_continued(request: CountTokensRequest, last: Message) -> None:
    # Tokens hold the space in front of their word: an answer hardly ever goes on well behind one.
    if last.content != last.content.rstrip():
        what = "messages: final assistant content cannot end with trailing whitespace"
        raise WireError("invalid_value", what, "messages")
    if request.thinking is not None and request.thinking.type == "enabled" and not last.reasoning:
        what = "thinking: when it is enabled, a last turn of the assistant's starts with a thinking block"
        raise WireError("invalid_value", what, "thinking")


def _tools(request: CountTokensRequest) -> tuple[Tool, ...]:
    tools = []
    for index, tool in enumerate(request.tools or ()):
        path = f"tools[{index}]"
        if tool.type in (None, "custom"):
            tools.append(_own(tool, path))
        elif not tool.type.startswith(_HOSTED):
            raise WireError(
                "unsupported_parameter",
                f"{path}.type: tools of type '{tool.type[:200]}' are not supported: their schema is Anthropic's",
                f"{path}.type",
            )
    check_offered(tools)
    return tuple(tools)


def _own(tool: MessagesTool, path: str) -> Tool:
    name: str = typed(given(tool.name, f"{path}.name"), ToolName, f"{path}.name")
    schema = f"{path}.input_schema"
    if compact(tool.input_schema) == "null":
        raise WireError("missing_required_parameter", f"missing field: {schema}", schema)
    return offered(name, tool.description, tool.input_schema, schema)


def _choice(request: CountTokensRequest, tools: Sequence[Tool]) -> ToolChoice:
    choice = request.tool_choice
    if choice is None:
        return ToolChoice()
    parallel = not choice.disable_parallel_tool_use
    if choice.type == "tool":
        name = given(choice.name, "tool_choice.name")
        if all(tool.name != name for tool in tools):
            raise WireError(
                "invalid_value", f"tool_choice.name: there is no tool '{name[:200]}'", "tool_choice.name"
            )
        return ToolChoice("required", frozenset({name}), parallel)
    return ToolChoice(_MODES[choice.type], None, parallel)


def _shape(request: CountTokensRequest) -> AnswerShape | None:
    path = "output_config.format"
    form = free_form(request.output_config.format, path) if request.output_config is not None else None
    if form is None:
        return None
    described: OutputFormat = typed(form, OutputFormat, path)
    return AnswerShape(described.schema)


def _options(request: CountTokensRequest) -> dict[str, bool | str]:
    options: dict[str, bool | str] = {}
    if request.thinking is not None:
        options["enable_thinking"] = request.thinking.type != "disabled"
    if request.chat_template_kwargs is not None:
        options |= request.chat_template_kwargs.given()
    return options
