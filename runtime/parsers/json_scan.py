"""Where one JSON value ends, found while its text arrives. Builds nothing; knows no meaning of any key."""

from __future__ import annotations

import re

DEPTH_LIMIT = 32

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_NUMBER_CHARS = re.compile(r"[-+.0-9eE]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z")
_WHITE = frozenset(" \t\n\r")
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_CLOSER = {"{": "}", "[": "]"}


class JsonScan:
    """Reads one value, each character once. After `read`: `done` if the value is complete, `failed` if its text is
    no JSON (or is nested too deep), neither if more must come."""

    __slots__ = ("_escape", "_expects", "_part", "_stack", "_string_is_key", "done", "failed")

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self._stack: list[str] = []
        # value, item (or "]"), key, member (key or "}"), colon, next ("," or a closer), string, number, literal
        self._expects = "value"
        self._part = ""  # of a number, or what is left of a literal
        self._escape = ""  # of a string: "\\", or the hex digits that an escape still needs
        self._string_is_key = False

    def read(self, text: str, at: int) -> int:
        """Go on at `text[at]`; returns the index of the first character that was not read."""
        while at < len(text) and not self.done and not self.failed:
            if self._expects == "string":
                at = self._read_string(text, at)
            elif self._expects == "number":
                at = self._read_number(text, at)
            elif self._expects == "literal":
                if text[at] != self._part[0]:
                    self.failed = True
                    break
                self._part = self._part[1:]
                at += 1
                if not self._part:
                    self._closed_value()
            elif text[at] in _WHITE:
                at += 1
            else:
                self._take(text[at])
                if self._expects != "number":
                    at += not self.failed
        return at

    def _take(self, char: str) -> None:
        """One character between values."""
        expects = self._expects
        if expects in ("value", "item"):
            if char == "]" and expects == "item":
                self._close(char)
            else:
                self._begin_value(char)
        elif expects in ("key", "member"):
            if char == '"':
                self._expects, self._string_is_key = "string", True
            elif char == "}" and expects == "member":
                self._close(char)
            else:
                self.failed = True
        elif expects == "colon":
            self._expects = "value"
            self.failed = char != ":"
        elif char == ",":
            self._expects = "key" if self._stack[-1] == "{" else "value"
        else:
            self._close(char)

    def _begin_value(self, char: str) -> None:
        if char in _CLOSER:
            if len(self._stack) == DEPTH_LIMIT:
                self.failed = True
                return
            self._stack.append(char)
            self._expects = "member" if char == "{" else "item"
        elif char == '"':
            self._expects, self._string_is_key = "string", False
        elif char in _LITERALS:
            self._expects, self._part = "literal", _LITERALS[char][1:]
        elif char in "-0123456789":
            self._expects, self._part = "number", ""
        else:
            self.failed = True

    def _close(self, char: str) -> None:
        if _CLOSER[self._stack[-1]] != char:
            self.failed = True
            return
        self._stack.pop()
        self._closed_value()

    def _closed_value(self) -> None:
        self._expects = "next"
        self.done = not self._stack

    def _read_string(self, text: str, at: int) -> int:
        if self._escape:
            char = text[at]
            if self._escape == "\\":
                if char == "u":
                    self._escape = "4"
                elif char in '"\\/bfnrt':
                    self._escape = ""
                else:
                    self.failed = True
            elif char in "0123456789abcdefABCDEF":
                left = int(self._escape) - 1
                self._escape = str(left) if left else ""
            else:
                self.failed = True
            return at + (not self.failed)
        run = _PLAIN.match(text, at)
        assert run is not None
        at = run.end()
        if at < len(text):
            char = text[at]
            if char == '"':
                if self._string_is_key:
                    self._expects = "colon"
                else:
                    self._closed_value()
            elif char == "\\":
                self._escape = "\\"
            else:
                self.failed = True
                return at
            at += 1
        return at

    def _read_number(self, text: str, at: int) -> int:
        run = _NUMBER_CHARS.match(text, at)
        assert run is not None
        self._part += run[0]
        if len(self._part) > 512:  # no number that means anything
            self.failed = True
        elif run.end() < len(text):  # its end is known by what follows
            if _NUMBER.match(self._part):
                self._closed_value()
            else:
                self.failed = True
        return run.end()
