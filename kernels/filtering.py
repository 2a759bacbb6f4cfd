"""Which tokens top_k, top_p and min_p keep, and the winner among them: device functions for one row, no sort.

A gap is (logit - highest) / temperature in float32, at most 0. Its bits without the sign are its key: an int32 that
grows as the token gets less likely, so that a search for a threshold is a bisection on whole numbers and finds the
exact value, ties included. A mass is exp(gap).

Every 64 neighbouring tokens have a crest, their highest logit. Crests bound what is kept: if k crests reach a
threshold, so do the k most likely tokens; if the masses of crests alone reach the goal of top_p, so does the
nucleus. What reaches the threshold is gathered; nearly always that is little and all else happens in registers.

Where it does not fit (flat rows with top_p, many equal logits, a huge top_k) thresholds are sought in the logits
themselves, three at a time by one pass over the row, until what lies between two of them can be gathered.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headrace.kernels.gumbel import NO_TOKEN, RACE_SLACK, arrive, race, row_words, token_words

_ALL = tl.constexpr(0x7F800000)  # the key of -inf: a threshold that keeps everything
_NEVER = tl.constexpr(0x7FFFFFFF)  # the key of what is no token
_SPAN = tl.constexpr(64)  # tokens under one crest
_FEW = tl.constexpr(64)  # crests at which a bound is good enough
_LOG2_E = tl.constexpr(1.4426950408889634)
_LARGEST = tl.constexpr(3.4028234663852886e38)


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
def _bound(crests, peak, temperature, top_k, least_key, goal, crest_count, CREST_SPAN: tl.constexpr):
    """(key, crest keys): no token with a larger key is kept. As tight as a few turns make it: exact work is left to
    the searches that follow. goal: of top_p alone, a mass; not read with top_k or min_p, which come first."""
    index = tl.arange(0, CREST_SPAN)
    crest = tl.load(crests + index, mask=index < crest_count, other=float("-inf"))
    gaps = tl.div_rn(crest - peak, temperature)
    keys = tl.where(index < crest_count, keys_of(gaps), _NEVER)
    weights = tl.where(index < crest_count, tl.exp(gaps), 0.0)
    need = (goal * 1.00001).to(tl.float32)  # covers the rounding of sums; the goal is met exactly later
    few = _FEW
    sought = (top_k == 0) & (least_key == _ALL)
    if (top_k > 0) & (top_k <= crest_count):
        weights = tl.where(index < crest_count, 1.0, 0.0)
        need = top_k.to(tl.float32)
        few = tl.maximum(2 * top_k, _FEW)
        sought = top_k > 0
    high = least_key
    if sought:
        low = least_key * 0
        high = tl.minimum(least_key, 0x42D00000)  # 104: what lies beyond has no mass
        if tl.sum(tl.where(keys <= high, weights, 0.0)) < need:
            low = high
            high = least_key
        count = few + 1
        turn = 0
        # Half way in value soon finds the crowd; after that, half way in bits ends whatever the numbers are.
        while (low < high) & (count > few):
            low_value = low.to(tl.float32, bitcast=True)
            by_value = low_value + (high.to(tl.float32, bitcast=True) - low_value) * 0.5
            middle = tl.where(turn < 12, by_value.to(tl.int32, bitcast=True), low + (high - low) // 2)
            middle = tl.minimum(tl.maximum(middle, low), high - 1)
            enough = tl.sum(tl.where(keys <= middle, weights, 0.0)) >= need
            count = tl.where(enough, tl.sum((keys <= middle).to(tl.int32)), count)
            low = tl.where(enough, low, middle + 1)
            high = tl.where(enough, middle, high)
            turn += 1
    return high, keys


@triton.jit
def _spare_ties(above, goal, gap):
    """How many tokens of the last rank top_p keeps: the mass ranked before a kept token is below the goal."""
    mass = tl.maximum(tl.exp(gap), 1e-30).to(tl.float64)
    return tl.minimum(tl.maximum(tl.ceil((goal - above) / mass), 1.0), 1e9).to(tl.int32)


@triton.jit
def value_of(logits, work, token, inside, adjusted):
    """Logits after penalties, bias and held stop ids: in `work` where survey changed them, else in `logits`."""
    stale = (token * 0 + adjusted) != 0  # one truth value, as wide as the tokens: the interpreter needs it so
    plain = tl.load(logits + token, mask=inside & (stale ^ True), other=float("-inf")).to(tl.float32)
    changed = tl.load(work + token, mask=inside & stale, other=float("-inf"))
    return tl.where(stale, changed, plain)


@triton.jit
def _draw_gathered(
    gaps_at, tokens_at, count, temperature, position, seed_low, seed_high, top_k, least_key, top_p, total,
    ROOM: tl.constexpr,
):  # fmt: skip
    """The winner among `count` <= ROOM gathered tokens, a superset of the kept ones in ascending order of ids."""
    lane = tl.arange(0, ROOM)
    live = lane < count
    gaps = tl.load(gaps_at + lane, mask=live, other=float("-inf"))
    tokens = tl.load(tokens_at + lane, mask=live, other=NO_TOKEN)
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
    # Gaps are taken as logits whose highest is 0, at temperature 1.
    zero = temperature * 0.0
    word = token_words(tokens, position, seed_low, seed_high)
    least, most = race(gaps, word, zero, zero + 1.0)
    bar = tl.min(tl.where(keep, most, float("inf")))
    able = keep & (least <= bar * RACE_SLACK) & (least < float("inf"))
    best = zero + float("-inf")
    winner = count * 0
    _, winner = arrive(gaps, tokens, able, zero, zero + 1.0, position, seed_low, seed_high, best, winner)
    return winner


@triton.jit
def _rank(x):
    """float32 to int64 and in the same order (-0 below +0)."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _ranked(rank):
    """The float32 of a rank."""
    bits = rank.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _lowest_logit(key, peak, temperature):
    """The lowest logit whose gap has a key <= `key`; +inf for key -1, which none has."""
    low = _rank(peak * 0.0 - float("inf"))
    high = _rank(peak) + 1
    while low < high:
        middle = low + (high - low) // 2  # ranks may be negative: halves of what is not
        reaches = keys_of(tl.div_rn(_ranked(middle) - peak, temperature)) <= key
        low = tl.where(reaches, low, middle + 1)
        high = tl.where(reaches, middle, high)
    return tl.where(key < 0, float("inf"), _ranked(low))


@triton.jit
def _weights(x, peak, pace, counting):
    return tl.where(counting != 0, 1.0, tl.exp2((x - peak) * pace))


@triton.jit
def _survey_row(logits, work, adjusted, peak, pace, counting, one, two, three, vocab, CHUNK: tl.constexpr):
    """Of the tokens with logits >= one <= two <= three: (weight, count) of each, by one pass over the row."""
    lane = tl.arange(0, CHUNK)
    weight_1 = tl.zeros([CHUNK], tl.float32)
    weight_2 = tl.zeros([CHUNK], tl.float32)
    weight_3 = tl.zeros([CHUNK], tl.float32)
    count_1 = tl.zeros([CHUNK], tl.int32)
    count_2 = tl.zeros([CHUNK], tl.int32)
    count_3 = tl.zeros([CHUNK], tl.int32)
    for start in range(0, vocab, CHUNK):
        token = start + lane
        x = value_of(logits, work, token, token < vocab, adjusted)
        weight = _weights(x, peak, pace, counting)
        weight_1 += tl.where(x >= one, weight, 0.0)
        weight_2 += tl.where(x >= two, weight, 0.0)
        weight_3 += tl.where(x >= three, weight, 0.0)
        count_1 += (x >= one).to(tl.int32)
        count_2 += (x >= two).to(tl.int32)
        count_3 += (x >= three).to(tl.int32)
    return (
        tl.sum(weight_1.to(tl.float64)), tl.sum(weight_2.to(tl.float64)), tl.sum(weight_3.to(tl.float64)),
        tl.sum(count_1), tl.sum(count_2), tl.sum(count_3),
    )  # fmt: skip


@triton.jit
def _between(low, high, quarters, turn):
    """A rank in [low, high): the first turns in value, which soon finds the crowd, then in bits, which ends."""
    share = quarters * 0.25
    value = _ranked(low) * (1.0 - share) + tl.minimum(_ranked(high), _LARGEST) * share
    rank = tl.where(turn < 10, _rank(value), low + (high - low) * quarters // 4)
    return tl.minimum(tl.maximum(rank, low), high - 1)


@triton.jit
def _cut(
    logits, work, adjusted, values_at, peak, temperature, counting, goal, floor, vocab,
    ROOM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """(logit, above): the highest logit at which the tokens that reach it weigh `goal`, but at least `floor`, and
    what the tokens above its gap weigh. A token weighs its mass, or 1 where `counting`."""
    pace = _LOG2_E / temperature
    low = _rank(floor)
    high = _rank(peak) + 1
    low_count = low * 0 + vocab
    high_count = low * 0
    above = goal * 0.0
    turn = 0
    while (high - low > 1) & (low_count - high_count > ROOM):
        one = _between(low, high, 1, turn)
        two = _between(low, high, 2, turn)
        three = _between(low, high, 3, turn)
        weight_1, weight_2, weight_3, count_1, count_2, count_3 = _survey_row(
            logits,
            work,
            adjusted,
            peak,
            pace,
            counting,
            _ranked(one),
            _ranked(two),
            _ranked(three),
            vocab,
            CHUNK,
        )
        reach_1 = weight_1 >= goal
        reach_2 = weight_2 >= goal
        reach_3 = weight_3 >= goal
        low = tl.where(reach_3, three, tl.where(reach_2, two, tl.where(reach_1, one, low)))
        low_count = tl.where(
            reach_3, count_3, tl.where(reach_2, count_2, tl.where(reach_1, count_1, low_count))
        )
        high = tl.where(reach_1, tl.where(reach_2, tl.where(reach_3, high, three), two), one)
        high_count = tl.where(
            reach_1, tl.where(reach_2, tl.where(reach_3, high_count, count_3), count_2), count_1
        )
        above = tl.where(reach_1, tl.where(reach_2, tl.where(reach_3, above, weight_3), weight_2), weight_1)
        turn += 1
    logit = _ranked(low)
    if high - low > 1:
        lane = tl.arange(0, CHUNK)
        bottom = logit
        top = _ranked(high)
        count = high_count.to(tl.int32) * 0
        for start in range(0, vocab, CHUNK):
            token = start + lane
            x = value_of(logits, work, token, token < vocab, adjusted)
            keep = (x >= bottom) & (x < top)
            at = count + tl.cumsum(keep.to(tl.int32), 0) - 1
            tl.store(values_at + at, x, mask=keep & (at < ROOM))
            count += tl.sum(keep.to(tl.int32))
        tl.debug_barrier()
        place = tl.arange(0, ROOM)
        x = tl.load(values_at + place, mask=place < count, other=float("-inf"))
        weights = tl.where(place < count, _weights(x, peak, pace, counting), 0.0).to(tl.float64)
        while high - low > 1:
            middle = low + (high - low) // 2  # ranks may be negative: halves of what is not
            enough = above + tl.sum(tl.where(x >= _ranked(middle), weights, 0.0)) >= goal
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
        logit = _ranked(low)
        next_up = _lowest_logit(keys_of(tl.div_rn(logit - peak, temperature)) - 1, peak, temperature)
        above += tl.sum(tl.where(x >= next_up, weights, 0.0))
        tl.debug_barrier()  # the memory may be used again
    return logit, above


@triton.jit
def _draw_row(
    logits, work, adjusted, values_at, peak, temperature, position, seed_low, seed_high,
    top_k, least_key, top_p, total, vocab, ROOM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The winner among the kept tokens of a row whose kept tokens are too many to gather."""
    cut = least_key
    # What lies 104 below the peak has no mass and cannot win.
    hopeless = tl.maximum(peak - 104.0 * temperature, -_LARGEST)
    floor = tl.maximum(_lowest_logit(cut, peak, temperature), hopeless)
    if top_k > 0:
        logit, _ = _cut(
            logits,
            work,
            adjusted,
            values_at,
            peak,
            temperature,
            1,
            top_k.to(tl.float64),
            floor,
            vocab,
            ROOM,
            CHUNK,
        )
        cut = tl.minimum(cut, keys_of(tl.div_rn(logit - peak, temperature)))
        floor = tl.maximum(_lowest_logit(cut, peak, temperature), hopeless)
    spare = top_k * 0 + vocab
    if top_p < 1.0:
        goal = top_p * total
        if (top_k > 0) | (least_key != _ALL):
            kept, _, _, _, _, _ = _survey_row(
                logits, work, adjusted, peak, _LOG2_E / temperature, 0, floor, floor, floor, vocab, CHUNK
            )
            goal = top_p * kept
        logit, above = _cut(
            logits, work, adjusted, values_at, peak, temperature, 0, goal, floor, vocab, ROOM, CHUNK
        )
        cut = keys_of(tl.div_rn(logit - peak, temperature))
        spare = _spare_ties(above, goal, -(cut.to(tl.float32, bitcast=True)))
    bottom = _lowest_logit(cut, peak, temperature)
    next_up = _lowest_logit(cut - 1, peak, temperature)

    lane = tl.arange(0, CHUNK)
    bar = peak * 0.0 + float("inf")
    best = peak * 0.0 + float("-inf")
    winner = spare * 0
    passed = spare * 0
    for start in range(0, vocab, CHUNK):
        token = start + lane
        x = value_of(logits, work, token, token < vocab, adjusted)
        ties = ((x >= bottom) & (x < next_up)).to(tl.int32)
        keep = (x >= next_up) | ((ties != 0) & (passed + tl.cumsum(ties, 0) <= spare))
        passed += tl.sum(ties)
        least, most = race(x, row_words(start, position, seed_low, seed_high, CHUNK), peak, temperature)
        bar = tl.minimum(bar, tl.min(tl.where(keep, most, float("inf"))))
        able = keep & (least <= bar * RACE_SLACK) & (least < float("inf"))
        best, winner = arrive(x, token, able, peak, temperature, position, seed_low, seed_high, best, winner)
    return winner


@triton.jit
def draw_filtered(
    logits, work, adjusted, crests, spots, gaps_at, tokens_at, peak, temperature, position, seed_low, seed_high,
    top_k, least_key, top_p, total, vocab, crest_count,
    CREST_SPAN: tl.constexpr, ROOM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The token with the largest gap + noise among those that the filters keep.

    Pointers are those of this row. least_key: the key of ln(min_p). total: the mass of the whole row, float64.
    spots int32 [crest_count], gaps_at float32 [ROOM], tokens_at int32 [ROOM] are overwritten.
    """
    bound, keys = _bound(crests, peak, temperature, top_k, least_key, top_p * total, crest_count, CREST_SPAN)
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
            live = live & (token < vocab)
            gaps = tl.div_rn(value_of(logits, work, token, live, adjusted) - peak, temperature)
            keep = live & (keys_of(gaps) <= bound)
            at = count + tl.cumsum(keep.to(tl.int32), 0) - 1
            tl.store(gaps_at + at, gaps, mask=keep & (at < ROOM))
            tl.store(tokens_at + at, token, mask=keep & (at < ROOM))
            count += tl.sum(keep.to(tl.int32))
        tl.debug_barrier()
    if count <= ROOM:
        token = _draw_gathered(
            gaps_at, tokens_at, count, temperature, position, seed_low, seed_high,
            top_k, least_key, top_p, total, ROOM,
        )  # fmt: skip
    else:
        token = _draw_row(
            logits, work, adjusted, gaps_at, peak, temperature, position, seed_low, seed_high,
            top_k, least_key, top_p, total, vocab, ROOM, CHUNK,
        )  # fmt: skip
    return token
