"""Structured output: what an answer must look like, as a grammar; and which tokens may come next.

Knows llguidance, schemas and the bytes of tokens; must not know tensors, requests or wire formats. The library's
own limits bound what a hostile schema can cost (fuel for its lexer, items of its parser, states, grammar size), it
opens no file and no socket, and it lets go of the interpreter while it works. So a grammar is compiled on the
threads that prepare prompts and needs no process of its own; grammars are not kept, because compiling one costs
about as much as rendering a prompt.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark

from headrace.runtime.parsers.families import AnswerForm, ToolFamily
from headrace.runtime.quoted_regex import BadText
from headrace.runtime.refusal import Refusal, shorten
from headrace.runtime.shape import AnswerShape
from headrace.runtime.text_rules import REGEX_LIMIT, text_rule
from headrace.runtime.tools import Tool

if TYPE_CHECKING:
    from headrace.runtime.interface import Ask

SCHEMA_LIMIT = 64 << 10  # characters of one schema as JSON
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
# Models that are forced to write JSON like to write white space for ever.
_WHITE = r"[\x20\x0A\x0D\x09]{0,64}"
_SPECIAL = b"\xff"  # before the name of a token that has no text: no grammar over text can reach it


class BadGrammar(Exception):
    """The grammar cannot be had; the text says why, in a sentence for the client."""


def grammar_of(
    ask: Ask, form: AnswerForm, ends: frozenset[int], compiler: Callable[[], GrammarCompiler], thinking: bool
) -> GrammarState | None:
    """What the answer to a guided `ask` must follow, from its first token on. Raises Refusal. None if it may be
    anything: where values of calls are written as they are, nothing marks for certain where a text ends.

    ends: the ids that end an answer; compiler() is asked for only if there are some.
    """
    wire = ask.guide
    required = ask.tool_choice.mode == "required"
    family = form.tools
    if ends and family is not None:
        for tool in ask.callable_tools:
            _check_text(tool, compiler)
    if ask.shape is None and not required and (family is None or family.plain):
        return None
    if required and not ask.callable_tools:
        raise Refusal("invalid_value", f"{wire}: there is no tool to call", wire)
    for name, given in (("ignore_eos", ask.ignore_eos), ("min_tokens", ask.min_tokens)):
        if given:
            other = ask.wire_name(name)
            raise Refusal("invalid_value", f"{other}: a guided answer ends where {wire} says", other)
    if not ends:
        raise Refusal("unsupported_parameter", f"{wire}: this model has no token that ends an answer", wire)
    try:
        lark = answer_lark(
            form,
            shape=ask.shape,
            tools=ask.callable_tools,
            required=required,
            parallel=ask.tool_choice.parallel,
            thinking=thinking,
        )
        return compiler().compile(lark)
    except BadGrammar as error:
        raise Refusal("invalid_value", f"{wire}: {error}", wire) from error


def answer_lark(
    form: AnswerForm,
    *,
    shape: AnswerShape | None,
    tools: Sequence[Tool],
    required: bool,
    parallel: bool,
    thinking: bool,
) -> str:
    """The grammar of one answer, in llguidance's dialect of Lark: reasoning as the model writes it, then what is
    asked for.

    required: the answer is calls of `tools`; else it has the `shape`, or is calls where there are tools. Without
    either it is any text, with calls where the model likes them.
    """
    assert required or shape is not None or tools
    rules: list[str] = []
    choices = []
    marks = form.reasoning
    if shape is not None and not required:
        choices.append("shaped")
        rules.append(f"shaped: {_shaped(shape)}")
    if tools:
        family = form.tools
        assert family is not None, "tools were refused where nobody knows how calls are written"
        rules += family.grammar(
            {tool.name: _arguments(tool, family) for tool in tools}, parallel, form.template
        )
        if required or shape is not None or not family.begin:
            choices.append("calls")
        if not (required or shape is not None):
            choices.append("free")
            rules += _free(family, parallel, "" if marks is None else marks.begin)
    body = " | ".join(choices)
    if marks is None:
        return "\n".join([f"start: {body}", *rules])
    rules.append(f"thought[suffix={json.dumps(marks.end)}]: /(.|\\n)*/")
    rules.append("break: /[ \\t\\n\\r]{0,8}/")
    begin = "thought break" if thinking else f"({json.dumps(marks.begin)} thought break)?"
    return "\n".join([f"start: {begin} body", f"body: {body}", *rules])


def _free(family: ToolFamily, parallel: bool, thought: str) -> list[str]:
    """Rules for `free`: any text, where a call, once begun, is one. thought: the mark of what is no such text."""
    begins = [r"[ \t\n\r]*" + re.escape(thought).replace("/", r"\/")] if thought else []
    if family.announced:
        begins.append(family.announced)
    text = " & ".join([r"/(.|\n)*/", *[rf"~/{each}(.|\n)*/" for each in begins]])
    rules = ["tail: TEXT", f"TEXT: {text}"]
    if not family.begin:
        return ["free: tail", *rules]
    many = "(chunk rest)* tail" if parallel else "chunk rest | tail"
    return [f"free: {many}", f"chunk[lazy]: TEXT {json.dumps(family.begin)}", *rules]


def _check_text(tool: Tool, compiler: Callable[[], GrammarCompiler]) -> None:
    """Raise Refusal for a form that cannot be had. In the whole grammar nobody could tell whose it is."""
    if tool.form is None:
        return
    place = tool.form.place
    try:
        compiler().compile(f"start: {text_rule(tool.form)}")
    except (BadGrammar, BadText) as error:
        raise Refusal("invalid_value", f"{place}: invalid grammar: {error}", place) from error


def _shaped(shape: AnswerShape) -> str:
    if shape.regex is None:
        return inline_json(ANY_OBJECT if shape.schema is None else shape.schema)
    if len(shape.regex) > REGEX_LIMIT:
        raise BadGrammar(f"the regex has {len(shape.regex)} characters; at most {REGEX_LIMIT} are taken")
    return f"/{regex_to_lark(shape.regex)}/"


def inline_json(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """A value by `schema`, for use in a rule. lenient: what of the schema cannot be enforced is not."""
    # Whatever the client wrote under this name is replaced: it steers the library.
    guided = {**schema, "x-guidance": {"whitespace_pattern": _WHITE, "lenient": lenient}}
    text = json.dumps(guided)
    if len(text) > SCHEMA_LIMIT:
        raise BadGrammar(f"a schema has {len(text)} characters; at most {SCHEMA_LIMIT} are taken")
    return f"%json {text}"


def _arguments(tool: Tool, family: ToolFamily) -> str:
    if tool.form is not None and not family.plain:
        begin, end = '{"input": "', '"}'
        return f"{json.dumps(begin)} {text_rule(tool.form)} {json.dumps(end)}"
    return inline_json(tool.parameters or ANY_OBJECT, lenient=not tool.strict)


class GrammarState:
    """Where one generation stands in its grammar. Born at the beginning, moved by `accept` alone.

    `mask` may be asked on another thread than `accept` is called on, but never at the same time: a request with a
    grammar has one step in flight, whose token is accepted when it has landed.
    """

    __slots__ = ("_matcher",)

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self) -> bytes:
        """One bit per token id, low bit first: the tokens that may come next. None if the grammar has failed."""
        bits = self._matcher.compute_bitmask()
        return b"" if self._matcher.is_error() else bits

    def accept(self, token: int) -> None:
        """`token` was generated."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    def follow(self, tokens: Sequence[int]) -> bool:
        """As if `tokens` had been generated; False, and it stands nowhere, if one of them may not come."""
        return self._matcher.try_consume_tokens(list(tokens)) == len(tokens)

    def copy(self) -> GrammarState:
        """Another one that stands where this one does."""
        return GrammarState(self._matcher.deep_copy())

    @property
    def trouble(self) -> str:
        """Why it has failed (it grew too complex), or nothing."""
        return shorten(self._matcher.get_error()) if self._matcher.is_error() else ""


class GrammarCompiler:
    """Compiles grammars for one model. Every method may run in any thread.

    raw: the bytes of every token id, b"" where a token has no text. encode: text to ids as the model's own
    tokenizer cuts it. ends: the ids that end an answer.
    """

    def __init__(
        self,
        raw: Sequence[bytes],
        ends: frozenset[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        if not ends:
            raise BadGrammar("this model has no token that ends an answer")
        self._vocabulary = _Vocabulary(raw, ends, encode)
        self._ends = sorted(ends)
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None
        self._limits = LLParserLimits(verbose_errors=False)

    def compile(self, lark: str) -> GrammarState:
        """A state at the beginning of the grammar. Raises BadGrammar."""
        source = LLMatcher.grammar_from_lark(lark)
        matcher = LLMatcher(self._tokenizer(), source, log_level=0, limits=self._limits)
        # The first mask is the dearest, and tells of schemas that no text can follow.
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise BadGrammar(_first_line(matcher.get_error()))
        return GrammarState(matcher)

    def _tokenizer(self) -> LLTokenizer:
        # Made when the first grammar comes: it takes a second for a large vocabulary, and most servers need none.
        with self._lock:
            if self._made is None:
                self._made = LLTokenizer(TokenizerWrapper(self._vocabulary), eos_token=self._ends)
            return self._made


class _Vocabulary:
    """The tokenizer as llguidance wants to see one."""

    bos_token_id = None

    def __init__(
        self, raw: Sequence[bytes], ends: frozenset[int], encode: Callable[[str], list[int]]
    ) -> None:
        self.eos_token_id = min(ends)
        self.tokens = [
            each if each and token not in ends else _SPECIAL + b"[%d]" % token
            for token, each in enumerate(raw)
        ]
        self.special_token_ids = [
            token for token, each in enumerate(self.tokens) if each.startswith(_SPECIAL)
        ]
        self._encode = encode
        self._by_bytes: dict[bytes, int] = {}
        for token, each in enumerate(self.tokens):
            self._by_bytes.setdefault(each, token)
        self._longest = max(map(len, self._by_bytes), default=1)

    def __call__(self, text: bytes | str) -> list[int]:
        """The ids of a text that the grammar forces: as the model's tokenizer cuts it where that gives this very
        text back, else the longest tokens first."""
        data = text.encode() if isinstance(text, str) else text
        try:
            ids = self._encode(data.decode())
        except UnicodeDecodeError:
            ids = []
        if b"".join([self.tokens[token] for token in ids]) == data:
            return ids
        found = []
        at = 0
        while at < len(data):
            size = next(
                (size for size in range(self._longest, 0, -1) if data[at : at + size] in self._by_bytes), 0
            )
            if not size:
                return []
            size = len(data[at : at + size])
            found.append(self._by_bytes[data[at : at + size]])
            at += size
        return found


def _first_line(error: str) -> str:
    return shorten(error.strip().partition("\n")[0]) or "it cannot be used"
