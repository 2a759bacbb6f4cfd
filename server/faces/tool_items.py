"""Input items of the Responses API that are not messages → turns of a conversation. Knows items; opens nothing.

A template knows turns, the API knows items: what an assistant thought, said and called is one turn and several
items in a row.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from headrace.runtime.interface import Message, Tenant, ToolCall
from headrace.server.faces.compaction import joined_users, unseal
from headrace.server.faces.tool_asks import text_arguments
from headrace.server.protocol.codec import free_form, typed
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import Item, Part

OUTPUTS = {
    "function_call_output": "function call output",
    "custom_tool_call_output": "custom tool call output",
}
_BLOB = "hr1."


class Turns:
    """Turns while items are read. part_text(part, path): the text of a content part, or WireError. tenant: whose
    compactions are opened."""

    def __init__(self, part_text: Callable[[Part, str], str], tenant: Tenant) -> None:
        self._part_text = part_text
        self._tenant = tenant
        self._laid: list[Message] = []
        self._thought = ""  # reasoning of the assistant's turn that comes next

    def add(self, message: Message) -> None:
        """A whole message; an assistant's gets the thought before it."""
        thought, self._thought = self._thought, ""
        if message.role == "assistant" and thought:
            message = replace(message, reasoning=thought)
        self._laid.append(message)

    def add_item(self, item: Item, path: str) -> bool:
        """An item of another kind. False if it is none of those known here."""
        match item.type:
            case "reasoning":
                self._thought += self._reasoning(item, path)
            case "function_call":
                self._call(item, path, _given(item.arguments, f"{path}.arguments"))
            case "custom_tool_call":
                self._call(item, path, text_arguments(_given(item.input, f"{path}.input")), custom=True)
            case "function_call_output" | "custom_tool_call_output":
                self._result(item, path)
            case "compaction":
                self._compacted(item, f"{path}.encrypted_content")
            case _:
                return False
        return True

    def turns(self) -> tuple[Message, ...]:
        """All turns. A thought that nothing followed is left out: it belongs to no turn."""
        return tuple(self._laid)

    def _call(self, item: Item, path: str, arguments: str, custom: bool = False) -> None:
        call = ToolCall(
            _given(item.call_id, f"{path}.call_id"), _given(item.name, f"{path}.name"), arguments, custom
        )
        last = self._laid[-1] if self._laid else None
        if last is not None and last.role == "assistant" and not self._thought:
            self._laid[-1] = replace(last, calls=(*last.calls, call))
        else:
            self.add(Message("assistant", "", calls=(call,)))

    def _result(self, item: Item, path: str) -> None:
        call_id = _given(item.call_id, f"{path}.call_id")
        path = f"{path}.output"
        value = free_form(item.output, path)
        if value is None:
            raise WireError("missing_required_parameter", f"missing field: {path}", path)
        output: str | list[Part] = typed(value, str | list[Part], path)
        if not isinstance(output, str):
            output = "".join(self._part_text(part, f"{path}[{i}]") for i, part in enumerate(output))
        self.add(Message("tool", output, call_id=call_id))

    def _compacted(self, item: Item, path: str) -> None:
        """The user's turns before it were kept beside it, all in a row."""
        summary = unseal(_given(item.encrypted_content, path), item.id, path, self._tenant)
        self._laid = joined_users(self._laid)
        self.add(summary.turn)

    def _reasoning(self, item: Item, path: str) -> str:
        if isinstance(item.content, str):
            return item.content
        if item.content:
            return "".join(
                _given(part.text, f"{path}.content[{i}].text") for i, part in enumerate(item.content)
            )
        return opened(item.encrypted_content or "")


def sealed(reasoning: str) -> str:
    """Reasoning as the opaque text that clients keep and send back."""
    return _BLOB + base64.urlsafe_b64encode(reasoning.encode("utf-8", "replace")).decode()


def opened(blob: str) -> str:
    """What `sealed` closed; nothing for a blob that was made elsewhere."""
    if not blob.startswith(_BLOB):
        return ""
    try:
        return base64.urlsafe_b64decode(blob.removeprefix(_BLOB)).decode()
    except (binascii.Error, ValueError):
        return ""


def check_outputs(items: Any, turns: tuple[Message, ...]) -> None:
    """WireError unless every output among `items` belongs to a call in `turns`. Clients know this sentence."""
    if not isinstance(items, list):
        return
    known = {call.id for message in turns for call in message.calls}
    for item in items:
        what = OUTPUTS.get(item.type or "")
        if what is not None and item.call_id not in known:
            raise WireError(
                "invalid_value",
                f"No tool call found for {what} with call_id {(item.call_id or '')[:200]}.",
                "input",
            )


def _given(value: str | None, path: str) -> str:
    if value is None:
        raise WireError("missing_required_parameter", f"missing field: {path}", path)
    return value
