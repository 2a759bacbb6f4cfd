"""Grammars of answers: what they allow is what the parsers read, and hostile schemas cost little and say why."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from jsonschema import validate

from headrace.runtime.grammar import (
    SCHEMA_LIMIT,
    BadGrammar,
    GrammarCompiler,
    GrammarState,
    answer_lark,
    inline_json,
)
from headrace.runtime.interface import AnswerShape, Ask, Message, Tool, ToolChoice
from headrace.runtime.parsers.families import REASONING, TOOLS, AnswerForm
from headrace.runtime.parsers.pieces import (
    CallArguments,
    CallBegin,
    CallEnd,
    ReasoningPiece,
    TextPiece,
    joined,
)
from headrace.runtime.refusal import Refusal

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]")
RAW = [bytes([each]) for each in range(256)] + [mark.encode() for mark in MARKS] + [b""] * 3
END = 262
CLOSING = frozenset({END, *b'"}]<'})
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "at": {"type": "string", "maxLength": 6},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 31}, "maxItems": 3},
        "kind": {"enum": ["rain", "sun\n", "\u00e9"]},
    },
    "required": ["at", "kind"],
    "additionalProperties": False,
}
WEATHER, CLOCK = Tool("weather", "what it is like", SCHEMA, strict=True), Tool("clock")


def encoded(text: str) -> list[int]:
    """Marks as tokens of their own, everything else as bytes."""
    ids: list[int] = []
    while text:
        mark = next((mark for mark in MARKS if text.startswith(mark)), None)
        ids += [256 + MARKS.index(mark)] if mark else list(text[0].encode())
        text = text[len(mark) if mark else 1 :]
    return ids


COMPILER = GrammarCompiler(RAW, frozenset({END}), encoded)


def allowed(state: GrammarState, width: int) -> list[int]:
    mask = state.mask()
    return [token for token in range(width) if token // 8 < len(mask) and mask[token // 8] >> token % 8 & 1]


def walk(
    state: GrammarState,
    rng: random.Random,
    raw: Any,
    ends: frozenset[int],
    closing: frozenset[int],
    steps: int = 400,
) -> tuple[str, bool]:
    """A random answer that the grammar allows, in favour of what closes things; and whether it came to its end."""
    ids: list[int] = []
    for _ in range(steps):
        can = allowed(state, len(raw))
        assert can, state.trouble
        near = [token for token in can if token in closing]
        token = rng.choice(near if near and rng.random() < 0.7 else can)
        if token in ends:
            return b"".join(raw[each] for each in ids).decode(), True
        state.accept(token)
        ids.append(token)
    return b"".join(raw[each] for each in ids).decode(errors="ignore"), False


@pytest.mark.parametrize("thinking", [None, False, True])
@pytest.mark.parametrize(
    ("family", "template"),
    [("hermes", ""), ("llama3", ""), ("mistral", ""), ("mistral", "[ARGS]"), ("qwen_coder", "")],
)
def test_a_forced_call_is_read_as_one(family: str, template: str, thinking: bool | None) -> None:
    form = AnswerForm(TOOLS[family], None if thinking is None else REASONING["think"], template)
    ended = 0
    for parallel in (True, False):
        lark = answer_lark(
            form,
            shape=None,
            tools=(WEATHER, CLOCK),
            required=True,
            parallel=parallel,
            thinking=bool(thinking),
        )
        for seed in range(15):
            text, over = walk(COMPILER.compile(lark), random.Random(seed), RAW, frozenset({END}), CLOSING)
            splitter = form.splitter({"weather": SCHEMA, "clock": None}, thinking=bool(thinking))
            assert splitter is not None
            pieces = joined(splitter.push(text) + splitter.finish())
            assert thinking is not None or not any(isinstance(piece, ReasoningPiece) for piece in pieces)
            if not over:
                continue
            ended += 1
            assert not any(isinstance(piece, TextPiece) for piece in pieces), text
            names = [piece.name for piece in pieces if isinstance(piece, CallBegin)]
            assert names and set(names) <= {"weather", "clock"} and (parallel or len(names) == 1)
            assert all(piece.whole for piece in pieces if isinstance(piece, CallEnd))
            written = [piece.text for piece in pieces if isinstance(piece, CallArguments)]
            for name, arguments in zip(names, written, strict=True):
                value = json.loads(arguments)
                if name == "weather" and family != "qwen_coder":  # its values are plain text, of any kind
                    validate(value, SCHEMA)
    assert ended >= 5


@pytest.mark.parametrize("thinking", [None, False, True])
def test_a_shaped_answer_follows_its_schema(thinking: bool | None) -> None:
    form = AnswerForm(None, None if thinking is None else REASONING["think"])
    ended = 0
    for schema in (SCHEMA, None):
        lark = answer_lark(
            form, shape=AnswerShape(schema), tools=(), required=False, parallel=True, thinking=bool(thinking)
        )
        for seed in range(15):
            text, over = walk(COMPILER.compile(lark), random.Random(seed), RAW, frozenset({END}), CLOSING)
            if over:
                ended += 1
                splitter = form.splitter({}, thinking=bool(thinking))
                said = text
                if splitter is not None:
                    pieces = joined(splitter.push(text) + splitter.finish())
                    said = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
                validate(json.loads(said), schema or {"type": "object"})
    assert ended >= 5


def test_with_tools_a_shaped_answer_may_be_a_call_instead() -> None:
    form = AnswerForm(TOOLS["hermes"])
    lark = answer_lark(
        form, shape=AnswerShape(SCHEMA), tools=(CLOCK,), required=False, parallel=True, thinking=False
    )
    for text in (
        '{"at": "Rome", "kind": "rain"}',
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
    ):
        state = COMPILER.compile(lark)
        for token in encoded(text):
            assert token in allowed(state, len(RAW))
            state.accept(token)
        assert END in allowed(state, len(RAW))
    assert ord("I") not in allowed(COMPILER.compile(lark), len(RAW))


def test_what_a_client_writes_for_the_library_is_replaced() -> None:
    lark = f"start: {inline_json({**SCHEMA, 'x-guidance': {'whitespace_pattern': 'zork'}})}"
    state = COMPILER.compile(lark)
    state.accept(ord("{"))
    assert ord("z") not in allowed(state, len(RAW)) and ord("\n") in allowed(state, len(RAW))


def test_white_space_ends() -> None:
    state = COMPILER.compile(f"start: {inline_json(SCHEMA)}")
    for token in b"{" + b"\n" * 64:
        assert token in allowed(state, len(RAW))
        state.accept(token)
    assert ord("\n") not in allowed(state, len(RAW))


@pytest.mark.parametrize("family", ["", "hermes", "llama3", "mistral"])
def test_a_model_of_blanks_ends(family: str) -> None:
    """Whoever writes white space wherever it is allowed comes to the end of the answer all the same."""
    form = AnswerForm(TOOLS.get(family))
    shape = None if family else AnswerShape(SCHEMA)
    tools = (WEATHER,) if family else ()
    lark = answer_lark(form, shape=shape, tools=tools, required=bool(family), parallel=False, thinking=False)
    state, said = COMPILER.compile(lark), bytearray()
    while END not in (can := allowed(state, len(RAW))):
        blanks = [token for token in can if token in {*b"\t\n\r "}]
        closing = [token for token in can if token in CLOSING]
        token = (blanks or closing or can)[0]
        state.accept(token)
        said += RAW[token]
        assert len(said) < 1500, said
    assert said.count(b"\t" * 64) > 3, "they were tried"


def test_a_text_that_is_forced_is_cut_as_the_tokenizer_cuts_it() -> None:
    lark = answer_lark(
        AnswerForm(TOOLS["hermes"]), shape=None, tools=(CLOCK,), required=True, parallel=False, thinking=False
    )
    assert allowed(COMPILER.compile(lark), len(RAW)) == [256 + MARKS.index("<tool_call>")]
    wrong = GrammarCompiler(RAW, frozenset({END}), lambda text: [32])  # one that does not give the text back
    assert allowed(wrong.compile(lark), len(RAW)) == [256 + MARKS.index("<tool_call>")]


BOMBS: dict[str, Any] = {
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "look-ahead": {"type": "string", "pattern": "^(?=a)b"},
    "http": {"$ref": "http://127.0.0.1:9/x"},
    "file": {"$ref": "file:///etc/passwd"},
    "unknown keys": {"not": {"type": "string"}},
    "a wrong type": {"type": "zork"},
    "no properties": {"type": "object", "properties": 3},
    "nothing fits": {"type": "string", "enum": [1]},
    "too long": {"enum": ["v" * 50] * 2000},
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_schema_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(BadGrammar) as caught:
        COMPILER.compile(f"start: {inline_json(BOMBS[name])}")
    assert 0 < len(str(caught.value)) <= 300
    assert (name == "too long") == (str(SCHEMA_LIMIT) in str(caught.value))


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$ref": "#/$defs/a0",
            "$defs": {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{min(i + 1, 29)}"}] * 2} for i in range(29)}
            | {"a29": {"type": "null"}},
        },
        {"enum": [f"v{i}" for i in range(6000)]},
        {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
        {"type": "string", "maxLength": 10**9},
        {"type": "string", "pattern": "^((a+)+b){1,1000}$"},
        {"type": "string", "pattern": "(.*a){100}"},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(800)}},
    ],
)  # fmt: skip
def test_a_bomb_is_a_grammar_or_a_refusal_within_the_limits(schema: dict[str, Any]) -> None:
    try:
        state = COMPILER.compile(f"start: {inline_json(schema)}")
    except BadGrammar:
        return
    for token in b'["aaaaaaaaaaaaaaa':
        if token in allowed(state, len(RAW)):
            state.accept(token)
    assert state.trouble == "" or allowed(state, len(RAW)) == []


def test_a_grammar_that_has_failed_allows_nothing_and_says_why() -> None:
    state = COMPILER.compile(f"start: {inline_json(SCHEMA)}")
    state.accept(ord("z"))
    assert state.mask() == b"" and state.trouble
    state.accept(ord("{"))
    assert state.mask() == b""


# -- model folders -----------------------------------------------------------------------------------------------


def test_every_kind_of_tokenizer_writes_what_is_asked(model: Any) -> None:
    """Byte pairs, characters with spaces as marks, byte fallback: JSON comes out of all of them."""
    prompter = model.prompter
    asks: Mapping[str, Callable[[], Ask]] = {
        "prompt": lambda: Ask(prompt="hello", shape=AnswerShape(SCHEMA)),
        "messages": lambda: Ask(messages=(Message("user", "hello"),), shape=AnswerShape(SCHEMA)),
    }
    for name, made in asks.items():
        if name == "messages" and model.name == "gpt2":
            continue
        ended = 0
        for seed in range(8):
            ask = made()
            prompt = prompter.prepare(ask)
            assert prompt.grammar is not None
            raw = prompter._tokenizer.text.raw
            closing = frozenset(token for token, each in enumerate(raw) if each.strip() in (b'"', b"}", b"]"))
            rng = random.Random(seed)
            cutter, said, over = prompter.cutter(ask), "", False
            for _ in range(300):
                can = allowed(prompt.grammar, prompter.logits_width)
                assert can
                near = [token for token in can if token in closing or token in prompter.eos_ids]
                token = rng.choice(near if near and rng.random() < 0.7 else can)
                over = token in prompter.eos_ids
                if over:
                    break
                said += cutter.push(token)
                prompt.grammar.accept(token)
            if over:
                ended += 1
                text = said + cutter.finish()
                splitter = prompter.splitter(ask, prompt)
                if splitter is not None:
                    pieces = splitter.push(text) + splitter.finish()
                    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
                validate(json.loads(text), SCHEMA)
        assert ended >= 3, f"{model.name}: {name}"


def test_what_does_not_go_with_a_grammar_is_refused(models_by_name: dict[str, Any]) -> None:
    prompter = models_by_name["qwen"].prompter
    user = (Message("user", "hello"),)
    for fields, param in (
        ({"shape": AnswerShape(), "min_tokens": 3}, "min_tokens"),
        ({"shape": AnswerShape(), "ignore_eos": True}, "ignore_eos"),
        ({"shape": AnswerShape({"type": "zork"})}, "shape"),
        ({"tool_choice": ToolChoice("required")}, "tool_choice"),
    ):
        with pytest.raises(Refusal) as caught:
            prompter.prepare(Ask(messages=user, **fields))
        assert (caught.value.code, caught.value.param) == ("invalid_value", param)
