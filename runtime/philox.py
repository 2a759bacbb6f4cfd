"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011). Knows integers only; keeps no state.

A word depends on nothing but (key, counter), so whoever knows the seed, the position and the token id can
compute it again: on another device, in another batch, after a restart.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
ROUNDS = 10

_MASK = 0xFFFFFFFF
_HALF = np.uint64(32)
_M0 = np.uint64(MULTIPLIER_0)
_M1 = np.uint64(MULTIPLIER_1)
_LOW = np.uint64(_MASK)

Words = NDArray[np.uint32]
Pairs = NDArray[np.uint64]


@lru_cache(maxsize=1024)
def _round_keys(seed: int) -> tuple[tuple[np.uint64, np.uint64], ...]:
    """The ten round keys, each half already shifted into the upper 32 bits."""
    low, high = seed & _MASK, seed >> 32
    keys = []
    for step in range(ROUNDS):
        keys.append(
            (
                np.uint64(((low + step * WEYL_0) & _MASK) << 32),
                np.uint64(((high + step * WEYL_1) & _MASK) << 32),
            )
        )
    return tuple(keys)


class WordScratch:
    """Memory for the words of one row, used again for every row: fresh pages would cost as much as the words."""

    def __init__(self, width: int) -> None:
        blocks = (width + 3) // 4
        self.pairs: Pairs = np.empty((4, blocks), dtype=np.uint64)
        self.words: Words = np.empty((blocks, 4), dtype=np.uint32)


def philox(seed: int, front: Pairs, back: Pairs, spare: Pairs | None = None) -> tuple[Pairs, Pairs]:
    """The four output words of every counter, as two packed arrays; all arguments are overwritten.

    `front` holds (counter word 0 << 32 | word 1), `back` holds (word 2 << 32 | word 3); the results are packed
    the same way. `seed` is the 64-bit key: its low half is key word 0, its high half key word 1.
    """
    # One round maps (c0, c1, c2, c3) to (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)). With
    # two words packed in 64 bits no product is split: shifting a pair left drops its upper word by itself.
    upper, lower = np.empty((2, len(front)), dtype=np.uint64) if spare is None else spare
    for key_0, key_1 in _round_keys(seed):
        np.right_shift(front, _HALF, out=upper)
        np.right_shift(back, _HALF, out=lower)
        upper *= _M0
        lower *= _M1
        front <<= _HALF
        back <<= _HALF
        front ^= key_0
        back ^= key_1
        front ^= lower
        back ^= upper
    return front, back


def row_words(seed: int, position: int, width: int, scratch: WordScratch | None = None) -> Words:
    """One word for every token id in [0, width): word id % 4 of the counter (id // 4, position, 0, 0).

    With `scratch` (made for this width) the result is good until the scratch is used again.
    """
    scratch = scratch or WordScratch(width)
    front, back = scratch.pairs[:2]
    front[:] = np.arange(len(front), dtype=np.uint64)
    front <<= _HALF
    front |= np.uint64(position)
    back[:] = 0
    philox(seed, front, back, scratch.pairs[2:])
    words = scratch.words
    words[:, 0] = front >> _HALF
    words[:, 1] = front & _LOW
    words[:, 2] = back >> _HALF
    words[:, 3] = back & _LOW
    return words.reshape(-1)[:width]


def token_words(seed: int, position: int, ids: NDArray[np.int64]) -> Words:
    """`row_words(seed, position, ...)[ids]`, computed for these ids alone."""
    tokens = ids.astype(np.uint64)
    front = tokens >> np.uint64(2)
    front <<= _HALF
    front |= np.uint64(position)
    front, back = philox(seed, front, np.zeros(len(tokens), dtype=np.uint64))
    pair = np.where(tokens & np.uint64(2), back, front)
    return np.where(tokens & np.uint64(1), pair & _LOW, pair >> _HALF).astype(np.uint32)
