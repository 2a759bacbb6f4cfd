"""Calls as Llama 3 writes them: the answer is nothing but `{"name": …, "parameters": {…}}`, several with `;`."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.runtime.parsers.call_object import read_call
from headrace.runtime.parsers.hermes import objects
from headrace.runtime.parsers.incoming import CallRules, Incoming, Malformed, Reading

TAG = "<|python_tag|>"
MARKS = (TAG,)
ANNOUNCED = r'[ \t\r\n]*(<\|python_tag\|>|\{[ \t\r\n]*"name")'


def read(source: Incoming, rules: CallRules) -> Reading[None]:
    """Tell the answer in `source`. A call stands at its beginning or behind another call, nowhere else."""
    while (yield from _call(source, rules)):
        yield from source.drop_white()
        if source.text[source.at : source.at + 1] == ";":
            source.at += 1
    yield from source.remainder()


def _call(source: Incoming, rules: CallRules) -> Reading[bool]:
    """Tell the call that comes now; False if something else comes."""
    try:
        at = yield from source.after_white(source.at)
    except Malformed:
        return False
    if (yield from source.spells(at, TAG)):
        at += len(TAG)
    elif source.text[at] != "{":
        return False
    return (yield from read_call(source, at, rules))


def grammar(tools: Mapping[str, str], parallel: bool, template: str) -> list[str]:
    """Rules for `calls`; see hermes.grammar."""
    return ['calls: object ("; " object)*' if parallel else "calls: object", *objects(tools, "parameters")]
