"""Prompts drawn at random: token ids of exact length, text of exact bytes, or common words of nearly the length."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from headrace.bench.words import WORDS

PromptKind = Literal["ids", "bytes", "words"]
Turn = str | tuple[int, ...]


class Calibration(msgspec.Struct, frozen=True):
    """How a server counts our words: prompt tokens = `template_tokens` + words * `tokens_per_word`."""

    tokens_per_word: float
    template_tokens: float


def calibrate(samples: Sequence[tuple[int, int]]) -> Calibration:
    """The calibration that fits what a server's `usage` said of a few prompts: (words, prompt tokens) of each.

    The least-squares line; two lengths far apart are enough. Raises ValueError for fewer than two different lengths
    and for counts that do not grow with the prompt, which no tokenizer produces.
    """
    count = len(samples)
    if len({words for words, _ in samples}) < 2:
        raise ValueError("a calibration needs prompts of at least two different lengths")
    mean_words = sum(words for words, _ in samples) / count
    mean_tokens = sum(tokens for _, tokens in samples) / count
    spread = sum((words - mean_words) ** 2 for words, _ in samples)
    slope = sum((words - mean_words) * (tokens - mean_tokens) for words, tokens in samples) / spread
    if slope <= 0:
        raise ValueError(f"the server counted no more tokens for longer prompts: {list(samples)}")
    return Calibration(slope, max(0.0, mean_tokens - slope * mean_words))


class Prompts:
    """Draws prompts of one kind and knows how many units (ids, characters, words) make the wanted tokens.

    ids are drawn from [first_id, end_id). For text, `template_tokens` is what the server's chat template adds to
    every turn; it is taken off the text, so that the whole has the wanted length.
    """

    def __init__(
        self,
        kind: PromptKind,
        *,
        first_id: int = 0,
        end_id: int = 0,
        tokens_per_word: float = 1.0,
        template_tokens: float = 0.0,
    ) -> None:
        if kind == "ids" and not 0 <= first_id < end_id:
            raise ValueError(f"ids are drawn from first_id to below end_id: {first_id}..{end_id} is empty")
        if tokens_per_word <= 0 or template_tokens < 0:
            raise ValueError("tokens_per_word must be above 0 and template_tokens at least 0")
        self.kind = kind
        self.ids = range(first_id, end_id)
        self.tokens_per_word = tokens_per_word
        self.template_tokens = template_tokens

    def draw(self, tokens: int, rng: random.Random, shared: Turn | None = None) -> Turn:
        """A prompt of `tokens` tokens that begins with `shared`, itself made by `draw_shared`."""
        if self.kind == "ids":
            front = () if shared is None else shared
            assert isinstance(front, tuple)
            return front + tuple(rng.choices(self.ids, k=tokens - len(front)))
        text = "" if shared is None else shared
        assert isinstance(text, str)
        wanted = max(1, round((tokens - self.template_tokens) / self.tokens_per_unit))
        if self.kind == "bytes":
            own = max(1, wanted - len(text))
            return text + letters(own, rng)
        own = max(1, wanted - len(text.split()))
        return text + " ".join(rng.choices(WORDS, k=own))

    def draw_shared(self, tokens: int, rng: random.Random) -> Turn:
        """The common beginning of several prompts, `tokens` tokens long. Text ends with the space after a word."""
        if self.kind == "ids":
            return tuple(rng.choices(self.ids, k=tokens))
        units = max(1, round(tokens / self.tokens_per_unit))
        if self.kind == "bytes":
            return letters(units - 1, rng) + " "
        return " ".join(rng.choices(WORDS, k=units)) + " "

    def first(self, turn: Turn, tokens: int) -> Turn:
        """The beginning of a turn, about `tokens` tokens of it: what stands there while a person still types."""
        if isinstance(turn, tuple):
            return turn[:tokens]
        units = max(1, round((tokens - self.template_tokens) / self.tokens_per_unit))
        if self.kind == "bytes":
            return turn[:units].rstrip()
        return " ".join(turn.split()[:units])

    @property
    def tokens_per_unit(self) -> float:
        return self.tokens_per_word if self.kind == "words" else 1.0


def letters(count: int, rng: random.Random) -> str:
    """Words cut to exactly `count` ASCII characters, without a space at either end (servers may strip those)."""
    parts: list[str] = []
    length = -1
    while length < count:
        parts.append(rng.choice(WORDS))
        length += len(parts[-1]) + 1
    text = " ".join(parts)[: max(0, count)]
    return text[:-1] + "x" if text.endswith(" ") else text


def shuffled(turn: Turn, rng: random.Random) -> Turn:
    """The same ids or words in another order: as long as before, yet no prefix that a cache could know."""
    if isinstance(turn, tuple):
        return tuple(rng.sample(turn, k=len(turn)))
    parts = turn.split(" ")
    return " ".join(rng.sample(parts, k=len(parts)))
