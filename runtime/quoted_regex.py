r"""A regex over a text → one over that text as a JSON string spells it. Knows the syntax of Rust's regexes.

In a JSON string a quotation mark is `\"`, a line break `\n`, and so on for 34 characters; all others stand as they
are. So a regex is read into what matches one character, and only those parts are written otherwise. One character
has one spelling: the one that JSON writers choose.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass


class BadText(Exception):
    """A grammar or a regex cannot be taken; the text says why, in a sentence for the client."""


SPECIAL = frozenset(map(chr, (*range(32), ord('"'), ord("\\"))))  # what a JSON string spells otherwise
_PLAIN = r'[^"\\\x00-\x1f]'
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_NONE = frozenset[str]()
_WHITE = frozenset("\t\n\v\f\r")
_SHORT = {"d": _NONE, "w": _NONE, "s": _WHITE}
_POSIX = {
    **dict.fromkeys(("alnum", "alpha", "digit", "lower", "upper", "word", "xdigit"), _NONE),
    **dict.fromkeys(("graph", "print", "punct"), frozenset('"\\')),
    "ascii": SPECIAL,
    "blank": frozenset("\t"),
    "cntrl": frozenset(map(chr, range(32))),
    "space": _WHITE,
}
_HEAD = re.compile(r"\?(?:P?<[A-Za-z_]\w*>|([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)]))")
_CODE = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|[xuU]\{([0-9a-fA-F]{1,8})\}")
_CATEGORY = re.compile(r"[pP](?:\{(\^?)([A-Z][a-z]?)\}|([A-Z]))")
_CLASS = re.compile(r"\[:(\^?)([a-z]+):\]")
_TIMES = re.compile(r"[*+?]|\{([0-9]{1,6})(?:(,)([0-9]{1,6})?)?\}")
_DEPTH = 100
_SIZE = 50_000  # characters that a regex may count: what it takes to compile grows with them


@dataclass(frozen=True, slots=True)
class One:
    """One character: what the regex `plain` matches ("" for nothing), or one of `members`, spelled otherwise."""

    plain: str
    members: frozenset[str] = _NONE


@dataclass(frozen=True, slots=True)
class Row:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """`low` to `high` times (None: any number)."""

    part: Node
    low: int
    high: int | None


Node = One | Row | Choice | Times


def read_regex(pattern: str, flags: str = "") -> Node:
    """The parts of a regex. Raises BadText for what cannot be told apart here, or counts too far."""
    node = _Reader(pattern, flags).read()
    if _size(node) > _SIZE:
        raise BadText(f"the regex counts further than {_SIZE} characters")
    return node


def unchanged(node: Node) -> bool:
    """A JSON string spells none of its texts otherwise."""
    match node:
        case One():
            return not node.members
        case Times():
            return unchanged(node.part)
    return all(unchanged(part) for part in node.parts)


def as_regex(node: Node) -> str:
    """One regex."""
    match node:
        case One():
            return _one(node)
        case Row():
            return "".join(as_regex(part) for part in node.parts)
        case Choice():
            return f"(?:{'|'.join(as_regex(part) for part in node.parts)})"
    return f"(?:{as_regex(node.part)}){_count(node, '{', ',', '}')}"


def as_rule(node: Node) -> str:
    """Part of a rule in Lark, each escape in it a lexeme of its own.

    As one lexeme it could not end where an escape follows: the lexer has read its backslash before it knows that
    the escape belongs to something else."""
    if unchanged(node):
        return f"/{as_regex(node)}/"
    match node:
        case One():
            escapes = f"/{_escapes(node.members)}/"
            return f"(/{node.plain}/ | {escapes})" if node.plain else escapes
        case Choice():
            return f"({' | '.join(as_rule(part) or '//' for part in node.parts)})"
        case Times():
            part = node.part
            if isinstance(part, One) and part.plain and node.high is None:
                runs = f"(/{part.plain}+/ | /{_escapes(part.members)}/)"
                return f"({as_rule(part)}~{node.low - 1} {runs}+)" if node.low > 1 else runs + "*+"[node.low]
            return f"({as_rule(part)}){_count(node, '~', '..', '')}"
    words: list[str] = []
    run: list[Node] = []
    for each in node.parts:
        if unchanged(each):
            run.append(each)
            continue
        words += [*_lexeme(run), as_rule(each)]
        run = []
    return f"({' '.join([*words, *_lexeme(run)])})"


def _size(node: Node) -> int:
    match node:
        case One():
            return 1
        case Times():
            return _size(node.part) * max(node.low, node.high or 1)
    return sum(_size(part) for part in node.parts)


def _lexeme(run: list[Node]) -> list[str]:
    return [f"/{as_regex(Row(tuple(run)))}/"] if run else []


def quoted(text: str) -> str:
    """A text as a JSON string spells it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def literal(char: str) -> str:
    """A character in a regex, or in a class of one."""
    return char if char.isalnum() else rf"\x{{{ord(char):x}}}"


def _count(times: Times, begin: str, to: str, end: str) -> str:
    short = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((times.low, times.high))
    if short is not None:
        return short
    if times.high is None:
        assert begin == "{", "a rule says otherwise how often at least"
        return f"{{{times.low},}}"
    return f"{begin}{times.low}{to}{times.high}{end}"


def _one(node: One) -> str:
    if not node.members:
        return node.plain
    return f"(?:{node.plain}|{_escapes(node.members)})" if node.plain else f"(?:{_escapes(node.members)})"


def _escapes(members: frozenset[str]) -> str:
    """A regex for the spellings of these characters."""
    short = sorted(spelled[1] for char in members if len(spelled := quoted(char)) == 2)
    long = sorted(spelled[-2:] for char in members if len(spelled := quoted(char)) == 6)
    listed = "".join(rf"\{char}" if char in '"\\' else char for char in short)
    choices = [rf"\\[{listed}]"] if listed else []
    for row in sorted({each[0] for each in long}):
        digits = "".join(each[1] for each in long if each[0] == row)
        choices.append(rf"\\u00{row}[{digits}]")
    return "|".join(choices)


class _Reader:
    """Reads one regex from left to right."""

    def __init__(self, pattern: str, flags: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._fold = "i" in flags
        self._dot_all = "s" in flags
        self._depth = 0
        self._check_flags(flags)

    def read(self) -> Node:
        node = self._choice()
        if self._at < len(self._pattern):
            raise BadText("the regex closes a group that it has not opened")
        return node

    def _check_flags(self, flags: str) -> None:
        if set(flags) - set("isu"):
            raise BadText(f"the flags i, s and u are taken in a regex, not {flags}")

    def _next(self, text: str) -> bool:
        """Step over `text`, if it comes now."""
        found = self._pattern.startswith(text, self._at)
        if found:
            self._at += len(text)
        return found

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > _DEPTH:
            raise BadText("the regex is nested too deeply")
        fold, dot_all = self._fold, self._dot_all
        rows = [self._row()]
        while self._next("|"):
            rows.append(self._row())
        self._fold, self._dot_all = fold, dot_all
        self._depth -= 1
        return rows[0] if len(rows) == 1 else Choice(tuple(rows))

    def _row(self) -> Row:
        parts: list[Node] = []
        pattern = self._pattern
        while self._at < len(pattern) and pattern[self._at] not in "|)":
            part = self._part()
            if part is not None:
                parts.append(self._times(part))
        return Row(tuple(parts))

    def _times(self, part: Node) -> Node:
        pattern = self._pattern
        while (found := _TIMES.match(pattern, self._at)) is not None:
            self._at = found.end()
            if self._next("?"):
                raise BadText(f"lazy repeats are not taken: {found[0]}?")
            if found[1] is None:
                low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0]]
            else:
                low = int(found[1])
                high = low if found[2] is None else None if found[3] is None else int(found[3])
            part = Times(part, low, high)
        return part

    def _part(self) -> Node | None:
        """What comes now; None for what matches nothing by itself."""
        pattern = self._pattern
        char = pattern[self._at]
        if char == "(":
            return self._group()
        if char == "\\":
            return self._escape()
        if char == "[":
            start = self._at
            members = self._members()
            return self._set(pattern[start : self._at], members)
        self._at += 1
        if char == ".":
            return One(_PLAIN, SPECIAL if self._dot_all else SPECIAL - {"\n"})
        if char in "^$":
            if self._at == (1 if char == "^" else len(pattern)):
                return None  # the whole text is matched anyway
            raise BadText(f"{char} stands at the end of a regex or nowhere")
        if char in "*+?{":
            raise BadText(f"there is nothing that {char} could repeat; a brace is written \\{{")
        return One("", frozenset(char)) if char in SPECIAL else self._plain(char)

    def _plain(self, spelled: str) -> One:
        return One(f"(?i:{spelled})" if self._fold else spelled)

    def _set(self, spelled: str, members: frozenset[str]) -> One:
        return (
            self._plain(spelled) if not members else One(self._plain(f"[{spelled}&&{_PLAIN}]").plain, members)
        )

    def _group(self) -> Node | None:
        self._at += 1
        head = _HEAD.match(self._pattern, self._at)
        fold, dot_all = self._fold, self._dot_all
        if head is not None:
            self._at = head.end()
            on, off = head[1] or "", head[2] or ""
            self._check_flags(on + off)
            self._fold = (self._fold or "i" in on) and "i" not in off
            self._dot_all = (self._dot_all or "s" in on) and "s" not in off
            if head[3] == ")":
                return None  # until the end of the group around it
        elif self._next("?"):
            raise BadText("groups that look around are not taken in a regex")
        node = self._choice()
        self._fold, self._dot_all = fold, dot_all
        if not self._next(")"):
            raise BadText("the regex ends in the middle of a group")
        return node

    def _escape(self) -> Node | None:
        start = self._at
        char, members = self._escaped()
        if char is not None and char in SPECIAL:
            return One("", frozenset(char))
        spelled = self._pattern[start : self._at]
        if spelled in (r"\A", r"\z"):
            if (start == 0) if spelled == r"\A" else (self._at == len(self._pattern)):
                return None
            raise BadText(f"{spelled} stands at the end of a regex or nowhere")
        return self._set(spelled, members)

    def _escaped(self) -> tuple[str | None, frozenset[str]]:
        """What the escape at hand stands for: one character, or a set, of which those in SPECIAL."""
        pattern = self._pattern
        kind = pattern[self._at + 1 : self._at + 2]
        if not kind:
            raise BadText("the regex ends in the middle of an escape")
        if code := _CODE.match(pattern, self._at + 1):
            self._at = code.end()
            number = int(next(each for each in code.groups() if each), 16)
            if number > 0x10FFFF:
                raise BadText(f"{code[0]} is no character")
            return chr(number), _NONE
        if kind in "pP":
            found = _CATEGORY.match(pattern, self._at + 1)
            if found is None:
                raise BadText(
                    f"\\{kind}: the general categories of Unicode are known here, by one letter or two"
                )
            self._at = found.end()
            name = found[2] or found[3]
            members = frozenset(c for c in SPECIAL if unicodedata.category(c).startswith(name))
            return None, SPECIAL - members if (kind == "P") != bool(found[1]) else members
        self._at += 2
        if kind.lower() in _SHORT:
            members = _SHORT[kind.lower()]
            return None, SPECIAL - members if kind.isupper() else members
        if kind in _ESCAPED:
            return _ESCAPED[kind], _NONE
        if kind in "Az":
            return None, _NONE
        if kind.isalnum():
            raise BadText(f"\\{kind} is not taken in a regex")
        return kind, _NONE

    def _members(self) -> frozenset[str]:
        """Of the class at hand, those in SPECIAL."""
        pattern = self._pattern
        self._at += 1
        negated = self._next("^")
        found: set[str] = set()
        low: str | None = None  # the character that a hyphen may follow
        first = True
        while first or not self._next("]"):
            first = False
            if self._at >= len(pattern):
                raise BadText("the regex ends in the middle of a class")
            if pattern[self._at : self._at + 2] in ("&&", "--", "~~"):
                raise BadText("classes within classes are not taken in a regex")
            if pattern[self._at] == "-" and low is not None and pattern[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high, _ = self._member()
                if high is None:
                    raise BadText("a range of a class ends with a character")
                found |= {each for each in SPECIAL if low <= each <= high}
                low = None
                continue
            low, members = self._member()
            found |= members | ({low} & SPECIAL if low is not None else set())
        return SPECIAL - found if negated else frozenset(found)

    def _member(self) -> tuple[str | None, frozenset[str]]:
        char = self._pattern[self._at : self._at + 1]
        if char == "\\":
            return self._escaped()
        if char == "[":
            posix = _CLASS.match(self._pattern, self._at)
            if posix is None or posix[2] not in _POSIX:
                raise BadText("classes within classes are not taken in a regex")
            self._at = posix.end()
            members = _POSIX[posix[2]]
            return None, SPECIAL - members if posix[1] else members
        self._at += 1
        return char, _NONE
