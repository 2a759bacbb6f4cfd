"""Messages as chat templates take them: plain dicts, with the calls and their results as transformers writes them.

Knows what templates look for; renders nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from headrace.runtime.interface import Message
from headrace.runtime.parsers.json_scan import JsonScan

# Mistral's templates refuse ids of any other length.
_NINE = re.compile(r"length\s*!=\s*9")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def described(messages: Sequence[Message], template: str, parts: bool = False) -> list[dict[str, Any]]:
    """The messages for `template`. A tool's result gets the name of the tool that its call names. parts: every
    content is a list, not only where pictures are."""
    short = _NINE.search(template) is not None
    names = {call.id: call.name for message in messages for call in message.calls}
    laid = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": _content(message, parts)}
        if message.reasoning:
            turn["reasoning_content"] = message.reasoning
        if message.calls:
            turn["tool_calls"] = [
                {
                    "id": _nine(call.id) if short else call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _arguments(call.arguments)},
                }
                for call in message.calls
            ]
        if message.role == "tool":
            if message.call_id is not None:
                turn["tool_call_id"] = _nine(message.call_id) if short else message.call_id
            name = message.name or names.get(message.call_id or "")
            if name is not None:
                turn["name"] = name
        laid.append(turn)
    return laid


def _content(message: Message, always: bool) -> str | list[dict[str, str]]:
    """A text, or parts where pictures stand in it."""
    if not message.pictures and not always:
        return message.content
    parts: list[dict[str, str]] = []
    done = 0
    for picture in message.pictures:
        if picture.at > done:
            parts.append({"type": "text", "text": message.content[done : picture.at]})
        parts.append({"type": "image"})
        done = picture.at
    if done < len(message.content):
        parts.append({"type": "text", "text": message.content[done:]})
    return parts


def _arguments(text: str) -> Any:
    """The object that `text` spells. What a model or a client left broken stays the text that it is."""
    stripped, scan = text.strip(" \t\n\r"), JsonScan()
    if stripped[:1] == "{" and scan.read(stripped, 0) == len(stripped) and scan.done:
        return json.loads(stripped)
    return text


def _nine(call_id: str) -> str:
    if len(call_id) == 9:
        return call_id
    number = int.from_bytes(hashlib.blake2s(call_id.encode("utf-8", "replace")).digest(), "big")
    digits = []
    for _ in range(9):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)
