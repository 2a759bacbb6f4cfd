"""Grammars that clients give for the text of a tool: inside of a call they allow what they say of the text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

import pytest
from llguidance import regex_to_lark

from headrace.runtime.grammar import BadGrammar, GrammarCompiler, GrammarState, answer_lark, grammar_of
from headrace.runtime.interface import Ask, Message, TextForm, Tool, ToolChoice
from headrace.runtime.parsers.families import REASONING, TOOLS, AnswerForm
from headrace.runtime.parsers.pieces import CallArguments, CallBegin, CallEnd, TextPiece, joined
from headrace.runtime.parsers.text_input import TextInput
from headrace.runtime.quoted_regex import BadText
from headrace.runtime.refusal import Refusal
from headrace.runtime.text_rules import REGEX_LIMIT, TEXT_LIMIT, text_rule

END = 0xFF  # a byte that no UTF-8 holds
RAW = [bytes([each]) for each in range(256)]
COMPILER = GrammarCompiler(RAW, frozenset({END}), lambda text: list(text.encode()))
PATCH = r"""
// How patches of a well-known coding agent look, in short.
start: begin hunk+ end
begin: "*** Begin Patch" LF
end: "*** End Patch" LF?

hunk: add | delete  // what may be done
    // a comment of its own
    | change
add: "*** Add File: " name LF ("+" /(.*)/ LF)+ -> lines
delete: "*** Delete File: " name LF
change: "*** Update File: " name LF ("@@" LF)? (("+" | "-" | " ") /(.*)/ LF)+
name: /(.+)/
%import common.LF
"""
SUM = r"""
?start: expr
expr: term (SP "+" SP term)*
term: INT | "(" expr ")" | STRING
SP: " "
STRING: "\"" (/[^"\\\n]/ | "\\" ("n" | "\""))* "\""
%import common.INT
"""
SPACED = """
start: pair ("," pair)*
pair: CNAME "=" ESCAPED_STRING
%import common (CNAME, ESCAPED_STRING, WS)
%ignore WS
"""
SQL = """
start: "select"i FIELDS "from"i NAME ";"
FIELDS: NAME ("," NAME)*
NAME: "a".."z" ("a".."z" | "_")*
%import common.WS -> BLANKS
%import common.SQL_COMMENT
%ignore BLANKS
%ignore SQL_COMMENT
"""
LARKS: list[tuple[str, list[str], list[str]]] = [
    (
        PATCH,
        [
            '*** Begin Patch\n*** Add File: a"b\\c\n+x = "\\n"\n+\n*** End Patch\n',
            "*** Begin Patch\n*** Delete File: \u00fc\n*** Update File: b\n@@\n a\n-\tb\n+c\n*** End Patch",
        ],
        ["", "*** Begin Patch\n*** End Patch", "*** Begin Patch\n*** Add File: a\nx\n*** End Patch"],
    ),
    (SUM, ["1", '12 + (3 + "a\\"b")'], ["1+2", "(1", '"a\nb"', "1 + ", '"a\\b"']),
    (
        SPACED,
        ['a="x"', 'a = "x\\"y" ,\n\tb="" ', ' a="1"'],
        ["a", 'a="x" b="y"', 'a b="x"', "a='x'"],
    ),
    (
        SQL,
        ["select a,b_c from t;", "SELECT a\n\tFrom t -- it\n;"],
        ["select a, from t;", "select from t;", "select a from\u00e9;"],
    ),
    ('start: "a"~2..3 ["b"] /c/i\n', ["aa", "aaC", "aaabc"][1:], ["aa", "abc", "aaaac"]),
    ('!start: _x | start "y"\n_x: "\\x22" -> quote', ['"', '"yy'], ["y", '\\"']),
    ('start: /[^a]{2,3}/ "\\u0061"\n', ["\n\\a", '""\x01a'], ["ba", "bbbba"]),
    ('start: ("\\n" | /[ -~]/)+\n', ["a\n\nb", "~"], ["", "\t"]),
]
REGEXES: list[tuple[str, list[str], list[str]]] = [
    (r'\d{4}-\d\d"?', ["2026-11", '2026-11"'], ["2026-1", "x"]),
    (r".*", ["", 'a"\\\u00e9\x02'], ["a\nb"]),
    (r"(?s)a.+|[^b]", ["a\n\n", "\n", "c"], ["b", "xx"]),
    (r'^(?:"[^"\n]*"(,"[^"\n]*")*)$', ['"a"', '"a","\\"'], ['"a', '"\n"', 'a"']),
    (r"(?i:se\\t) x/y\/z", ["SE\\T x/y/z", "se\\t x/y/z"], ["se\\t X/y/z"]),
    (r"[\s\w-]+", ["a \t-\n"], ['"', ""]),
    (r"[]\]\[\"]{1,4}", ["][", '"]"'], ["\\"]),
    (r"[^\x00-\x20\u{22}]+\x22", ['a\\"'], ['"', "a b"]),
    (r"\p{P}+\P{L}", ['"\\1', '!"'], ["ab", "!a"]),
    (r"[[:punct:]\d&]+", ['"\\1&'], ["a"]),
    (r"(a|b\n){2,}", ["aa", "ab\nb\n"], ["a", "abb"]),
    (r"", [""], ["a"]),
]
FORMS = [TextForm("lark", grammar) for grammar, *_ in LARKS] + [
    TextForm("regex", each) for each, *_ in REGEXES
]


def follows(state: GrammarState, text: str) -> bool:
    """The grammar allows exactly this text."""
    for byte in (*text.encode(), END):
        mask = state.mask()
        assert mask or state.trouble
        if not mask or not mask[byte // 8] >> byte % 8 & 1:
            return False
        state.accept(byte)
    return True


def compiled(form: TextForm, *, escaped: bool) -> GrammarState:
    """The grammar of the text as a JSON string, or the library's own reading of the text itself."""
    if escaped:
        return COMPILER.compile(f'start: "\\"" text "\\""\ntext: {text_rule(form)}')
    if form.syntax == "regex":
        return COMPILER.compile(
            f"start: /{regex_to_lark(form.definition)}/" if form.definition else 'start: ""'
        )
    return COMPILER.compile(re.sub(r"(?m)^\s*//.*\n", "", form.definition))


@pytest.mark.parametrize(("syntax", "definition", "good", "bad"), [
    *[("lark", *each) for each in LARKS], *[("regex", *each) for each in REGEXES],
])  # fmt: skip
def test_a_text_and_its_json_are_judged_alike(
    syntax: str, definition: str, good: list[str], bad: list[str]
) -> None:
    form = TextForm(syntax, definition)  # type: ignore[arg-type]
    for texts, expected in ((good, True), (bad, False)):
        for text in texts:
            spelled = json.dumps(text, ensure_ascii=False)
            assert follows(compiled(form, escaped=True), spelled) is expected, text
            if text != ' a="1"':  # before the first terminal the library itself ignores nothing
                assert follows(compiled(form, escaped=False), text) is expected, text


def walk(state: GrammarState, rng: random.Random, steps: int = 300) -> tuple[str, bool]:
    """A random text that the grammar allows, in favour of what ends it; and whether it came to its end."""
    said = bytearray()
    for _ in range(steps):
        mask = state.mask()
        can = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        assert can, state.trouble
        near = [byte for byte in can if byte in (END, *b'"n\\+ *')]
        byte = rng.choice(near if near and rng.random() < 0.6 else can)
        if byte == END:
            return said.decode(), True
        state.accept(byte)
        said.append(byte)
    return said.decode(errors="ignore"), False


def test_whatever_may_be_written_into_the_json_is_a_text_of_the_grammar() -> None:
    ended = 0
    for form in FORMS:
        for seed in range(6):
            spelled, over = walk(compiled(form, escaped=True), random.Random(seed))
            if not over:
                continue
            ended += 1
            text = json.loads(spelled)
            if form.syntax == "lark":
                assert follows(compiled(form, escaped=False), text) or "%ignore" in form.definition, text
            elif (
                "\\p" not in form.definition and "[[" not in form.definition and "\\u" not in form.definition
            ):
                assert re.fullmatch(form.definition.replace(r"\"", '"'), text), (form.definition, text)
    assert ended > len(FORMS) * 2


@pytest.mark.parametrize("family", ["hermes", "llama3", "mistral", "[ARGS]"])
@pytest.mark.parametrize("required", [True, False])
def test_a_tools_text_follows_its_grammar_in_every_way_of_calling(family: str, required: bool) -> None:
    form = AnswerForm(TOOLS["mistral" if family == "[ARGS]" else family], None, family)
    tools = (Tool("patch", form=TextForm("lark", PATCH)), Tool("clock"))
    text = LARKS[0][1][0]

    def spelled(text: str) -> str:
        call = json.dumps({"input": text}, ensure_ascii=False)
        key = "parameters" if family == "llama3" else "arguments"
        spoken = f'{{"name": "patch", "{key}": {call}}}'
        return {
            "hermes": f"<tool_call>\n{spoken}\n</tool_call>",
            "llama3": spoken,
            "mistral": f"[TOOL_CALLS] [{spoken}]",
            "[ARGS]": f"[TOOL_CALLS]patch[ARGS]{call}",
        }[family]

    lark = answer_lark(form, shape=None, tools=tools, required=required, parallel=True, thinking=False)
    assert follows(COMPILER.compile(lark), spelled(text))
    assert not follows(COMPILER.compile(lark), spelled("*** Begin Patch\n*** End Patch"))
    splitter = form.splitter({"patch": None, "clock": None})
    assert splitter is not None
    pieces = joined(splitter.push(spelled(text)) + splitter.finish())
    read = TextInput()
    (arguments,) = [piece.text for piece in pieces if isinstance(piece, CallArguments)]
    assert read.push(arguments) + read.finish() == text
    free = [
        "", "Hello.", "a <tool", '["x"]', "{}", '{"nam": 1}', "<p>", "a\n\n \u00e9", '"name"', "[TOOL]",
    ]  # fmt: skip
    for said in free:
        assert follows(COMPILER.compile(lark), said) is not required, said
    if not required and family != "llama3":
        assert follows(COMPILER.compile(lark), f"Let me.\n\n{spelled(text)}\n{spelled(text)} Done.")
        assert not follows(COMPILER.compile(lark), f"Let me.\n\n{spelled('x')}")
        single = answer_lark(form, shape=None, tools=tools, required=False, parallel=False, thinking=False)
        assert follows(COMPILER.compile(single), f"Let me. {spelled(text)}")
        assert not follows(COMPILER.compile(single), f"{spelled(text)} more")


def test_a_call_may_be_thought_of_without_being_one() -> None:
    form = AnswerForm(TOOLS["hermes"], REASONING["think"])
    tools = (Tool("patch", form=TextForm("regex", "a+")),)
    call = '<tool_call>\n{"name": "patch", "arguments": {"input": "aa"}}\n</tool_call>'
    for thinking in (False, True):
        lark = answer_lark(form, shape=None, tools=tools, required=False, parallel=True, thinking=thinking)
        begin = "" if thinking else "<think>"
        for text, good in (
            (f"{begin}<tool_call>x</think>\n\nHi {call}", True),
            (f"{begin}hm</think>{call}", True),
            (f"{begin}hm</think>\n\n<tool_call>x", False),
            (f"{begin}never ended", False),
            (call, not thinking),
            ("Hi", not thinking),
        ):
            assert follows(COMPILER.compile(lark), text) is good, text


def test_a_model_that_wanders_still_writes_whole_calls() -> None:
    """Any walk through free text: what has the beginning of a call is a call, and its text follows the grammar."""
    form = AnswerForm(TOOLS["hermes"])
    tools = (Tool("sum", form=TextForm("lark", SUM)),)
    lark = answer_lark(form, shape=None, tools=tools, required=False, parallel=True, thinking=False)
    called = 0
    for seed in range(12):
        state = COMPILER.compile(lark)
        for byte in b"So: <tool_call>":
            state.accept(byte)
        text, over = walk(state, random.Random(seed), 200)
        splitter = form.splitter({"sum": None})
        assert splitter is not None
        pieces = joined(splitter.push(f"So: <tool_call>{text}") + (splitter.finish() if over else []))
        if any(isinstance(piece, CallEnd) for piece in pieces):
            called += 1
            assert isinstance(pieces[0], TextPiece) and isinstance(pieces[1], CallBegin)
            arguments = next(piece.text for piece in pieces if isinstance(piece, CallArguments))
            assert follows(compiled(TextForm("lark", SUM), escaped=False), json.loads(arguments)["input"])
    assert called > 3


WRONG = [
    ("lark", "", "no start rule"),
    ("lark", 'begin: "a"', "no start rule"),
    ("lark", "start: other", "unknown name"),
    ("lark", 'start: "a', "line 1 is not understood"),
    ("lark", 'start: "a"\n\n`', "line 3 is not understood"),
    ("lark", "start: <|im_end|>", "no part of Lark"),
    ("lark", "start: <[1-3]>", "no part of Lark"),
    ("lark", "start: @other", "no part of Lark"),
    ("lark", "start: %json {}", "no part of Lark"),
    ("lark", 'start: %lark { start: "a" }', "no part of Lark"),
    ("lark", '%llguidance {"no_forcing": true}\nstart: "a"', "no part of Lark"),
    ("lark", 'start[lazy]: "a"', "options and templates"),
    ("lark", 'start: a{"x"}\na{y}: y', "options and templates"),
    ("lark", "start: /(?=a)a/", ""),
    ("lark", "start: /(/", ""),
    ("lark", 'start: "z".."a"', ""),
    ("lark", "%import python.NAME\nstart: NAME", ""),
    ("lark", "%import common.ZORK\nstart: ZORK", ""),
    ("lark", "A: B\nB: A\nstart: A", "circular"),
    ("lark", f'start: "{"a" * TEXT_LIMIT}"', "at most"),
    ("regex", "a" * (REGEX_LIMIT + 1), "at most"),
    ("regex", "(", ""),
    ("regex", "a)", ""),
    ("regex", "[a", ""),
    ("regex", "a\\", ""),
    ("regex", "*", ""),
    ("regex", "(a)\\1", ""),
    ("regex", "\\ba", ""),
    ("regex", "(?<!a)b", ""),
    ("regex", "(" * 300 + ")" * 300, "too deeply"),
    ("lark", f"start: /{'a' * 5000}/", "at most"),
    ("lark", "start: " + "/./ " * 16000, "too large"),
    ("regex", "((a{1000}){1000}){1000}", "counts further"),
    ("regex", "(.{0,900}){900}", "counts further"),
    ("lark", "start: /((a{1000}){1000}){1000}/", "counts further"),
]


@pytest.mark.parametrize(("syntax", "definition", "why"), WRONG)
def test_a_wrong_grammar_is_named(syntax: str, definition: str, why: str) -> None:
    form = TextForm(syntax, definition, "tools[3].format.definition")  # type: ignore[arg-type]
    ask = Ask(messages=(Message("user", "x"),), tools=(Tool("clock"), Tool("patch", form=form)))
    for family in ("hermes", "qwen_coder"):
        with pytest.raises(Refusal) as refused:
            grammar_of(ask, AnswerForm(TOOLS[family]), frozenset({END}), lambda: COMPILER, False)
        error = refused.value
        assert (error.code, error.param) == ("invalid_value", "tools[3].format.definition")
        assert error.message.startswith("tools[3].format.definition: invalid grammar: ")
        assert why in error.message and len(error.message) < 400


def test_where_values_are_plain_text_a_grammar_is_checked_and_not_enforced() -> None:
    form = TextForm("regex", "a+")
    ask = Ask(messages=(Message("user", "x"),), tools=(Tool("patch", form=form),))
    compile_: Callable[[], GrammarCompiler] = lambda: COMPILER  # noqa: E731
    assert ask.guided
    assert grammar_of(ask, AnswerForm(TOOLS["qwen_coder"]), frozenset({END}), compile_, False) is None
    assert grammar_of(ask, AnswerForm(TOOLS["hermes"]), frozenset({END}), compile_, False) is not None
    none = Ask(messages=ask.messages, tools=ask.tools, tool_choice=ToolChoice("none"))
    assert not none.guided, "what may not be called guides nothing"
    with pytest.raises(Refusal) as refused:
        grammar_of(
            Ask(messages=ask.messages, tools=ask.tools, ignore_eos=True),
            AnswerForm(TOOLS["hermes"]),
            frozenset({END}),
            compile_,
            False,
        )
    assert refused.value.param == "ignore_eos" and "where tools says" in refused.value.message


def test_errors_of_both_kinds_say_what_is_wrong() -> None:
    with pytest.raises(BadText):
        text_rule(TextForm("regex", "["))
    with pytest.raises(BadGrammar):
        COMPILER.compile(f"start: {text_rule(TextForm('lark', 'start: nothing'))}")
