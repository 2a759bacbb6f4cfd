"""Answers into typed pieces: every family's calls, reasoning, and what only looks like either."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime.parsers.families import REASONING, TOOLS, AnswerForm, answer_form
from headrace.runtime.parsers.incoming import HELD_LIMIT
from headrace.runtime.parsers.json_scan import DEPTH_LIMIT, JsonScan
from headrace.runtime.parsers.pieces import (
    CallArguments,
    CallBegin,
    CallEnd,
    Piece,
    ReasoningPiece,
    TextPiece,
    joined,
)
from headrace.runtime.parsers.splitter import Splitter

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}, "count": {"type": "integer"}}}
ALLOWED: dict[str, Any] = {"look": None, "write": SCHEMA}

# Pieces of markup and of trouble: hostile text is made of these.
SHARDS = (
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    *("<|python_tag|>", "[THINK]", "[/THINK]", "<function=look>", "<function=write>", "</function>"),
    *("<parameter=text>", "</parameter>", '{"name": "look", "arguments": ', '{"name": "other", '),
    *('"name": "write"', '"parameters": {', '{"arguments": {}, ', "{", "}", "[", "]", '"', "\\", ":", ",", ";"),
    *(" ", "\n", "1", "-0.5e3", "true", "null", "look", "<", "é", "🎉", "\\u12", "\x00", "\ud800"),
    *("__import__('os')", "a" * 40),
)  # fmt: skip


def splitter(tools: str | None, reasoning: str | None = None, **how: Any) -> Splitter:
    form = AnswerForm(TOOLS.get(tools or ""), REASONING.get(reasoning or ""))
    found = form.splitter(ALLOWED if tools else {}, **how)
    assert found is not None
    return found


def split(made: Splitter, parts: list[str]) -> list[Piece]:
    said: list[Piece] = []
    for part in parts:
        said += made.push(part)
    return joined(said + made.finish())


def calls(pieces: list[Piece]) -> list[tuple[str, str, bool]]:
    """(name, arguments, whole) of every call, after checking that calls are told in order."""
    found: list[tuple[str, str, bool]] = []
    name: str | None = None
    written = ""
    for piece in pieces:
        match piece:
            case CallBegin():
                assert name is None
                name, written = piece.name, ""
            case CallArguments():
                assert name is not None
                written += piece.text
            case CallEnd():
                assert name is not None
                found.append((name, written, piece.whole))
                name = None
            case _:
                assert name is None, "text stands between calls, never in one"
    assert name is None
    return found


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("hermes", 'Sure.\n<tool_call>\n{"name": "look", "arguments": {"at": "Rome"}}\n</tool_call>'),
        ("hermes", 'Sure.<tool_call>{"arguments": {"at": "Rome"}, "name": "look"}</tool_call>'),
        ("hermes", 'Sure. <tool_call> { "id": 3, "name" : "look", "arguments": {"at": "Rome"}}'),
        ("hermes", 'Sure. <tool_call>{"name":"look","arguments":"{\\"at\\": \\"Rome\\"}"}</tool_call>\n'),
        ("mistral", 'Sure.[TOOL_CALLS] [{"name": "look", "arguments": {"at": "Rome"}, "id": "abcdefghi"}]'),
        ("mistral", 'Sure. [TOOL_CALLS]look[ARGS]{"at": "Rome"}'),
        ("mistral", 'Sure. [TOOL_CALLS]look[CALL_ID]abcdefghi[ARGS]{"at": "Rome"}'),
        ("mistral", 'Sure. [TOOL_CALLS]look{"at": "Rome"}'),
        (
            "qwen_coder",
            "Sure.\n<tool_call>\n<function=look>\n<parameter=at>\nRome\n</parameter>\n</function>\n</tool_call>",
        ),
    ],
)
def test_a_call_after_text(family: str, answer: str) -> None:
    pieces = split(splitter(family), [answer])
    assert text(pieces) == "Sure."
    assert calls(pieces) == [("look", '{"at": "Rome"}', True)]


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        (
            "hermes",
            '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "write", "arguments": {}}\n</tool_call>',
        ),
        ("llama3", '{"name": "look", "parameters": {"a": 1}}; {"name": "write"}'),
        ("llama3", '<|python_tag|>{"type": "function", "name": "look", "parameters": {"a": 1}};{"name": "write"}'),
        ("mistral", '[TOOL_CALLS][{"name": "look", "arguments": {"a": 1}}, {"name": "write", "arguments": null}]'),
        ("mistral", '[TOOL_CALLS]look[ARGS]{"a": 1}[TOOL_CALLS]write[ARGS]{}'),
        (
            "qwen_coder",
            "<tool_call><function=look><parameter=a>1</parameter></function></tool_call>\n"
            "<tool_call>\n<function=write>\n</function>\n</tool_call>",
        ),
    ],
)  # fmt: skip
def test_several_calls(family: str, answer: str) -> None:
    pieces = split(splitter(family), [answer])
    assert text(pieces) == ""
    assert calls(pieces) == [("look", '{"a": 1}', True), ("write", "{}", True)]


def test_arguments_are_told_while_they_arrive() -> None:
    made = splitter("hermes")
    assert made.push('<tool_call>{"name": "look", "argum') == []
    assert made.push('ents": {"at": "Ro') == [CallBegin("look"), CallArguments('{"at": "Ro')]
    assert made.push("me") == [CallArguments("me")]
    assert made.push('"}') == [CallArguments('"}')]
    assert made.push("}") == [CallEnd(True)]
    assert made.push("</tool") == []
    assert made.push("_call>\n") == made.finish() == []


def test_only_what_may_begin_a_mark_is_held_back() -> None:
    made = splitter("hermes")
    assert made.push("one two") == [TextPiece("one two")]
    assert made.push(" <tool") == []
    assert made.push("box>") == [TextPiece(" <toolbox>")]


def test_a_coder_value_follows_its_schema() -> None:
    answer = (
        "<tool_call>\n<function=write>\n<parameter=text>\nline \"1\"\n\n</parameter>\n<parameter=count>\n3\n"
        "</parameter>\n<parameter=free>\n{\"a\": [1]}\n</parameter>\n<parameter=word>\nnot JSON\n</parameter>\n"
        "</function>\n</tool_call>"
    )  # fmt: skip
    ((name, arguments, whole),) = calls(split(splitter("qwen_coder"), [answer]))
    assert (name, whole) == ("write", True)
    assert json.loads(arguments) == {"text": 'line "1"\n', "count": 3, "free": {"a": [1]}, "word": "not JSON"}


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
        ("hermes", 'a <tool_call>{"arguments": {}}</tool_call> b'),
        ("hermes", "a  \n<tool_call>[1]</tool_call>"),
        ("hermes", 'a <tool_call>{"name": "look", "arguments": 3}</tool_call>'),
        ("hermes", 'a <tool_call>{"name": "look",}</tool_call>'),
        ("hermes", 'a <tool_call>{"name": "lo'),
        ("hermes", "<tool_call>" * 3 + " "),
        ("llama3", '{"temperature": 3}'),
        ("llama3", ' {"name": "Rome", "people": 3}'),
        ("llama3", 'It is {"name": "look", "parameters": {}}'),
        ("mistral", "[TOOL_CALLS] []"),
        ("mistral", "[TOOL_CALLS]other[ARGS]{}"),
        ("mistral", "[TOOL_CALLS]look[ARGS]3"),
        ("qwen_coder", "<tool_call>\n<function=other>\n</function>\n</tool_call>"),
        ("qwen_coder", '<tool_call>{"name": "look", "arguments": {}}</tool_call>'),
    ],
)
def test_what_is_no_call_is_text(family: str, answer: str) -> None:
    pieces = split(splitter(family), [answer])
    assert calls(pieces) == []
    assert text(pieces) == answer


@pytest.mark.parametrize(
    ("family", "answer", "arguments", "after"),
    [
        ("hermes", '<tool_call>{"name": "look", "arguments": {"a": tru', '{"a": tru', ""),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"a": trx}} no', '{"a": tr', "x}} no"),
        ("hermes", '<tool_call>{"name": "look", "arguments": {}, no', "{}", ", no"),
        ("mistral", "[TOOL_CALLS]look[ARGS]{1} no", "{", "1} no"),
        ("qwen_coder", "<tool_call><function=look> no", "{", "no"),
        ("qwen_coder", "<tool_call><function=write><parameter=text>\nabc", '{"text": "abc', ""),
    ],
)
def test_a_call_that_breaks_ends_as_not_whole(family: str, answer: str, arguments: str, after: str) -> None:
    pieces = split(splitter(family), [answer])
    assert calls(pieces) == [("look" if "look" in answer else "write", arguments, False)]
    assert text(pieces) == after


def test_the_answer_ends_with_its_only_call() -> None:
    made = splitter("hermes", single=True)
    answer = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    pieces = split(made, [answer * 2 + " more"])
    assert made.over
    assert pieces == [CallBegin("look"), CallArguments("{}"), CallEnd(True)]


# -- reasoning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "thinking", "thought", "said"),
    [
        ("<think>\nhm, hm\n</think>\n\nYes.", False, "hm, hm", "Yes."),
        ("\n<think>hm</think>Yes.", False, "hm", "Yes."),
        ("hm\n</think>\n\nYes.", True, "hm", "Yes."),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("<think>\nhm \n", False, "hm \n", ""),
        ("hm", True, "hm", ""),
        ("Yes. <think>no</think>", False, "", "Yes. <think>no</think>"),
        (" Yes.", False, "", " Yes."),
        ("<thi", False, "", "<thi"),
        (" \n ", False, "", " \n "),
    ],
)
def test_reasoning_is_told_apart(answer: str, thinking: bool, thought: str, said: str) -> None:
    pieces = split(splitter(None, "think", thinking=thinking), [answer])
    assert "".join(piece.text for piece in pieces if isinstance(piece, ReasoningPiece)) == thought
    assert text(pieces) == said


def test_reasoning_knows_when_it_is_going_on() -> None:
    made = splitter("hermes", "think")
    assert not made.thinking
    made.push("<think>")
    assert made.thinking
    assert made.push('a <tool_call>{"name": "look"}') == [ReasoningPiece('a <tool_call>{"name": "look"}')]
    made.push("</think>")
    assert not made.thinking


# -- any text, cut anywhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reasoning", [None, "think", "mistral"])
@pytest.mark.parametrize("family", sorted(TOOLS))
@settings(max_examples=150, deadline=None)
@given(shards=st.lists(st.sampled_from(SHARDS), max_size=14), data=st.data())
def test_any_cutting_gives_the_same_pieces(
    family: str, reasoning: str | None, shards: list[str], data: st.DataObject
) -> None:
    answer = "".join(shards)
    thinking = reasoning is not None and data.draw(st.booleans())
    single = data.draw(st.booleans())
    whole = split(splitter(family, reasoning, thinking=thinking, single=single), [answer])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    parts = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert split(splitter(family, reasoning, thinking=thinking, single=single), parts) == whole
    assert split(splitter(family, reasoning, thinking=thinking, single=single), list(answer)) == whole
    for name, arguments, complete in calls(whole):
        assert name in ALLOWED
        if complete:
            assert isinstance(json.loads(arguments), dict)
    if not calls(whole) and reasoning is None:
        assert text(whole) == answer  # nothing is lost where nothing was found


@settings(max_examples=300, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    ascii_only=st.booleans(),
    step=st.integers(1, 5),
)  # fmt: skip
def test_the_scan_finds_the_end_of_any_json(value: Any, ascii_only: bool, step: int) -> None:
    written = json.dumps(value, ensure_ascii=ascii_only)
    scan, at, known = JsonScan(), 0, 0
    while not scan.done:
        assert not scan.failed
        known = min(known + step, len(written) + 1)
        at = scan.read(f"{written} "[:known], at)
    assert at == len(written)


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet='{}[]",:\\ u0123456789abcdeEtrufalsn.+-\n', max_size=12))
def test_the_scan_takes_what_json_takes(written: str) -> None:
    scan = JsonScan()
    at = scan.read(f"{written}\x00", 0)
    try:
        json.loads(written, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    except ValueError:
        assert not (scan.done and written[at:].strip(" \n") == "")
    else:
        assert scan.done and written[at:].strip(" \n") == ""


def test_depth_and_waiting_are_bounded() -> None:
    deep = '{"a":' * (DEPTH_LIMIT + 1)
    pieces = split(splitter("hermes"), ['<tool_call>{"name": "look", "arguments": ' + deep])
    assert calls(pieces) == [("look", '{"a":' * DEPTH_LIMIT, False)]
    for answer in (
        '<tool_call>{"arguments": {"a": "' + "b" * 2 * HELD_LIMIT + '"}, "name": "look"}</tool_call>',
        "<tool_call>" + " " * 2 * HELD_LIMIT,
        "a" + "\n" * 2 * HELD_LIMIT,
    ):
        for step in (len(answer), 1000):
            made, told = splitter("hermes"), 0
            for at in range(0, len(answer), step):
                told += sum(len(piece.text) for piece in made.push(answer[at : at + step]))  # type: ignore[union-attr]
            assert told > len(answer) - HELD_LIMIT - 1000
            assert told + sum(len(piece.text) for piece in made.finish()) == len(answer)  # type: ignore[union-attr]


# -- which parser ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ("{{ '<tool_call>\\n{\"name\": ' }}", "hermes", None),
        ("{{ '<tool_call>' }}{{ '<function=' + name }} {{ '</think>' }}", "qwen_coder", "think"),
        ("{{ '[TOOL_CALLS]' }}{{ '[THINK]' }}", "mistral", "mistral"),
        ("Environment: ipython {{ '\"parameters\": ' }}", "llama3", None),
        ("{{ messages }}", None, None),
    ],
)
def test_the_template_tells_the_family(template: str, tools: str | None, reasoning: str | None) -> None:
    form = answer_form(template)
    assert form == AnswerForm(TOOLS.get(tools or ""), REASONING.get(reasoning or ""), template)
    assert answer_form(template, "mistral", "none") == AnswerForm(TOOLS["mistral"], None, template)
    assert answer_form(template, "none", "none").splitter(ALLOWED) is None
