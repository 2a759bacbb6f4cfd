"""Random choices from one seed, split so that training never meets the values of the evaluation.

Every value that could be learned by heart (the operands of a sum, the words of a list, the layout of a
picture) is drawn through `unseen`: a hash of the value says on which side of the split it lies.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

HELD_OUT_ONE_IN = 16


def held_out(value: object) -> bool:
    """True where `value` belongs to the evaluation. Equal on every machine: repr and CRC-32."""
    return zlib.crc32(repr(value).encode()) % HELD_OUT_ONE_IN == 0


class Draw(random.Random):
    """A generator of one side: training, or the evaluation with its unseen values."""

    def __init__(self, seed: int, evaluation: bool = False) -> None:
        super().__init__(seed)
        self.evaluation = evaluation

    def unseen(self, make: Callable[[], T]) -> T:
        """The first value of `make` that lies on this side of the split."""
        while True:
            value = make()
            if held_out(value) == self.evaluation:
                return value

    def chance(self, share: float) -> bool:
        """True in `share` of the calls."""
        return self.random() < share

    def pick(self, choices: Sequence[T]) -> T:
        """One of `choices`; quicker than `choice`, and equal on every Python."""
        return choices[int(self.random() * len(choices))]

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        """`count` different ones of `choices`, in random order."""
        left = list(choices)
        taken = []
        for _ in range(count):
            taken.append(left.pop(int(self.random() * len(left))))
        return taken
