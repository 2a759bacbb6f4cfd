"""Which tokens top_k, top_p and min_p keep, and the winner among them: device functions for one row, no sort.

A gap is (logit - highest) / temperature in float32, at most 0. Its bits without the sign are its key: an int32 that
grows as the token gets less likely, so that a search for a threshold is a bisection on whole numbers and finds the
exact value, ties included.

Every 64 neighbouring tokens have a crest, their highest logit. Crests bound what is kept: if k crests reach a
threshold, so do the k most likely tokens; if the masses of crests alone reach the goal of top_p, so does the
nucleus. What reaches the threshold is gathered; nearly always that is little and the rest of the work stays in
registers. Where it does not fit (flat rows with top_p, many equal logits, a huge top_k) the searches run over the
whole row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headrace.kernels.gumbel import gumbel, token_words

_ALL = tl.constexpr(0x7F800000)  # the key of -inf: a threshold that keeps everything
_NEVER = tl.constexpr(0x7FFFFFFF)  # the key of what is no token
_NO_TOKEN = tl.constexpr(0x7FFFFFFF)
_SPAN = tl.constexpr(64)  # tokens under one crest


@triton.jit
def keys_of(gaps):
    return gaps.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _first_count(keys, goal, high):
    """The smallest key K in [0, high] such that at least `goal` keys are <= K; high, where none is."""
    low = high * 0
    while low < high:
        middle = low + (high - low) // 2
        enough = tl.sum((keys <= middle).to(tl.int32)) >= goal
        low = tl.where(enough, low, middle + 1)
        high = tl.where(enough, middle, high)
    return low


@triton.jit
def _first_mass(keys, masses, goal, high):
    """The smallest key K in [0, high] such that the masses of keys <= K add up to `goal`; high, where none does."""
    low = high * 0
    while low < high:
        middle = low + (high - low) // 2
        enough = tl.sum(tl.where(keys <= middle, masses, 0.0)) >= goal
        low = tl.where(enough, low, middle + 1)
        high = tl.where(enough, middle, high)
    return low


@triton.jit
def _bound(
    crests, peak, temperature, top_k, least_key, top_p, total, CRESTS: tl.constexpr, CREST_SPAN: tl.constexpr
):
    """(key, crest keys): no token with a larger key is kept. Exact work is left to the searches that follow."""
    index = tl.arange(0, CREST_SPAN)
    crest = tl.load(crests + index, mask=index < CRESTS, other=float("-inf"))
    gaps = tl.div_rn(crest - peak, temperature)
    keys = tl.where(index < CRESTS, keys_of(gaps), _NEVER)
    bound = least_key
    if (top_k > 0) & (top_k <= CRESTS):
        bound = tl.minimum(bound, _first_count(keys, top_k, least_key))
    if (top_k == 0) & (least_key == _ALL):
        # 1e-5 covers the rounding of these sums; the goal itself is met exactly later.
        goal = (top_p * total).to(tl.float32) * 1.00001
        masses = tl.where(index < CRESTS, tl.exp(gaps), 0.0)
        bound = _first_mass(keys, masses, goal, least_key)
    return bound, keys


@triton.jit
def _spare_ties(above, goal, gap):
    """How many tokens of the last rank top_p keeps: the mass ranked before a kept token is below the goal."""
    mass = tl.maximum(tl.exp(gap), 1e-30).to(tl.float64)
    return tl.minimum(tl.maximum(tl.ceil((goal - above) / mass), 1.0), 1e9).to(tl.int32)


@triton.jit
def _value(logits, work, token, inside, adjusted):
    """Logits after penalties, bias and held stop ids: in `work` where survey changed them, else in `logits`."""
    stale = (token * 0 + adjusted) != 0  # one truth value, as wide as the tokens: the interpreter needs it so
    plain = tl.load(logits + token, mask=inside & (stale ^ True), other=float("-inf")).to(tl.float32)
    changed = tl.load(work + token, mask=inside & stale, other=float("-inf"))
    return tl.where(stale, changed, plain)


@triton.jit
def _below(logits, work, adjusted, peak, temperature, key, V: tl.constexpr, CHUNK: tl.constexpr):
    """(mass, count) of the row's tokens with keys <= key, by one pass over it."""
    lane = tl.arange(0, CHUNK)
    mass = tl.zeros([CHUNK], tl.float32)
    count = tl.zeros([CHUNK], tl.int32)
    for start in range(0, V, CHUNK):
        token = start + lane
        inside = token < V
        gaps = tl.div_rn(_value(logits, work, token, inside, adjusted) - peak, temperature)
        keep = inside & (keys_of(gaps) <= key)
        mass += tl.where(keep, tl.exp(gaps), 0.0)
        count += keep.to(tl.int32)
    return tl.sum(mass.to(tl.float64)), tl.sum(count)


@triton.jit
def _midpoint(low, high, turn):
    """A key in [low, high): by turns half way in value, which soon finds the crowd, and half way in bits, which
    ends after 31 turns whatever the numbers are."""
    low_value = low.to(tl.float32, bitcast=True)
    high_value = tl.minimum(high, 0x42000000).to(tl.float32, bitcast=True)  # 32: what lies beyond has no mass
    by_value = ((low_value + high_value) * 0.5).to(tl.int32, bitcast=True)
    by_bits = low + (high - low) // 2
    middle = tl.where((turn & 1) == 0, by_value, by_bits)
    return tl.minimum(tl.maximum(middle, low), high - 1)


@triton.jit
def _draw_gathered(
    gaps_at,
    tokens_at,
    count,
    position,
    seed_low,
    seed_high,
    top_k,
    least_key,
    top_p,
    total,
    ROOM: tl.constexpr,
):
    """The winner among `count` <= ROOM gathered tokens, a superset of the kept ones in ascending order of ids."""
    lane = tl.arange(0, ROOM)
    live = lane < count
    gaps = tl.load(gaps_at + lane, mask=live, other=float("-inf"))
    tokens = tl.load(tokens_at + lane, mask=live, other=_NO_TOKEN)
    keys = tl.where(live, keys_of(gaps), _NEVER)
    cut = least_key
    if top_k > 0:
        cut = _first_count(keys, top_k, cut)
    keep = keys <= cut
    if top_p < 1.0:
        masses = tl.where(keep, tl.exp(gaps), 0.0).to(tl.float64)
        goal = top_p * total
        if (top_k > 0) | (least_key != _ALL):
            goal = top_p * tl.sum(masses)
        cut = _first_mass(keys, masses, goal, cut)
        above = tl.sum(tl.where(keys < cut, masses, 0.0))
        ties = keys == cut
        last = -(cut.to(tl.float32, bitcast=True))
        keep = (keys < cut) | (ties & (tl.cumsum(ties.to(tl.int32), 0) <= _spare_ties(above, goal, last)))
    sums = gaps + gumbel(token_words(tokens, position, seed_low, seed_high))
    sums = tl.where(keep, sums, float("-inf"))
    best = tl.max(sums)
    return tl.min(tl.where(keep & (sums == best), tokens, _NO_TOKEN))


@triton.jit
def _draw_row(
    logits, work, adjusted, peak, temperature, position, seed_low, seed_high, top_k, least_key, top_p, total,
    V: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The winner among the kept tokens of a row whose kept tokens are too many to gather."""
    lane = tl.arange(0, CHUNK)
    cut = least_key
    if top_k > 0:
        low = least_key * 0
        high = least_key
        turn = low
        while low < high:
            middle = _midpoint(low, high, turn)
            _, count = _below(logits, work, adjusted, peak, temperature, middle, V, CHUNK)
            low = tl.where(count >= top_k, low, middle + 1)
            high = tl.where(count >= top_k, middle, high)
            turn += 1
        cut = low
    spare = V
    if top_p < 1.0:
        goal = top_p * total
        if (top_k > 0) | (least_key != _ALL):
            kept, _ = _below(logits, work, adjusted, peak, temperature, cut, V, CHUNK)
            goal = top_p * kept
        low = cut * 0
        high = cut
        turn = low
        while low < high:
            middle = _midpoint(low, high, turn)
            mass, _ = _below(logits, work, adjusted, peak, temperature, middle, V, CHUNK)
            low = tl.where(mass >= goal, low, middle + 1)
            high = tl.where(mass >= goal, middle, high)
            turn += 1
        cut = low
        above, _ = _below(logits, work, adjusted, peak, temperature, cut - 1, V, CHUNK)
        spare = _spare_ties(above, goal, -(cut.to(tl.float32, bitcast=True)))
    best = float("-inf")
    winner = V
    passed = 0
    for start in range(0, V, CHUNK):
        token = start + lane
        inside = token < V
        gaps = tl.div_rn(_value(logits, work, token, inside, adjusted) - peak, temperature)
        keys = tl.where(inside, keys_of(gaps), _NEVER)
        ties = (keys == cut).to(tl.int32)
        keep = (keys < cut) | ((ties != 0) & (passed + tl.cumsum(ties, 0) <= spare))
        passed += tl.sum(ties)
        sums = gaps + gumbel(token_words(token, position, seed_low, seed_high))
        sums = tl.where(keep, sums, float("-inf"))
        highest = tl.max(sums)
        first = tl.min(tl.where(keep & (sums == highest), token, _NO_TOKEN))
        winner = tl.where(highest > best, first, winner)
        best = tl.maximum(highest, best)
    return winner


@triton.jit
def draw_filtered(
    logits, work, adjusted, crests, spots, gaps_at, tokens_at, peak, temperature, position, seed_low, seed_high,
    top_k, least_key, top_p, total,
    V: tl.constexpr, CRESTS: tl.constexpr, CREST_SPAN: tl.constexpr, ROOM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The token with the largest gap + noise among those that the filters keep.

    Pointers are those of this row. least_key: the key of ln(min_p). total: the mass of the whole row, float64.
    spots int32 [CRESTS], gaps_at float32 [ROOM], tokens_at int32 [ROOM] are overwritten.
    """
    bound, keys = _bound(crests, peak, temperature, top_k, least_key, top_p, total, CRESTS, CREST_SPAN)
    found = (keys <= bound).to(tl.int32)
    found_count = tl.sum(found)
    count = found_count
    if found_count <= ROOM:
        tl.store(spots + tl.cumsum(found, 0) - 1, tl.arange(0, CREST_SPAN), mask=found != 0)
        tl.debug_barrier()
        lane = tl.arange(0, ROOM)
        count = found_count * 0
        for start in range(0, found_count * _SPAN, ROOM):
            place = start + lane
            live = place < found_count * _SPAN
            token = tl.load(spots + place // _SPAN, mask=live, other=0) * _SPAN + place % _SPAN
            live = live & (token < V)
            gaps = tl.div_rn(_value(logits, work, token, live, adjusted) - peak, temperature)
            keep = live & (keys_of(gaps) <= bound)
            at = count + tl.cumsum(keep.to(tl.int32), 0) - 1
            tl.store(gaps_at + at, gaps, mask=keep & (at < ROOM))
            tl.store(tokens_at + at, token, mask=keep & (at < ROOM))
            count += tl.sum(keep.to(tl.int32))
        tl.debug_barrier()
    if count <= ROOM:
        token = _draw_gathered(
            gaps_at, tokens_at, count, position, seed_low, seed_high, top_k, least_key, top_p, total, ROOM
        )
    else:
        token = _draw_row(
            logits, work, adjusted, peak, temperature, position, seed_low, seed_high, top_k, least_key, top_p,
            total, V, CHUNK,
        )  # fmt: skip
    return token
