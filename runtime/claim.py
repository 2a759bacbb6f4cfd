"""What a request may claim of the server's time: its class, its targets, whose it is. Numbers only, no clock."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class Rank(enum.IntEnum):
    """The classes, most urgent first. A lower one waits for a higher one, and gives its slot up to it."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2


@dataclass(frozen=True, slots=True)
class Targets:
    """What a client wants of the time of its answer, in seconds from its arrival; None: whenever it comes.

    ttft: until the first token. itl: between two tokens. deadline: until the last token, if the answer gets as long
    as it may. Who names any of them is promised it, or refused at once.
    """

    rank: Rank = Rank.STANDARD
    ttft: float | None = None
    itl: float | None = None
    deadline: float | None = None

    @property
    def promised(self) -> bool:
        """It wants something that can be kept or broken."""
        return self.ttft is not None or self.itl is not None or self.deadline is not None


UNTARGETED = Targets()


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose request it is (`owner`: one share of the server, whatever salts it uses; `weight`: how large a share),
    and its targets."""

    owner: str = ""
    weight: float = 1.0
    targets: Targets = UNTARGETED


NO_CLAIM = Claim()


@dataclass(frozen=True, slots=True)
class Promise:
    """The first token comes until `due` (seconds of the loop's clock; infinity: only the time between tokens was
    promised, or the end). Its prompt takes `cost` seconds at the
    slowest, and the last of its tokens take `rate` seconds each: no part of the prompt takes longer per token.
    itl: seconds between two of its tokens at most, None: as it comes. expected: seconds from its arrival in
    which the first token was foretold."""

    due: float
    cost: float
    rate: float
    itl: float | None = None
    expected: float = 0.0

    @property
    def dated(self) -> bool:
        """It has a first token that can be late."""
        return self.due < math.inf

    def left(self, tokens: int) -> float:
        """Seconds that `tokens` more of its prompt take at the slowest."""
        return min(self.cost, self.rate * max(0, tokens))
