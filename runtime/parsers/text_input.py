"""Calls of tools that take free text: the model writes `{"input": "…"}`, the client gets the text."""

from __future__ import annotations

import json
import re


class TextInput:
    """The string in `{"input": "…"}`, decoded while its JSON arrives. `text`: what was decoded so far.

    A model that writes another object has called the tool with that object: its JSON is then the input.
    """

    _START = re.compile(r'\s*\{\s*"input"\s*:\s*"')
    # Whole characters and escapes; the two halves of a pair only together.
    _WHOLE = re.compile(
        r'(?:[^"\\]+|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
        r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*"
    )

    def __init__(self) -> None:
        self.text = ""
        self._begun = False
        self._rest = ""  # not decoded yet
        self._parts: list[str] = []

    def push(self, part: str) -> str:
        """What more of the input `part` makes certain."""
        self._parts.append(part)
        self._rest += part
        if not self._begun:
            start = self._START.match(self._rest)
            if start is None:
                return ""
            self._begun, self._rest = True, self._rest[start.end() :]
        found = self._WHOLE.match(self._rest)
        assert found is not None
        self._rest = self._rest[found.end() :]
        return self._add(json.loads(f'"{found[0]}"'))

    def finish(self) -> str:
        """What is left, now that the object is there, or will never be."""
        written = "".join(self._parts)
        try:
            value = json.loads(written)["input"]
        except (ValueError, LookupError):
            value = None if self._begun else written
        whole = (value if isinstance(value, str) else written).encode("utf-8", "replace").decode()
        return self._add(whole[len(self.text) :]) if whole.startswith(self.text) else ""

    def _add(self, text: str) -> str:
        self.text += text
        return text
