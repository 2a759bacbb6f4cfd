"""Calls as Qwen3-Coder writes them: `<function=NAME>` with a `<parameter=KEY>` for each value, in `<tool_call>`.

Values are plain text there. They become JSON by the tool's schema: text where it says string, else the JSON value
that the text spells, and text again where it spells none. Nothing is ever evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headrace.runtime.parsers.hermes import BEGIN, END, close
from headrace.runtime.parsers.incoming import CallRules, Incoming, Malformed, Reading, overlap
from headrace.runtime.parsers.json_scan import JsonScan

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
MARKS = (BEGIN, END)
NAME_LIMIT = 256


def read(source: Incoming, rules: CallRules) -> Reading[None]:
    """Tell the answer in `source`, its calls told as calls."""
    while (found := (yield from source.text_until(BEGIN))) >= 0:
        start = found + len(BEGIN)
        if not (yield from _call(source, start, rules)):
            source.tell(start)
            continue
        yield from close(source, END)


def _call(source: Incoming, at: int, rules: CallRules) -> Reading[bool]:
    try:
        at = yield from source.after_white(at)
        name, at = yield from _named(source, at, FUNCTION)
        if name not in rules.tools:
            raise Malformed
    except Malformed:
        return False
    source.begin_call(name)
    source.arguments("{")
    source.at = at
    try:
        yield from _parameters(source, rules.tools[name])
    except Malformed:
        source.end_call(False, rules)
    else:
        source.arguments("}")
        source.end_call(True, rules)
    return True


def _parameters(source: Incoming, schema: Mapping[str, Any] | None) -> Reading[None]:
    said: set[str] = set()
    while True:
        at = yield from source.after_white(source.at)
        if (yield from source.spells(at, FUNCTION_END)):
            source.at = at + len(FUNCTION_END)
            return
        key, at = yield from _named(source, at, PARAMETER)
        if key in said:
            raise Malformed
        source.arguments(f"{', ' if said else ''}{json.dumps(key, ensure_ascii=False)}: ")
        said.add(key)
        source.at = at
        if _is_text(schema, key):
            yield from _text(source)
        else:
            yield from _value(source)


def _named(source: Incoming, at: int, mark: str) -> Reading[tuple[str, int]]:
    """The name in `mark`NAME`>` at `at`, and the index behind it."""
    if not (yield from source.spells(at, mark)):
        raise Malformed
    start = at = at + len(mark)
    while (yield from source.reach(at)) != ">":
        if at - start == NAME_LIMIT or source.text[at] in "<\n":
            raise Malformed
        at += 1
    return source.text[start:at].strip(), at + 1


def _text(source: Incoming) -> Reading[None]:
    """Tell a text value while it arrives, without the line breaks that the format puts around it."""
    source.arguments('"')
    if (yield from source.reach(source.at)) == "\n":
        source.at += 1
    while True:
        found = source.text.find(PARAMETER_END, source.at)
        end = found
        if found < 0:
            end = len(source.text) - (0 if source.ended else overlap(source.text, PARAMETER_END))
        if end > source.at and source.text[end - 1] == "\n" and not (source.ended and found < 0):
            end -= 1  # the line break before the mark, if the mark comes
        source.arguments(json.dumps(source.text[source.at : end], ensure_ascii=False)[1:-1])
        source.at = end
        if found >= 0:
            source.arguments('"')
            source.at = found + len(PARAMETER_END)
            return
        if source.ended:
            raise Malformed
        source.trim()
        yield


def _value(source: Incoming) -> Reading[None]:
    at = source.at
    while (found := source.text.find(PARAMETER_END, at)) < 0:
        at = max(source.at, len(source.text) - len(PARAMETER_END))
        yield from source.reach(len(source.text))
    source.check_held(found)
    text = source.text[source.at : found].strip()
    source.arguments(text if _is_json(text) else json.dumps(text, ensure_ascii=False))
    source.at = found + len(PARAMETER_END)


def _is_text(schema: Mapping[str, Any] | None, key: str) -> bool:
    """True if the schema says plainly that `key` is a string."""
    properties = (schema or {}).get("properties")
    declared = properties.get(key) if isinstance(properties, Mapping) else None
    return isinstance(declared, Mapping) and declared.get("type") == "string"


def _is_json(text: str) -> bool:
    scan = JsonScan()
    return scan.read(f"{text} ", 0) == len(text) and scan.done  # the space ends a number


def grammar(tools: Mapping[str, str], parallel: bool, template: str) -> list[str]:
    """Rules for `calls`; see hermes.grammar.

    Values stand as plain text, so the schema itself cannot be followed: any parameters are taken, and the parser
    makes them JSON.
    """
    rules = ['calls: call ("\\n" call)*' if parallel else "calls: call"]
    functions = " | ".join(json.dumps(f"{BEGIN}\n{FUNCTION}{tool}>\n") for tool in tools)
    rules.append(f"call: ({functions}) parameter* {json.dumps(FUNCTION_END + chr(10) + END)}")
    rules.append(f"parameter: {json.dumps(PARAMETER)} key {json.dumps('>' + chr(10))} value")
    rules.append("key: /[A-Za-z0-9_.-]{1,128}/")
    rules.append(f"value[suffix={json.dumps(chr(10) + PARAMETER_END + chr(10))}]: /(.|\\n)*/")
    return rules
