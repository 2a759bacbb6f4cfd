"""How many prompt tokens the next step may hold, so that those who read a stream do not feel it.

A step of decode rows alone takes a time that is learnt per number of rows. A chunk adds
`a + b * tokens + c * pairs` seconds, where pairs is how many (query, key) pairs its attention has; a, b and c are
fitted while serving, by least squares that forget. The rule is "three times, fifty milliseconds": a step with a
chunk may take FACTOR times what its decode rows take alone, and UNSEEN in any case; or MOST when so many prompt
tokens wait that their owners would feel more than the readers do. A bound that somebody set replaces the rule. A
time between two tokens that one of the readers was promised (`itl`) holds beside either.

Knows numbers only: no clock, no tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

FACTOR = 3.0
MOST = 0.050  # seconds
UNSEEN = 0.008  # seconds: half a frame of a fast screen. A small model's steps are so short that three of them hold
# next to no prompt, and whoever waits for a first token would pay for a pause that no reader can see.
QUEUED = 16384  # waiting prompt tokens above which a step may take MOST
FORGET = 0.97  # weight of everything seen before, at each new step
SMOOTH = 0.2  # weight of the newest decode step
KEPT = 0.9  # of a promised time between tokens is what steps are made for: the fit is not exact, nor is any clock
PARTS = 8  # a prompt's time is summed over so many parts of it: later ones take longer
SCALING = 64  # prompt tokens of the first step that the prior is held against: shorter ones say little
LEAST = 16  # tokens that a step with a prompt always takes: prompts advance even where no bound can be kept


class Pace:
    """`allow` says how many prompt tokens fit; `observe` is told what each landed step took.

    sizes: chunk sizes that cost what they hold (others are padded up to one of these), ascending; the last is the
    largest chunk of all. bound: seconds that a step beside running streams may take; 0: the rule above, infinity:
    none. prior: seconds per prompt token before anything was seen.
    """

    def __init__(self, sizes: Sequence[int], prior: float, bound: float = 0.0) -> None:
        assert sizes and all(low < high for low, high in itertools.pairwise(sizes)) and prior > 0.0
        self.sizes = tuple(sizes)
        self.bound = bound
        self._decode: dict[int, float] = {}  # log2 class of rows -> seconds
        self._prior = prior
        self._scaled = False  # the prior was held against a step that was seen
        self._begin(prior)

    def observe(self, rows: int, tokens: int, pairs: float, seconds: float) -> None:
        """A step of `rows` decode rows and `tokens` prompt tokens kept the device busy for `seconds`."""
        if not tokens:
            known = self._decode.get(_class(rows))
            self._decode[_class(rows)] = seconds if known is None else known + SMOOTH * (seconds - known)
            return
        added = max(0.0, seconds - self.alone(rows))
        if not self._scaled and tokens >= SCALING and added > 0.0:
            # Steps that were never seen are as much slower or faster than assumed as the first one that was: else a
            # wrong prior, the same everywhere, would look like a cost of long contexts.
            self._scaled = True
            self._begin(self._prior * added / (self._prior * tokens + 1e-4))
        for row in self._matrix:
            row[:] = [FORGET * value for value in row]
        self._right[:] = [FORGET * value for value in self._right]
        self._learn(tokens, pairs, added)
        self._fit = self._solve()

    def alone(self, rows: int) -> float:
        """Seconds of a step of `rows` decode rows: of its class, or of the nearest one seen; 0 if none was."""
        if not rows or not self._decode:
            return 0.0
        wanted = _class(rows)
        return self._decode[min(self._decode, key=lambda seen: (abs(seen - wanted), seen))]

    def added(self, tokens: int, start: int) -> float:
        """Seconds that a chunk of `tokens` after `start` tokens adds to a step."""
        a, b, c = self._fit
        return a + b * tokens / 1e3 + c * pairs_of(tokens, start) / 1e6

    def allow(self, rows: int, start: int, queued: float, itl: float | None = None) -> int:
        """Prompt tokens for a step beside `rows` decode rows, when the first prompt goes on at `start` and `queued`
        prompt tokens wait in all. itl: seconds between two tokens that a reader was promised. Nobody is held up by
        a step without decode rows: then it is the largest chunk."""
        largest = self.sizes[-1]
        alone = self.alone(rows)
        if not rows or (not alone and itl is None):
            return largest
        bound = self.longest(rows, queued, itl)
        if bound == math.inf:
            return largest
        fitting = [size for size in self.sizes if alone + self.added(size, start) <= bound]
        return max(fitting, default=min(LEAST, largest))

    def longest(self, rows: int, queued: float, itl: float | None = None) -> float:
        """What a step with a chunk beside `rows` decode rows may take, in seconds; see `allow`."""
        alone = self.alone(rows)
        bound = self.bound
        if not bound:
            bound = max(MOST, FACTOR * alone) if queued > QUEUED else min(FACTOR * alone, MOST)
            bound = max(bound, UNSEEN, 2.0 * alone)  # even long steps leave prompts as much as they take
        return bound if itl is None else min(bound, KEPT * itl)

    def worst(self, rows: int, start: int, itl: float | None = None) -> float:
        """What a step with `rows` decode rows and a chunk behind `start` tokens can take at most, in seconds."""
        largest = self.alone(rows) + self.added(self.sizes[-1], start)
        return min(largest, self.longest(rows, math.inf, itl))

    def most_rows(self, itl: float) -> int | None:
        """How many decode rows a step may have that keeps `itl` with the least of a prompt in it; None: as many
        as were ever seen."""
        bound = KEPT * itl - self.added(LEAST, 0)
        slow = [kind for kind, seconds in self._decode.items() if seconds > bound]
        return 0 if 0 in slow else 1 << min(slow) - 1 if slow else None

    def per_token(self, rows: int, start: int, itl: float | None = None) -> float:
        """Seconds that each prompt token takes behind `start` tokens, in steps with `rows` decode rows."""
        chunk = self.allow(rows, start, 0, itl)
        return (self.alone(rows) + self.added(chunk, start)) / chunk

    def seconds(
        self, rows: int, start: int, tokens: int, itl: float | None = None, *, surely: bool = False
    ) -> float:
        """Until `tokens` prompt tokens behind `start` are read, in steps with `rows` decode rows. surely: they take
        no more than that of steps which others fill up; else about when they are read, if nobody does."""
        if tokens <= 0:
            return 0.0
        parts = 1 if tokens <= self.sizes[0] else PARTS
        part = tokens / parts
        at = 1.0 if surely else 0.5
        total = sum(self.per_token(rows, start + round((i + at) * part), itl) for i in range(parts)) * part
        # The last chunk is cut short, and its step costs a whole step beside what it holds.
        chunk = self.allow(rows, start + tokens, 0, itl)
        tail = tokens % chunk
        if tail and not surely:
            held = min((size for size in self.sizes if size >= tail), default=chunk)
            whole = self.alone(rows) + self.added(held, start + tokens)
            total += max(0.0, whole - tail * self.per_token(rows, start + tokens, itl))
        return total

    def _begin(self, prior: float) -> None:
        """The fit is what `prior` says: normal equations of (a, b, c), begun with a few steps as it has them.
        Tokens in thousands and pairs in millions, so that all three numbers are of one size."""
        self._matrix = [[0.0] * 3 for _ in range(3)]
        self._right = [0.0] * 3
        for tokens in (16, 256, 2048):
            self._learn(tokens, tokens * tokens / 2, prior * tokens + 1e-4, weight=0.05)
        self._fit = self._solve()

    def _learn(self, tokens: int, pairs: float, seconds: float, weight: float = 1.0) -> None:
        # Errors count relative to the step: a short one that is off by half matters as much as a long one.
        weight /= max(seconds, 1e-4) ** 2
        row = (1.0, tokens / 1e3, pairs / 1e6)
        for i in range(3):
            for j in range(3):
                self._matrix[i][j] += weight * row[i] * row[j]
            self._right[i] += weight * row[i] * seconds

    def _solve(self) -> tuple[float, float, float]:
        """The fit with no negative part: a cost that falls with more work would invite too much of it."""
        for active in ((0, 1, 2), (0, 1), (1, 2)):
            found = _eliminate(
                [[self._matrix[i][j] for j in active] for i in active], [self._right[i] for i in active]
            )
            if found is not None and all(value >= 0.0 for value in found):
                values = dict(zip(active, found, strict=True))
                return (values.get(0, 0.0), values[1], values.get(2, 0.0))
        return (0.0, self._right[1] / self._matrix[1][1], 0.0)


def pairs_of(tokens: int, start: int) -> float:
    """(query, key) pairs of `tokens` queries that follow `start` tokens."""
    return tokens * (start + (tokens + 1) / 2)


def _class(rows: int) -> int:
    return (rows - 1).bit_length()


def _eliminate(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """The solution of a small positive system, or None if it is as good as singular."""
    size = len(right)
    rows = [[*matrix[i], right[i]] for i in range(size)]
    for i in range(size):
        pivot = rows[i][i]
        if pivot <= 1e-12 * max(1e-300, max(matrix[k][k] for k in range(size))):
            return None
        for k in range(i + 1, size):
            factor = rows[k][i] / pivot
            rows[k] = [low - factor * high for low, high in zip(rows[k], rows[i], strict=True)]
    found = [0.0] * size
    for i in reversed(range(size)):
        found[i] = (rows[i][size] - sum(rows[i][j] * found[j] for j in range(i + 1, size))) / rows[i][i]
    return found
