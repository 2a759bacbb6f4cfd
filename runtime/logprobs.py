"""How likely the model found a token: natural logarithms of probabilities, as columns and as single answers.

The rule, the same on every engine and every protocol: the log-softmax of the model's own logits, in float32, before
temperature, penalties, bias, held stop ids and filters touch them. They say what the model thought, whatever the
client's sampling settings then chose. The most likely tokens are ranked by (logprob descending, id ascending).

Knows numbers and ids; knows no tensor, no request and no text.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MOST_TOP = 20  # ranked tokens that can be asked for
NO_LOGPROB = 1.0  # what stands for none at all: no probability has this logarithm
FLOOR = -9999.0  # what stands for minus infinity: JSON has no word for it


class TokenLogprob(NamedTuple):
    """One token with its logprob, and the most likely tokens of its place with theirs, best first.

    A token that is among `top` has the same float there, bit for bit."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    def shown(self, top: int) -> TokenLogprob:
        """The same with so many of the ranked tokens at most."""
        return self if len(self.top) <= top else self._replace(top=self.top[:top])


class Logprobs:
    """Columns for a number of places: each one's logprob, and its `width` most likely tokens."""

    __slots__ = ("ids", "tops", "values", "width")

    def __init__(
        self, width: int, values: Sequence[float], ids: Sequence[int], tops: Sequence[float]
    ) -> None:
        """ids, tops: the ranked tokens of all places behind one another, `width` for each."""
        assert len(ids) == len(tops) == width * len(values), (width, len(values), len(ids), len(tops))
        self.width = width
        self.values = array("f", values)
        self.ids = array("i", ids)
        self.tops = array("f", tops)

    def __len__(self) -> int:
        return len(self.values)

    def at(self, place: int, token: int, top: int) -> TokenLogprob:
        """The answer for `token` at `place`, with the first `top` ranked tokens."""
        assert top <= self.width
        first = place * self.width
        ranked = zip(self.ids[first : first + top], self.tops[first : first + top], strict=True)
        return TokenLogprob(
            token, _finite(self.values[place]), tuple([(rank, _finite(value)) for rank, value in ranked])
        )

    def add(self, told: TokenLogprob | None) -> None:
        """One place more, which may have none."""
        self.values.append(NO_LOGPROB if told is None else told.logprob)
        known = 0 if told is None else len(told.top)
        for rank in range(self.width):
            token, value = (0, FLOOR) if told is None or rank >= known else told.top[rank]
            self.ids.append(token)
            self.tops.append(value)

    def told(self, place: int, token: int) -> TokenLogprob | None:
        """What was added at `place`, for `token`."""
        return None if self.values[place] > 0 else self.at(place, token, self.width)

    def doubt(self, place: int) -> float:
        """The entropy of a place, in nats: of its ranked tokens, and all others as one."""
        start = place * self.width
        chances = [math.exp(value) for value in self.tops[start : start + self.width]]
        chances.append(max(0.0, 1.0 - sum(chances)))
        return -sum([chance * math.log(chance) for chance in chances if chance > 0.0])

    def append(self, other: Logprobs, first: int, count: int) -> None:
        """Take over `count` places of `other` from `first` on, as wide as these columns."""
        assert self.width <= other.width
        self.values += other.values[first : first + count]
        for place in range(first, first + count):
            start = place * other.width
            self.ids += other.ids[start : start + self.width]
            self.tops += other.tops[start : start + self.width]


def _finite(value: float) -> float:
    # A NaN too: a request whose row holds one fails by itself.
    return value if value > FLOOR else FLOOR


def no_logprobs(width: int = 0) -> Logprobs:
    """Columns of no place."""
    return Logprobs(width, (), (), ())


@dataclass(slots=True, eq=False)
class LogprobWish:
    """What one request wants to know, and what is known of its prompt so far.

    top: ranked tokens beside each token, at most MOST_TOP. next: the first prompt token whose logprob no launched
    step computes; None: those of the prompt are not wanted. `prompt` then grows with the steps that land; its first
    place is that of the first `next`. Index 0 of a prompt has no logprob: nothing stands before it. told: so many
    of the ranked tokens are for the reader; None: nothing is."""

    top: int = 0
    next: int | None = None
    told: int | None = None
    prompt: Logprobs = field(init=False)

    def __post_init__(self) -> None:
        assert 0 <= self.top <= MOST_TOP, self.top
        assert self.next is None or self.next >= 1, self.next
        self.prompt = no_logprobs(self.top)

    def reusable(self, tokens: int) -> int:
        """Of `tokens` leading tokens whose KV is at hand, how many need no computing for what is wanted: the token
        before a wanted one must be run, so that there are logits."""
        return tokens if self.next is None else min(tokens, self.next - 1)

    def take(self, start: int, count: int, prompt_len: int) -> tuple[int, int]:
        """A row is about to be launched that runs tokens [start, start + count): the first prompt token whose
        logprob it shall tell, and how many from there on. They count as launched."""
        if self.next is None or self.next >= prompt_len:
            return 0, 0
        first, end = max(self.next, start + 1), min(start + count + 1, prompt_len)
        if end <= first:
            return 0, 0
        assert first == self.next, "a wanted prompt token was passed over"
        self.next = end
        return first, end - first
