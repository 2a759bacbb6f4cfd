"""Calls as Mistral's models write them: `[TOOL_CALLS]` and a list of objects, or a name and its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from headrace.runtime.parsers.call_object import read_arguments, read_call
from headrace.runtime.parsers.hermes import objects
from headrace.runtime.parsers.incoming import CallRules, Incoming, Malformed, Reading

BEGIN, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
MARKS = (BEGIN, ID, ARGUMENTS)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")


def read(source: Incoming, rules: CallRules) -> Reading[None]:
    """Tell the answer in `source`, its calls told as calls."""
    while (found := (yield from source.text_until(BEGIN))) >= 0:
        start = found + len(BEGIN)
        if not (yield from _calls(source, start, rules)):
            source.tell(start)
            continue
        yield from source.drop_white()


def _calls(source: Incoming, at: int, rules: CallRules) -> Reading[bool]:
    """Tell what follows the mark; False, with nothing told, if that is no call."""
    try:
        at = yield from source.after_white(at)
        if source.text[at] != "[":
            return (yield from _named(source, at, rules))
    except Malformed:
        return False
    if not (yield from read_call(source, at + 1, rules)):
        return False
    while True:
        yield from source.drop_white()
        char = source.text[source.at : source.at + 1]
        if char == "]":
            source.at += 1
            return True
        if char != "," or not (yield from read_call(source, source.at + 1, rules)):
            return True  # what comes now is text


def _named(source: Incoming, at: int, rules: CallRules) -> Reading[bool]:
    """`name[ARGS]{…}`, or without the mark between them. Malformed if it is neither."""
    start = at
    while True:
        yield from source.reach(at)
        found = _NAME.match(source.text, start)
        if found is None:
            raise Malformed
        at = found.end()
        if at < len(source.text):
            break
    name = source.text[start:at]
    if name not in rules.tools:
        raise Malformed
    if (yield from source.spells(at, ID)):
        while source.text[at] != ARGUMENTS[0] or not (yield from source.spells(at, ARGUMENTS)):
            at += 1
            yield from source.reach(at)
    if (yield from source.spells(at, ARGUMENTS)):
        at += len(ARGUMENTS)
    at = yield from source.after_white(at)
    if source.text[at] != "{":
        raise Malformed
    source.begin_call(name)
    source.at = at
    yield from read_arguments(source, rules)
    return True


def grammar(tools: Mapping[str, str], parallel: bool, template: str) -> list[str]:
    """Rules for `calls`; see hermes.grammar. Newer templates write a name and its arguments, older ones a list."""
    if ARGUMENTS not in template:
        more = '(", " object)* ' if parallel else ""
        rules = [f"calls: {json.dumps(BEGIN)} rest", f'rest: " [" object {more}"]"']
        return rules + objects(tools, "arguments")
    names = [f"named_{index}" for index in range(len(tools))]
    rules = [f"calls: named{'+' if parallel else ''}", f"named: {json.dumps(BEGIN)} rest"]
    rules.append(f"rest: {' | '.join(names)}")
    for rule, (tool, arguments) in zip(names, tools.items(), strict=True):
        rules += [
            f"{rule}: {json.dumps(tool + ARGUMENTS)} {rule}_value",
            f"{rule}_value: {arguments}",
        ]
    return rules
