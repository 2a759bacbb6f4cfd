"""Stateless noise for sampling: Philox4x32-10 words, their Gumbel variates, and the race that they decide.

Word id % 4 of the counter (id // 4, position, 0, 0) under the 64-bit seed belongs to token `id`; the words equal
those of runtime/philox.py bit for bit. kernels/reference_sampling.py holds the same in plain torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_WEYL_0 = tl.constexpr(0x9E3779B9)
_WEYL_1 = tl.constexpr(0xBB67AE85)
_TWO_TO_MINUS_32 = tl.constexpr(2.3283064365386963e-10)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LATE = tl.constexpr(0.773 * 2.3283064365386963e-10)
NO_TOKEN = tl.constexpr(0x7FFFFFFF)
RACE_SLACK = tl.constexpr(1.0001)


@triton.jit
def philox(counter, position, seed_low, seed_high):
    """The four words of the counters (counter, position, 0, 0). All arguments uint32; `counter` a tensor."""
    c0 = counter
    c1 = tl.zeros_like(counter) + position
    c2 = tl.zeros_like(counter)
    c3 = tl.zeros_like(counter)
    k0 = seed_low
    k1 = seed_high
    for _ in tl.static_range(10):
        # A 64-bit product is one machine instruction; umulhi and a low product would be two.
        front = c0.to(tl.uint64) * _MULTIPLIER_0
        back = c2.to(tl.uint64) * _MULTIPLIER_1
        c0 = (back >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = back.to(tl.uint32)
        c2 = (front >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = front.to(tl.uint32)
        k0 = (k0 + _WEYL_0).to(tl.uint32)
        k1 = (k1 + _WEYL_1).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def token_words(token, position, seed_low, seed_high):
    """The word of each token, for ids in any order. token: int32 tensor."""
    c0, c1, c2, c3 = philox((token >> 2).to(tl.uint32), position, seed_low, seed_high)
    even = (token & 1) == 0
    return tl.where((token & 2) == 0, tl.where(even, c0, c1), tl.where(even, c2, c3))


@triton.jit
def row_words(start, position, seed_low, seed_high, COUNT: tl.constexpr):
    """The words of the tokens [start, start + COUNT), one Philox for every four. `start` is a multiple of 4."""
    counter = (start // 4 + tl.arange(0, COUNT // 4)).to(tl.uint32)
    c0, c1, c2, c3 = philox(counter, position, seed_low, seed_high)
    return tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), [COUNT])


@triton.jit
def gumbel(word):
    """-log(-log1p(-v)) for v = (word + 0.5) * 2**-32, float32, off by a few units in the last place.

    Below one half v itself is known to full precision, above it 1 - v is: the form follows whichever is.
    """
    small = word < 0x80000000
    v = (word.to(tl.float32) + 0.5) * _TWO_TO_MINUS_32
    rest = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * _TWO_TO_MINUS_32
    u = tl.where(small, 1.0 - v, rest)
    lost = 1.0 - u
    log = -tl.log(u)
    # log1p(-v) by way of the rounded 1 - v: the quotient undoes the rounding, and where nothing is left it is -v.
    exact = tl.where(lost > 0.0, log * (v / tl.where(lost > 0.0, lost, 1.0)), v)
    return -tl.log(tl.where(small, exact, log))


@triton.jit
def race(x, word, shift, temperature):
    """(least, most): bounds on each token's arrival 2**32 E exp(-gap), E = -log1p(-v); whoever arrives first wins.

    The largest gap + noise is the first arrival, and bounds need one fast exponential where the noise needs two
    logarithms and a quotient: v <= E, and E <= v + 0.773 v * v up to one half; later tokens, which seldom win, have
    no upper bound. Whoever's `least` is above another's `most` by a factor of RACE_SLACK, which covers the rounding
    of both, has lost.
    """
    # A gap of 26 is hopeless. Up to there the rounded exponent is off by 1e-5 at most.
    pace = tl.exp2((shift - x) * (_LOG2_E / temperature))
    v = word.to(tl.float32) + 0.5
    least = v * pace
    most = tl.where(v < 2147483648.0, least * tl.fma(v, _LATE, 1.0), float("inf"))
    return least, most


@triton.jit
def arrive(x, token, able, shift, temperature, position, seed_low, seed_high, best, winner):
    """(best, winner) after every `able` token has run: gap + noise in full, ties to the one that came before.

    One token after the other, in ascending order: bounds leave so few that vectors would be waste.
    """
    runner = tl.min(tl.where(able, token, NO_TOKEN))
    while runner < NO_TOKEN:
        gap = tl.div_rn(tl.max(tl.where(token == runner, x, float("-inf"))) - shift, temperature)
        noise = gap + gumbel(token_words(runner, position, seed_low, seed_high))
        winner = tl.where(noise > best, runner, winner)
        best = tl.maximum(noise, best)
        runner = tl.min(tl.where(able & (token > runner), token, NO_TOKEN))
    return best, winner
