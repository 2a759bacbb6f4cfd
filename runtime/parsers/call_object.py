"""A call written as one JSON object, `{"name": …, "arguments": {…}}`: what several families share."""

from __future__ import annotations

import json

from headrace.runtime.parsers.incoming import CallRules, Incoming, Malformed, Reading
from headrace.runtime.parsers.json_scan import JsonScan

_ARGUMENTS = frozenset({"arguments", "parameters"})
_OTHERS = frozenset({"type", "id", "index"})  # written beside a call by some models, and of no use


def read_call(source: Incoming, at: int, rules: CallRules) -> Reading[bool]:
    """Tell the call whose object begins at `at` (white space may come first).

    True: a call was told and `source.at` is behind it; if it went wrong after its beginning was told, it was ended
    as not whole and `source.at` is where the trouble begins. False: it is no call, nothing was told or settled.
    """
    call = _Call(source, rules)
    try:
        yield from call.read(at)
    except Malformed:
        if call.told:
            source.end_call(False, rules)
        return call.told
    source.end_call(True, rules)
    return True


def read_arguments(source: Incoming, rules: CallRules) -> Reading[None]:
    """Tell the arguments at `source.at` of a call whose beginning was told, and its end."""
    try:
        yield from stream_object(source)
    except Malformed:
        source.end_call(False, rules)
    else:
        source.end_call(True, rules)


def stream_object(source: Incoming) -> Reading[None]:
    """Tell the object at `source.at` as arguments while it arrives. Malformed where it stops being one."""
    scan = JsonScan()
    while True:
        end = scan.read(source.text, source.at)
        source.arguments(source.text[source.at : end])
        source.at = end
        if scan.done:
            return
        if scan.failed or source.ended:
            raise Malformed
        source.trim()
        yield


class _Call:
    """One call while it is read. `told`: its beginning went out, so it cannot become text any more."""

    def __init__(self, source: Incoming, rules: CallRules) -> None:
        self.told = False
        self._source = source
        self._rules = rules
        self._name: str | None = None
        self._held: str | None = None  # arguments that came before the name

    def read(self, at: int) -> Reading[None]:
        source = self._source
        at = yield from source.after_white(at)
        if source.text[at] != "{":
            raise Malformed
        at = yield from source.after_white(at + 1)
        while source.text[at] != "}":
            end = yield from self._value_end(at)
            key = _string(source.text[at:end])
            at = yield from source.after_white(end)
            if source.text[at] != ":":
                raise Malformed
            at = yield from source.after_white(at + 1)
            at = yield from self._member(key, at)
            at = yield from source.after_white(at)
            if source.text[at] == ",":
                at = yield from source.after_white(at + 1)
                if source.text[at] == "}":
                    raise Malformed
            elif source.text[at] != "}":
                raise Malformed
        if not self.told:
            self._begin()
            source.arguments("{}" if self._held is None else self._held)
        source.at = at + 1

    def _begin(self) -> None:
        if self._name is None:
            raise Malformed
        self._source.begin_call(self._name)
        self.told = True

    def _member(self, key: str, at: int) -> Reading[int]:
        """Read the value of `key` at `at`; the index behind it."""
        source = self._source
        if self.told or key in _OTHERS:
            return (yield from self._value_end(at))
        if key == "name":
            end = yield from self._value_end(at)
            self._name = _string(source.text[at:end])
            if self._name not in self._rules.tools:
                raise Malformed
            return end
        if key not in _ARGUMENTS:
            raise Malformed  # told now, not at the end of what may be a long answer in JSON
        if source.text[at] == "{" and self._name is not None:
            self._begin()
            source.at = at
            yield from stream_object(source)
            return source.at
        end = yield from self._value_end(at)
        self._held = _arguments(source.text[at:end])
        return end

    def _value_end(self, at: int) -> Reading[int]:
        """The index behind the JSON value that begins at `at`."""
        source, scan = self._source, JsonScan()
        while True:
            at = scan.read(source.text, at)
            source.check_held(at)
            if scan.done:
                return at
            if scan.failed:
                raise Malformed
            yield from source.reach(at)


def _string(text: str) -> str:
    value = json.loads(text)
    if not isinstance(value, str):
        raise Malformed
    return value


def _arguments(text: str) -> str:
    """Arguments as the text of an object: some models write an object, some its text in a string, some null."""
    if text[0] == "{":
        return text
    value = json.loads(text)
    if value is None:
        return "{}"
    if not isinstance(value, str):
        raise Malformed
    inner, scan = value.strip(), JsonScan()
    if inner[:1] != "{" or scan.read(inner, 0) != len(inner) or not scan.done:
        raise Malformed
    return inner
