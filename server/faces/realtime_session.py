"""What a Realtime session is set to, and what one response of it runs with. Knows fields; knows no items.

An update is checked as a whole and then taken as a whole: a refused one leaves everything as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from headrace.runtime.interface import Ask, Message, Tenant, Tool, ToolChoice
from headrace.runtime.refusal import shorten
from headrace.server.faces.asks import join_leading_system, sampling
from headrace.server.faces.offered import object_schema
from headrace.server.ids import new_id
from headrace.server.protocol import fields as f
from headrace.server.protocol import realtime as rt
from headrace.server.protocol import realtime_events as ev
from headrace.server.protocol.codec import compact, encode, free_form
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.tools import TOOLS_BYTES

SESSION_BYTES = (
    768 << 10
)  # as JSON: clients of this protocol take no message above 1 MiB, and it is echoed whole

_PARAM_NAMES = {
    "max_tokens": "response.max_output_tokens",
    "stop_ids": "response.stop_token_ids",
    "messages": "response.input",
    "template_options": "response.chat_template_kwargs",
    "tools": "response.tools",
}
# Of Options, what Settings keeps in a form of its own.
_SEPARATE = frozenset({"tools", "tool_choice", "output_modalities", "prompt"})
_PLAIN = tuple(name for name in rt.Options.__struct_fields__ if name not in _SEPARATE)


NOTHING_SET = rt.Options()


@dataclass(frozen=True, slots=True)
class Settings:
    """What answers are made with: the session's, or one response's own over those."""

    options: rt.Options = NOTHING_SET
    tools: tuple[ev.FunctionTool, ...] = ()
    tool_choice: str | dict[str, str] = "auto"  # "none", "required", or {"type": "function", "name": …}

    def over(self, given: rt.Options, path: str) -> Settings:
        """These settings with what `given` sets in their place. Raises WireError, naming fields below `path`."""
        try:
            f.check_supported(given)
        except WireError as error:
            raise WireError(error.code, error.message, f"{path}.{error.param}") from None
        if "audio" in (given.output_modalities or ()):
            at = f"{path}.output_modalities"
            raise WireError("not_supported", 'This server speaks text only: ask for ["text"].', at)
        tools = self.tools if given.tools is None else _tools(given.tools, f"{path}.tools")
        choice = self.tool_choice
        if compact(given.tool_choice) != "null":
            choice = _tool_choice(given.tool_choice, f"{path}.tool_choice")
        if isinstance(choice, dict) and all(tool.name != choice["name"] for tool in tools):
            at = f"{path}.tool_choice"
            raise WireError("invalid_value", f"{at}: there is no tool named '{shorten(choice['name'])}'", at)
        said = {name: value for name in _PLAIN if (value := getattr(given, name)) is not None}
        return Settings(msgspec.structs.replace(self.options, **said), tools, choice)

    @property
    def max_output_tokens(self) -> int | str:
        return self.options.max_output_tokens or "inf"

    @property
    def max_tokens(self) -> int | None:
        """The same for an Ask."""
        limit = self.max_output_tokens
        return limit if isinstance(limit, int) else None

    def ask(self, messages: tuple[Message, ...], tenant: Tenant) -> Ask:
        """The Ask of an answer to `messages`. Raises WireError or Refusal."""
        options = self.options
        leading = (Message("system", options.instructions),) if options.instructions else ()
        if not leading and not messages:
            raise WireError(
                "invalid_value",
                "There is nothing to answer: no item in the context, and no instructions.",
                "response.input",
            )
        return Ask(
            tenant=tenant,
            messages=join_leading_system(leading + messages),
            max_tokens=self.max_tokens,
            tools=tuple(map(_tool, self.tools)),
            tool_choice=self._choice(),
            param_names=_PARAM_NAMES,
            **sampling(options, options.reasoning.effort if options.reasoning else None),
        )

    def _choice(self) -> ToolChoice:
        parallel = self.options.parallel_tool_calls is not False
        if isinstance(self.tool_choice, dict):
            return ToolChoice("required", frozenset({self.tool_choice["name"]}), parallel)
        if self.tool_choice == "required" and not self.tools:
            at = "response.tool_choice"
            raise WireError("invalid_value", f"{at}: there is no tool that could be called", at)
        return ToolChoice(self.tool_choice, None, parallel)  # type: ignore[arg-type]  # one of the three words


class RealtimeSession:
    """The session object of one connection."""

    def __init__(self, model: str, expires_at: int) -> None:
        self.id = new_id("sess")
        self.model = model
        self.expires_at = expires_at
        self.settings = Settings()
        self.truncation: Any = "auto"  # "auto", "disabled", or a RetentionRatio
        self._audio: Any = UNSET

    def update(self, given: rt.SessionFields) -> None:
        """Take over what `given` sets. Raises WireError, and nothing has changed then."""
        if given.type == "transcription":
            raise WireError("not_supported", "There are no transcription sessions here.", "session.type")
        settings = self.settings.over(given, "session")
        truncation = self.truncation if given.truncation is None else given.truncation
        audio = self._audio
        if compact(given.audio) != "null":
            audio = free_form(given.audio, "session.audio")
            if not isinstance(audio, dict):
                raise WireError("invalid_value", "session.audio: expected an object", "session.audio")
        if len(encode(self._object(settings, truncation, audio))) > SESSION_BYTES:
            raise WireError("invalid_value", f"the session has more than {SESSION_BYTES} bytes", "session")
        self.settings, self.truncation, self._audio = settings, truncation, audio

    def object(self) -> ev.SessionObject:
        """The whole session as it is now."""
        return self._object(self.settings, self.truncation, self._audio)

    def _object(self, settings: Settings, truncation: Any, audio: Any) -> ev.SessionObject:
        options = settings.options
        echoed = {
            name: value
            for name in _PLAIN
            if name not in ("instructions", "max_output_tokens", "reasoning", "chat_template_kwargs")
            and (value := getattr(options, name)) is not None
        }
        kwargs = options.chat_template_kwargs
        return ev.SessionObject(
            id=self.id,
            model=self.model,
            instructions=options.instructions or "",
            tools=settings.tools,
            tool_choice=settings.tool_choice,
            max_output_tokens=settings.max_output_tokens,
            truncation=truncation,
            expires_at=self.expires_at,
            reasoning=UNSET if options.reasoning is None else ev.ReasoningEcho(options.reasoning.effort),
            chat_template_kwargs=UNSET if kwargs is None else kwargs.given(),
            audio=audio,
            **echoed,
        )

    def retention(self) -> tuple[float, int | None] | None:
        """How much of the room for the conversation truncation keeps, and its limit in tokens if there is one; None
        if nothing may be left out."""
        if self.truncation == "disabled":
            return None
        if isinstance(self.truncation, rt.RetentionRatio):
            limits = self.truncation.token_limits
            return self.truncation.retention_ratio, limits.post_instructions if limits else None
        return 1.0, None


def _tool(tool: ev.FunctionTool) -> Tool:
    description = None if tool.description is UNSET else tool.description
    parameters = None if tool.parameters is UNSET else tool.parameters
    return Tool(tool.name, description, parameters, tool.strict is True)


def _tools(given: list[rt.Tool], path: str) -> tuple[ev.FunctionTool, ...]:
    tools: list[ev.FunctionTool] = []
    size = sum(len(bytes(tool.parameters)) + len(tool.description or "") for tool in given)
    if size > TOOLS_BYTES:
        what = f"{path} has more than {TOOLS_BYTES} bytes of descriptions and schemas"
        raise WireError("invalid_value", what, path)
    for index, tool in enumerate(given):
        at = f"{path}[{index}]"
        if tool.type not in (None, "function"):
            what = f"{at}: tools of type '{tool.type[:200]}' are not offered, functions are"
            raise WireError("unsupported_parameter", what, f"{at}.type")
        if tool.name is None:
            raise WireError("missing_required_parameter", f"missing field: {at}.name", f"{at}.name")
        if any(tool.name == known.name for known in tools):
            raise WireError("invalid_value", f"{at}: a second tool named {tool.name}", f"{at}.name")
        parameters: Any = UNSET
        if compact(tool.parameters) != "null":
            parameters = object_schema(free_form(tool.parameters, f"{at}.parameters"), f"{at}.parameters")
        description = UNSET if tool.description is None else tool.description
        strict = UNSET if tool.strict is None else tool.strict
        tools.append(ev.FunctionTool(tool.name, description, parameters, strict))
    return tuple(tools)


def _tool_choice(raw: Raw, path: str) -> str | dict[str, str]:
    choice = free_form(raw, path)
    if choice in ("auto", "none", "required"):
        return str(choice)
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return {"type": "function", "name": choice["name"]}
    what = 'expected "auto", "none", "required" or {"type": "function", "name": …}'
    raise WireError("invalid_value", f"{path}: {what}", path)
