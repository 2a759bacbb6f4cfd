"""Calls as Hermes and the Qwen models write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from headrace.runtime.parsers.call_object import read_call
from headrace.runtime.parsers.incoming import CallRules, Incoming, Reading

BEGIN, END = "<tool_call>", "</tool_call>"
MARKS = (BEGIN, END)


def read(source: Incoming, rules: CallRules) -> Reading[None]:
    """Tell the answer in `source`, its calls told as calls."""
    while (found := (yield from source.text_until(BEGIN))) >= 0:
        start = found + len(BEGIN)
        if not (yield from read_call(source, start, rules)):
            source.tell(start)  # what comes after the mark is looked at again: it may hold a call
            continue
        yield from close(source, END)


def close(source: Incoming, mark: str) -> Reading[None]:
    """Settle the end mark of a call and the white space around it; where the model left it out, nothing is lost."""
    yield from source.drop_white()
    if (yield from source.spells(source.at, mark)):
        source.at += len(mark)
        yield from source.drop_white()


def grammar(tools: Mapping[str, str], parallel: bool, template: str) -> list[str]:
    """Rules for `calls`: at least one call of `tools` (name → its arguments as a value of a rule); and for `rest`:
    what follows the mark that begins calls, where there is one."""
    rules = ['calls: call ("\\n" call)*' if parallel else "calls: call", f"call: {json.dumps(BEGIN)} rest"]
    rules.append(f"rest: {json.dumps(chr(10))} object {json.dumps(chr(10) + END)}")
    return rules + objects(tools, "arguments")


def objects(tools: Mapping[str, str], key: str) -> list[str]:
    """Rules for `object`: a call as `{"name": …, key: …}`."""
    names = [f"object_{index}" for index in range(len(tools))]
    rules = [f"object: {' | '.join(names)}"]
    for rule, (tool, arguments) in zip(names, tools.items(), strict=True):
        head = f'{{"name": {json.dumps(tool)}, {json.dumps(key)}: '
        rules += [f'{rule}: {json.dumps(head)} {rule}_value "}}"', f"{rule}_value: {arguments}"]
    return rules
