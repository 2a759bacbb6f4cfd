"""Which strings of a text are tokens of their own, and how to keep them from being that. Knows no tokenizer
file.

A tokenizer cuts its added tokens (`<|im_end|>`, `<s>`, ...) out of a text before anything else. Where a
client wrote such a string it must stay text. `shield` breaks it with a mark that no added token contains; a
normalizer, placed in front of the tokenizer's own ones, takes the mark out again, after the cutting and
before everything else. So the string reaches the model as the ordinary characters that it is, with all rules
for spaces and neighbours intact.

The mark is a pair of noncharacters, and the first of them is escaped where a text holds it, so no text is
lost.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from headrace.runtime.woven import spans_of

ESCAPE = "\ufdd0"
_MARK = ESCAPE + "\ufdd1"
_ITSELF = ESCAPE + "\ufdd2"
_FIRST_STAND_IN = 0xE000  # ESCAPE + chr(0xE000 + k) stands for the k-th added token of one character


class SpecialStrings:
    """The added tokens of one tokenizer, longest match first. Tokens of white space alone are left out.

    White space that happens to be an added token (indentation runs) means nothing but itself, so clients may
    write it.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        self.contents = tuple(
            sorted({each for each in contents if each.strip()}, key=lambda each: (-len(each), each))
        )
        assert not any(ESCAPE in each for each in self.contents)
        self._pattern = re.compile(_longest_first(self.contents)) if self.contents else None
        self._stand_ins = {
            each: ESCAPE + chr(_FIRST_STAND_IN + k)
            for k, each in enumerate(each for each in self.contents if len(each) == 1)
        }
        self._by_start: dict[str, list[str]] = {}
        for each in self.contents:
            self._by_start.setdefault(each[0], []).append(each)

    def spelled(self, text: str) -> bool:
        """True if some added token stands in `text`, or something that `shield` must escape."""
        return ESCAPE in text or (self._pattern is not None and self._pattern.search(text) is not None)

    def first(self, text: str) -> int:
        """Where the first one that `spelled` finds begins; the length of `text` if there is none."""
        hit = None if self._pattern is None else self._pattern.search(text)
        places = [text.find(ESCAPE), len(text) if hit is None else hit.start()]
        return min(place for place in places if place >= 0)

    def shield(self, text: str) -> tuple[str, int]:
        """`text` for the shielded tokenizer, and how many added tokens are left for it to find.

        An added token stays one exactly where the template wrote all of it (see Woven); in a plain string
        nowhere.
        """
        own = spans_of(text)
        text = str.__str__(text)
        parts: list[str] = []
        kept = 0
        done = 0
        at = 0
        while self._pattern is not None and (hit := self._pattern.search(text, at)) is not None:
            start = hit.start()
            longest = hit.end()
            trusted = self._trusted_end(text, start, own)
            if trusted is not None:
                kept += 1
                parts.append(_escaped(text[done:trusted]))
                if longest > trusted:  # the rest of a longer token that is only partly the template's
                    parts.append(_MARK)
                done = at = trusted
            else:
                parts.append(_escaped(text[done:start]))
                parts.append(self._stand_ins.get(text[start], text[start] + _MARK))
                done = at = start + 1
        parts.append(_escaped(text[done:]))
        return "".join(parts), kept

    def _trusted_end(self, text: str, start: int, own: tuple[tuple[int, int], ...]) -> int | None:
        place = bisect_right(own, (start, len(text))) - 1
        limit = own[place][1] if place >= 0 else 0
        for content in self._by_start[text[start]]:
            if start + len(content) <= limit and text.startswith(content, start):
                return start + len(content)
        return None

    def normalizers(self) -> list[dict[str, Any]]:
        """The tokenizer.json entries that undo `shield`, to be put in front of all others."""
        restored = [(_MARK, ""), *((stand_in, each) for each, stand_in in self._stand_ins.items())]
        restored.append((_ITSELF, ESCAPE))
        return [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in restored]


def _escaped(text: str) -> str:
    return text.replace(ESCAPE, _ITSELF)


def _longest_first(contents: Iterable[str]) -> str:
    """A pattern that matches the longest of `contents` at a place, shared beginnings tried once.

    A plain alternation of a thousand tokens would try each of them at every `<` of a hostile text.
    """
    root: dict[str, Any] = {}
    for content in contents:
        node = root
        for char in content:
            node = node.setdefault(char, {})
        node[""] = {}
    return _branch(root)


def _branch(node: dict[str, Any]) -> str:
    # A chain without branches is written as one literal: patterns must not nest as deep as a token is long.
    literal = ""
    while len(node) == 1 and "" not in node:
        ((char, node),) = node.items()
        literal += char
    choices = [re.escape(char) + _branch(child) for char, child in node.items() if char]
    if not choices:
        return re.escape(literal)
    inner = "(?:" + "|".join(choices) + ")" + ("?" if "" in node else "")
    return re.escape(literal) + inner
