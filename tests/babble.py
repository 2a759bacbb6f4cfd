"""A fake model that says what text is hard to cut: characters of several bytes, broken bytes, an end of its own.
And the oracle: what it says to one prompt when nobody else is there."""

from __future__ import annotations

import codecs
import zlib
from dataclasses import dataclass
from functools import cache

from fake_engine import replay

from headrace.runtime.request import SamplingParams

END = 0  # a special token: it ends an answer and has no text
WIDE = tuple(tuple(character.encode()) for character in ("é", "€", "🦀"))  # no two begin with the same byte
STOPS = ("ab", "b€", "🦀a", "cad", " é", "ddd")
DRAWN = (*b"abcdabcdabcd    abcdabcd  ", *(wide[0] for wide in WIDE * 4), 0xFF, END)


def babble(tokens: list[int], seed: int, width: int) -> int:
    """A `choose` for FakeEngine: the rest of a character that was begun, else a hash of all tokens and the seed."""
    for wide in WIDE:
        for size in range(1, len(wide)):
            if tuple(tokens[-size:]) == wide[:size]:
                return wide[size]
    return DRAWN[zlib.crc32(bytes(tokens), seed & 0xFFFFFFFF) % len(DRAWN)]


@dataclass(frozen=True)
class Want:
    """One answer that somebody asks for."""

    prompt: str
    seed: int
    limit: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alone:
    """The whole answer: its text, all its tokens, and why it ended."""

    text: str
    tokens: tuple[int, ...]
    why: str


@cache
def alone(want: Want) -> Alone:
    """What the model says to `want` by itself: the text ends before the stop string that is whole first."""
    prompt = list(want.prompt.encode())
    params = SamplingParams(seed=want.seed, stop_ids=frozenset({END}))
    tokens = tuple(replay(prompt, want.limit, params, 256, babble))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for count, token in enumerate(tokens, 1):
        if token == END:
            return Alone(text + decoder.decode(b"", True), tokens[:count], "stop")
        text += decoder.decode(bytes([token]))
        found = [text.index(stop) for stop in want.stop if stop in text]
        if found:
            return Alone(text[: min(found)], tokens[:count], "stop")
    return Alone(text + decoder.decode(b"", True), tokens, "length")


def certain(want: Want, made: int) -> str:
    """What was told of an answer that was cut after `made` tokens: neither half a character nor what could have
    begun a stop string."""
    tokens = alone(want).tokens[:made]
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(tokens))
    held = [size for stop in want.stop for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(held, default=0)]
