r"""A client's grammar of a text → a rule for that text inside of a JSON string, where models write it.

Knows Lark as llguidance reads it; compiles nothing. Terminals are rewritten (quoted_regex.py), and what stands
between them stays. What only llguidance knows (tokens by name, grammars within, options) is no part of Lark and is
refused: it could leave the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from headrace.runtime.quoted_regex import (
    BadText,
    Node,
    as_regex,
    as_rule,
    literal,
    quoted,
    read_regex,
    unchanged,
)
from headrace.runtime.refusal import shorten
from headrace.runtime.tools import TextForm

TEXT_LIMIT = 64 << 10  # characters of one grammar
REGEX_LIMIT = 4096  # characters of a regex
_REWRITTEN_LIMIT = 1 << 20

_TOKEN = re.compile(
    r"""(?P<newline>(?:[ \t]*(?:(?://|\#)[^\n]*)?\r?\n)+)
    |(?P<skip>[ \t]+|(?://|\#)[^\n]*\Z)
    |(?P<range>"(?:\\.|[^"\\\n])+"[ \t]*\.\.[ \t]*"(?:\\.|[^"\\\n])+")
    |(?P<string>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?![*/])(?:\\.|[^/\\\n])+/[imslux]*)
    |(?P<foreign><[^<>\s]+>|@\w*|%(?!import\b|ignore\b)\w*)
    |(?P<word>[!?]*[A-Za-z_]\w*|%import|%ignore)
    |(?P<sign>->|\.\.|[0-9]+|[][(){}|:.,+*?~!-])""",
    re.VERBOSE,
)
_TERMINAL = frozenset({"string", "range", "regex"})
# Of the terminals that can be imported, those whose texts a JSON string spells otherwise.
_IMPORTED = {
    "ESCAPED_STRING": r"\"([^\"\\]|\\.)*\"",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(\r?\n)+",
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"\/\/[^\n]*",
    "C_COMMENT": r"\/\*([^*]|\*+[^*\/])*\*+\/",
    "SQL_COMMENT": r"--[^\n]*",
}
# Names that no client's can be: Lark has no hyphen in them.
_START, _IGNORED, _OWN = "hr-start", "hr-ignored", "hr-"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


@dataclass(slots=True)
class _Statement:
    """One definition or directive. name: what it defines; "" for a directive."""

    tokens: list[_Token] = field(default_factory=list)

    @property
    def name(self) -> str:
        first = self.tokens[0]
        return "" if first.text.startswith("%") else first.text.lstrip("!?")

    @property
    def body(self) -> list[_Token]:
        """What stands behind the colon of a definition, or behind the word of a directive."""
        at = next((i for i, token in enumerate(self.tokens) if token.text == ":"), 0)
        return self.tokens[at + 1 :]


def text_rule(form: TextForm) -> str:
    """What the text must follow between the quotation marks, for use in a rule. Raises BadText."""
    limit = REGEX_LIMIT if form.syntax == "regex" else TEXT_LIMIT
    if len(form.definition) > limit:
        raise BadText(f"it has {len(form.definition)} characters; at most {limit} are taken")
    if form.syntax == "regex":
        pattern = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", form.definition, flags=re.DOTALL)
        pattern = as_regex(read_regex(pattern))
        rule = f"/{pattern}/" if pattern else '""'
    else:
        rule = f"%lark {{\n{_Escaped(list(_statements(form.definition))).text}\n}}"
    if len(rule) > _REWRITTEN_LIMIT:
        raise BadText("it is too large")
    return rule


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            line = text.count("\n", 0, at) + 1
            raise BadText(f"line {line} is not understood: {shorten(text[at:].partition(chr(10))[0], 40)}")
        assert found.lastgroup is not None and found.end() > at
        at = found.end()
        if found.lastgroup == "foreign":
            raise BadText(f"{shorten(found[0], 40)} is no part of Lark")
        if found.lastgroup != "skip":
            yield _Token(found.lastgroup, found[0])


def _statements(text: str) -> Iterator[_Statement]:
    """One after the other. A rule goes on with a line that begins with `|`, whatever comments are between."""
    statement = _Statement()
    ended = False
    for token in _tokens(text):
        if token.kind == "newline":
            ended = True
            continue
        if ended and token.text != "|" and statement.tokens:
            yield statement
            statement = _Statement()
        ended = False
        tokens = statement.tokens
        if len(tokens) == 1 and tokens[0].kind == "word" and token.text in ("[", "{") and statement.name:
            raise BadText(f"{shorten(tokens[0].text, 40)}: options and templates of rules are not taken")
        tokens.append(token)
    if statement.tokens:
        yield statement


class _Escaped:
    """The grammar of the same texts as a JSON string spells them.

    A terminal whose texts are all spelled as they are stays a terminal. Others become rules of several lexemes, so
    what is ignored can no longer be left to the library, which would ignore it inside of them too: it is written
    behind every terminal."""

    def __init__(self, statements: list[_Statement]) -> None:
        self._statements = [each for statement in statements for each in _defined(statement)]
        self._rules = self._broken()
        ignored = [each for each in self._statements if each.tokens[0].text == "%ignore"]
        self._spread = bool(ignored) and (
            bool(self._rules) or any(not _stays(token) for each in self._statements for token in each.body)
        )
        lines = []
        for statement in self._statements:
            if self._spread and statement in ignored:
                continue
            lines.append(self._line(statement))
        if self._spread:
            choices = " | ".join(self._laid(each.body, inside=True) for each in ignored)
            lines += [f"start: {_IGNORED} {_START}", f"{_IGNORED}: ({choices})*"]
        self.text = "\n".join(lines)

    def _broken(self) -> set[str]:
        """The names of terminals that become rules: a part is rewritten, or has become one."""
        found: set[str] = set()
        more = True
        while more:
            more = False
            for statement in self._statements:
                name = statement.name
                if not _is_terminal(name) or name in found:
                    continue
                if any(not _stays(token) or token.text in found for token in statement.body):
                    found.add(name)
                    more = True
        return found

    def _line(self, statement: _Statement) -> str:
        name = statement.name
        if not name:
            return f"{statement.tokens[0].text} {self._laid(statement.body, inside=True)}"
        head = " ".join(self._word(token.text) for token in statement.tokens[: -len(statement.body) or None])
        return f"{head} {self._laid(statement.body, inside=_is_terminal(name))}"

    def _laid(self, body: list[_Token], *, inside: bool) -> str:
        """inside: of a terminal, where nothing is ignored."""
        words = []
        alias = False
        for token in body:
            if token.kind in _TERMINAL:
                word = _terminal(token)
            elif token.kind == "word" and not alias:
                word = self._word(token.text)
            else:
                word = token.text
            if (
                self._spread
                and not inside
                and not alias
                and (token.kind in _TERMINAL or _is_terminal(token.text))
            ):
                word = f"({word} {_IGNORED})"
            alias = token.text == "->"
            words.append(word)
        return " ".join(words)

    def _word(self, word: str) -> str:
        marks, name = re.match(r"([!?]*)(.*)", word).groups()  # type: ignore[union-attr]
        if name in self._rules:
            return _OWN + name.lower()
        return marks + _START if self._spread and name == "start" else word


def _is_terminal(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


@lru_cache(maxsize=256)
def _stays(token: _Token) -> bool:
    """As a terminal it can stay one: a string has one spelling, and a regex may have none that differs."""
    if token.kind == "range":
        return unchanged(_range(token.text))
    return token.kind != "regex" or unchanged(_regex(token.text))


@lru_cache(maxsize=256)  # most grammars say the same ones again and again
def _terminal(token: _Token) -> str:
    """A string, a range or a regex as it is spelled in a JSON string."""
    if token.kind == "string":
        return _string(token.text)
    node = _range(token.text) if token.kind == "range" else _regex(token.text)
    return token.text if unchanged(node) else as_rule(node)


def _string(token: str) -> str:
    spelled, fold = (token[:-1], True) if token.endswith("i") else (token, False)
    text = _spelled(spelled)
    if quoted(text) == text:
        return token
    if fold:  # the letters of an escape have one case
        return f"/{as_regex(read_regex(''.join(map(literal, text)), 'i'))}/"
    return json.dumps(quoted(text), ensure_ascii=False)


def _range(token: str) -> Node:
    first, last = [_spelled(each) for each in re.findall(r'"(?:\\.|[^"\\])+"', token)]
    if len(first) != 1 or len(last) != 1 or first > last:
        raise BadText(f"{shorten(token, 40)} is no range of characters")
    return read_regex(f"[{literal(first)}-{literal(last)}]")


def _regex(token: str) -> Node:
    pattern, _, flags = token[1:].rpartition("/")
    if len(pattern) > REGEX_LIMIT:
        raise BadText(f"a regex has {len(pattern)} characters; at most {REGEX_LIMIT} are taken")
    return read_regex(pattern, flags)


def _defined(statement: _Statement) -> Iterator[_Statement]:
    """An import as definitions, where the library's own would not fit into a JSON string."""
    if statement.tokens[0].text != "%import":
        yield statement
        return
    written = " ".join(token.text for token in statement.tokens)
    one = re.fullmatch(r"%import common \. (\w+)(?: -> (\w+))?", written)
    many = re.fullmatch(r"%import common \( (\w+(?: , \w+)*) \)", written)
    if one is not None:
        pairs = [(one[1], one[2] or one[1])]
    elif many is not None:
        pairs = [(name, name) for name in many[1].split(" , ")]
    else:
        raise BadText(f"{shorten(written, 40)}: only terminals of common can be imported")
    for name, own in pairs:
        if name in _IMPORTED:
            regex = _Token("regex", f"/{_IMPORTED[name]}/")
            yield _Statement([_Token("word", own), _Token("sign", ":"), regex])
        else:
            alias = [] if name == own else [_Token("sign", "->"), _Token("sign", own)]
            yield _Statement([_Token("word", "%import"), _Token("sign", f"common.{name}"), *alias])


def _spelled(token: str) -> str:
    try:
        return str(json.loads(re.sub(r"(\\\\)|\\x([0-9a-fA-F]{2})", lambda f: f[1] or rf"\u00{f[2]}", token)))
    except ValueError:
        raise BadText(f"the string {shorten(token, 40)} is not understood") from None
