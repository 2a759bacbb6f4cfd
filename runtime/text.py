"""Tokens in, text out: bytes are collected until they are characters, characters until they cannot begin a
stop string.

Knows the bytes of each token and nothing of files, requests or models. The text of a sequence is defined here
once, for whole answers and for streams: the bytes of all tokens (special ones have none) are joined, decoded
as UTF-8 with U+FFFD for each maximal invalid part, and leading spaces that the tokenizer itself put in front
are taken off.

Of several stop strings the one that is complete first ends the text; if two are complete with the same
character, the longer one, because it begins earlier. This does not depend on how the text was split into
tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeadingSpace:
    """What a decoder takes off the beginning of a text.

    strip: up to `strip` characters `mark` at the very start. bare_first: the first token that is not special
    loses all its spaces (how a Metaspace decoder undoes its own prefix).
    """

    mark: str = " "
    strip: int = 0
    bare_first: bool = False


class TokenText:
    """The bytes of every token id of one tokenizer; b"" for special tokens and ids without a token.

    `firsts` holds what differs when a token comes first (see LeadingSpace.bare_first).
    """

    __slots__ = ("firsts", "leading", "pieces", "raw")

    def __init__(
        self,
        raw: Sequence[bytes],
        leading: LeadingSpace = LeadingSpace(),
        firsts: dict[int, bytes] | None = None,
    ) -> None:
        self.raw = tuple(raw)
        self.leading = leading
        self.firsts = firsts or {}
        self.pieces: tuple[str | None, ...] = tuple(_whole(each) for each in self.raw)

    def decode(self, ids: Iterable[int], continues: bool = False) -> str:
        """The text of a whole sequence. continues: text stands before it, so leading spaces belong to it."""
        cutter = Cutter(self, continues=continues)
        return "".join([cutter.push(token) for token in ids]) + cutter.finish()


def _whole(raw: bytes) -> str | None:
    """The text of a token that is whole characters by itself, else None."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


class StopString:
    """One stop string and its failure table: `after[k]` is the longest shorter prefix ending where k ends."""

    __slots__ = ("after", "text")

    def __init__(self, text: str) -> None:
        assert text, "an empty stop string would stop everything"
        self.text = text
        self.after = [0, 0]
        k = 0
        for char in text[1:]:
            while k and text[k] != char:
                k = self.after[k]
            if text[k] == char:
                k += 1
            self.after.append(k)


class Cutter:
    """A TextCutter: one generation's text, cut at its first stop string.

    `matched` is that string once it was found. The text pushed out so far is final: it never contains part of
    a character or of a possible stop string.
    """

    __slots__ = (
        "_bytes", "_first", "_held", "_pieces", "_plain", "_progress", "_quiet", "_starts", "_stops", "_strip",
        "_text", "matched",
    )  # fmt: skip

    def __init__(
        self, text: TokenText, stops: Sequence[str] = (), continues: bool = False, quiet: int = 0
    ) -> None:
        """quiet: the first so many tokens hold no stop string, whatever they spell (min_tokens)."""
        self.matched: str | None = None
        self._text = text
        self._bytes = b""  # the beginning of a character
        self._stops = tuple(StopString(stop) for stop in stops)
        self._starts = frozenset(stop[0] for stop in stops)
        self._progress = [0] * len(self._stops)  # how much of each stop string the text ends with
        self._quiet = quiet
        self._held = ""  # text that may turn out to begin a stop string
        self._strip = 0 if continues else text.leading.strip
        self._first = not continues and text.leading.bare_first
        self._pieces = text.pieces
        self._plain = self._is_plain()

    def push(self, token: int) -> str:
        """Text that became certain with this token (possibly empty)."""
        if self._plain and 0 <= token < len(self._pieces):
            piece = self._pieces[token]
            if piece is not None:
                return piece
        text = self._push(token)
        self._plain = self._is_plain()
        return text

    def _is_plain(self) -> bool:
        """Nothing is held back and nothing is looked for: the next token is told as it is."""
        return not (self._bytes or self._stops or self._first or self._strip or self._quiet)

    def _push(self, token: int) -> str:
        if self._quiet:
            self._quiet -= 1
            stops, self._stops = self._stops, ()
            text = self._read(token)
            self._stops = stops
            return text
        return self._read(token)

    def _read(self, token: int) -> str:
        if not 0 <= token < len(self._pieces):
            return ""
        if not self._bytes and not self._first and not self._strip:
            piece = self._pieces[token]
            if piece is not None:
                return self._cut(piece)
        return self._collect(token)

    def finish(self) -> str:
        """What was held back; nothing follows. Half a character becomes U+FFFD. Empty after a match."""
        rest = self._cut(self._begin(self._bytes.decode(errors="replace")))
        self._bytes = b""
        if self.matched is None:
            rest, self._held = rest + self._held, ""
        return rest

    def _collect(self, token: int) -> str:
        source = self._text
        raw = source.raw[token]
        if self._first and raw:
            self._first = False
            raw = source.firsts.get(token, raw)
        data = self._bytes + raw
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._bytes = data[used:]
        return self._cut(self._begin(text))

    def _begin(self, text: str) -> str:
        """`text` without the leading spaces that are still to be taken off."""
        if self._strip and text:
            mark = self._text.leading.mark
            while self._strip and text.startswith(mark):
                text = text[len(mark) :]
                self._strip -= 1
            if text:
                self._strip = 0
        return text

    def _cut(self, text: str) -> str:
        """The part of everything held and `text` that cannot belong to a stop string."""
        if self.matched is not None:
            return ""
        if not self._stops or (not self._held and self._starts.isdisjoint(text)):
            return text
        progress = self._progress
        whole = self._held + text
        before = len(self._held)
        for at, char in enumerate(text, before + 1):
            found = ""
            for index, stop in enumerate(self._stops):
                k = progress[index]
                while k and stop.text[k] != char:
                    k = stop.after[k]
                if stop.text[k] == char:
                    k += 1
                progress[index] = k
                if k == len(stop.text) and k > len(found):
                    found = stop.text
            if found:
                self.matched = found
                self._held = ""
                return whole[: at - len(found)]
        keep = len(whole) - max(progress)
        self._held = whole[keep:]
        return whole[:keep]
