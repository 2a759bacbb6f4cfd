"""Anthropic's turns of content blocks → messages. Knows blocks; opens nothing.

One turn of the user may hold results of tools and words: each result is a message of its own here, in the order in
which they stand.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from headrace.runtime.interface import Message, Picture, ToolCall
from headrace.server.faces.tool_items import opened
from headrace.server.protocol.codec import free_form, typed
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.messages import Block, ImageSource, ResultBlock, ResultContent, Turn

_MEDIA = {"document": "documents", "search_result": "search results"}


class Turns:
    """Messages while turns are read."""

    def __init__(self) -> None:
        self._laid: list[Message] = []
        self._calls: set[str] = set()  # ids of all calls so far

    def add_system(self, text: str) -> None:
        if text:
            self._laid.append(Message("system", text))

    def add(self, turn: Turn, path: str) -> None:
        """Add a turn; neighbours of one role become one. Raises WireError for what is not understood."""
        if isinstance(turn.content, str):
            self._say(turn.role, turn.content)
            return
        for index, block in enumerate(turn.content):
            self._block(turn.role, block, f"{path}.content[{index}]", first=index == 0)
        if not turn.content:
            self._say(turn.role, "")

    def messages(self) -> tuple[Message, ...]:
        return tuple(self._laid)

    def _block(self, role: str, block: Block, path: str, *, first: bool) -> None:
        match block.type:
            case "text":
                self._say(role, given(block.text, f"{path}.text"), glued=not first)
            case "image" if role == "user":
                self._say(role, "", glued=not first)
                turn = self._laid[-1]
                shown = _picture(block.source, len(turn.content), f"{path}.source")
                self._laid[-1] = replace(turn, pictures=(*turn.pictures, shown))
            case "thinking" if role == "assistant":
                thought = block.thinking or opened(block.signature or "")
                self._assistant(reasoning=thought)
            case "redacted_thinking" if role == "assistant":
                self._assistant(reasoning=opened(block.data or ""))
            case "tool_use" if role == "assistant":
                call = ToolCall(
                    given(block.id, f"{path}.id"),
                    given(block.name, f"{path}.name"),
                    _arguments(block.input, f"{path}.input"),
                )
                self._calls.add(call.id)
                self._assistant(call=call)
            case "tool_result" if role == "user":
                self._result(block, path)
            case kind if kind in _MEDIA:
                raise WireError(
                    "unsupported_parameter", f"{path}: {_MEDIA[kind]} are not supported yet", path
                )
            case kind:
                raise WireError(
                    "unsupported_parameter",
                    f"{path}: blocks of type '{kind[:200]}' are not supported in a turn of the {role}",
                    path,
                )

    def _say(self, role: str, text: str, *, glued: bool = False) -> None:
        last = self._laid[-1] if self._laid else None
        if last is None or last.role != role or role == "system":
            self._laid.append(Message(role, text))
            return
        # Blocks of one turn are parts of one text; two turns are two paragraphs.
        between = "\n\n" if last.content and not glued else ""
        self._laid[-1] = replace(last, content=f"{last.content}{between}{text}")

    def _assistant(self, *, reasoning: str = "", call: ToolCall | None = None) -> None:
        last = self._laid[-1] if self._laid else None
        if last is None or last.role != "assistant":
            last = Message("assistant", "")
            self._laid.append(last)
        calls = last.calls if call is None else (*last.calls, call)
        self._laid[-1] = replace(last, reasoning=last.reasoning + reasoning, calls=calls)

    def _result(self, block: Block, path: str) -> None:
        call_id = given(block.tool_use_id, f"{path}.tool_use_id")
        if call_id not in self._calls:
            raise WireError(
                "invalid_value",
                f"{path}: unexpected tool_use_id '{call_id[:200]}': no tool_use block before it has this id",
                path,
            )
        content: str | list[ResultBlock] | None = typed(
            free_form(block.content, f"{path}.content"), ResultContent, f"{path}.content"
        )
        if not isinstance(content, str):
            content = "".join(
                _result_text(each, f"{path}.content[{i}]") for i, each in enumerate(content or ())
            )
        self._laid.append(Message("tool", content, call_id=call_id))


def _picture(source: ImageSource | None, at: int, path: str) -> Picture:
    """The picture in front of character `at` of its message."""
    if source is None:
        raise WireError("missing_required_parameter", f"missing field: {path}", path)
    match source.type:
        case "base64":
            kind = given(source.media_type, f"{path}.media_type")
            where = f"{path}.data"
            return Picture(at, f"data:{kind};base64,{given(source.data, where)}", name=where)
        case "url":
            where = f"{path}.url"
            url = given(source.url, where)
            if url[:5].lower() not in ("data:", "http:", "https"):
                # Decided by the first letters alone: nothing of this server can open what a client names so.
                raise WireError(
                    "invalid_value",
                    f"{where}: addresses are never fetched here; send the picture itself as base64",
                    where,
                )
            return Picture(at, url, name=where)
    raise WireError("unsupported_parameter", f"{path}: no files are kept here", f"{path}.type")


def _result_text(block: ResultBlock, path: str) -> str:
    if block.type != "text":
        what = {**_MEDIA, "image": "images"}.get(block.type, f"blocks of type '{block.type[:200]}'")
        raise WireError("unsupported_parameter", f"{path}: {what} are not supported in results", path)
    return given(block.text, f"{path}.text")


def _arguments(raw: msgspec.Raw, path: str) -> str:
    value = free_form(raw, path)
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise WireError("invalid_value", f"{path} must be an object", path)
    return bytes(raw).decode()


def given(value: str | None, path: str) -> str:
    """`value`, or WireError if it is absent."""
    if value is None:
        raise WireError("missing_required_parameter", f"missing field: {path}", path)
    return value
