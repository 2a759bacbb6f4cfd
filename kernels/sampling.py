"""The next token of every row, chosen on the device: settings by slot, no host in the loop, any mix of rows.

The arithmetic is that of runtime/sampling.py, in float32. Two launches. `_survey` reads the logits once, a program
per few tiles of 1024 tokens: penalties, bias, held stop ids and masks are applied; each tile leaves its peak, its
winner (greedy: the peak; unfiltered: the largest gap + noise) or, for filtered rows, its mass and its crests.
`_choose`, one program per row, picks among the tiles or asks kernels/filtering.py, and writes the token.

What a tile leaves does not depend on how tiles are spread over programs, so a token does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference_sampling
from headrace.kernels import settings as words
from headrace.kernels.cases import WIDTHS, Case
from headrace.kernels.filtering import draw_filtered, keys_of, value_of
from headrace.kernels.gumbel import NO_TOKEN, RACE_SLACK, arrive, gumbel, race, row_words, token_words

TILE = 1024
SPAN = 64  # tokens under one crest
ROOM = 4096  # gathered candidates of a filtered row that stay in registers
CHUNK = 2048  # tokens at a time where a filtered row has more candidates than that

# Tuned. (rows, tiles per program) up to so many rows: few rows need many programs, many rows can spare them. The
# warps are the same for every number of rows: the order in which a tile's mass is summed depends on them.
STEPS = ((4, 1), (16, 2), (None, 4))
SURVEY_WARPS = 2
CHOOSE_WARPS = 8  # 128 registers a thread: two rows to a multiprocessor

_FLAGS = tl.constexpr(words.FLAGS)
_TEMPERATURE = tl.constexpr(words.TEMPERATURE)
_TOP_K = tl.constexpr(words.TOP_K)
_LOG_MIN_P = tl.constexpr(words.LOG_MIN_P)
_TOP_P = tl.constexpr(words.TOP_P)
_SEED = tl.constexpr(words.SEED)
_FIRST_FREE = tl.constexpr(words.FIRST_FREE)
_REPETITION = tl.constexpr(words.REPETITION_PENALTY)
_FREQUENCY = tl.constexpr(words.FREQUENCY_PENALTY)
_PRESENCE = tl.constexpr(words.PRESENCE_PENALTY)
_STOP_COUNT = tl.constexpr(words.STOP_COUNT)
_BIAS_COUNT = tl.constexpr(words.BIAS_COUNT)
_STOP_IDS = tl.constexpr(words.STOP_IDS)
_BIAS_IDS = tl.constexpr(words.BIAS_IDS)
_BIASES = tl.constexpr(words.BIASES)
_WIDTH = tl.constexpr(words.SETTINGS_WIDTH)
_GREEDY = tl.constexpr(words.GREEDY)
_FILTERED = tl.constexpr(words.FILTERED)
_PENALISED = tl.constexpr(words.PENALISED)
_BIASED = tl.constexpr(words.BIASED)
_MASKED = tl.constexpr(words.MASKED)
_LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True)
class SamplingScratch:
    """Device memory between the two launches, for up to `rows` rows of V logits; nothing in it outlives a call.

    By tile, [rows, tiles]: peaks float32 (highest adjusted logit; +inf for a tile with a NaN or +inf), winners
    int32, masses float32 (of filtered rows). By crest, [rows, crests]: crests float32, spots int32. gaps float32
    and tokens int32 [rows, room]: gathered candidates. work float32 [rows, V]: adjusted logits of the rows that are
    not greedy and that penalties, bias or held stop ids have changed.
    """

    peaks: Tensor
    winners: Tensor
    masses: Tensor
    crests: Tensor
    spots: Tensor
    gaps: Tensor
    tokens: Tensor
    work: Tensor


def scratch(rows: int, vocab: int, device: torch.device | str, room: int = ROOM) -> SamplingScratch:
    """Memory for `sample` with at most `rows` rows. `room`: a power of two, at least SPAN."""
    assert rows >= 1 and vocab >= 1 and room >= SPAN and room & (room - 1) == 0
    tiles, crests = triton.cdiv(vocab, TILE), triton.cdiv(vocab, SPAN)

    def empty(width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, width, dtype=dtype, device=device)

    return SamplingScratch(
        peaks=empty(tiles, torch.float32),
        winners=empty(tiles, torch.int32),
        masses=empty(tiles, torch.float32),
        crests=empty(crests, torch.float32),
        spots=empty(crests, torch.int32),
        gaps=empty(room, torch.float32),
        tokens=empty(room, torch.int32),
        work=empty(vocab, torch.float32),
    )


def sample(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    settings: Tensor,
    history: Tensor,
    masks: Tensor,
    space: SamplingScratch,
    tokens_out: Tensor,
    last_tokens: Tensor,
) -> None:
    """tokens_out[r] and last_tokens[slots[r]] become the token chosen from logits[r]; its history cell grows by 1.

    logits: float32, bfloat16 or float16 [R, V], the last dim contiguous, left as they were. slots: int32 [R],
    distinct; -1 is padding: nothing is read or written for the row. positions: int32 or int64 [R], the index of the
    token being chosen, below 2**31 - 1. settings: int32 [S, SETTINGS_WIDTH]. history: int32 [S, V]. masks: int32
    [S, mask_words(V)]. tokens_out: int32 [R]. last_tokens: int64 [S].

    A row that holds a NaN, a +inf or no finite logit, or has none left after masking, writes -1 to tokens_out and 0
    to last_tokens and leaves its history alone. Other rows do not notice.
    """
    rows, vocab = logits.shape
    slot_count = settings.shape[0]
    room = space.gaps.shape[1]
    assert logits.stride(1) == 1 or vocab == 1
    assert logits.dtype in (torch.float32, torch.bfloat16, torch.float16), logits.dtype
    assert slots.shape == positions.shape == tokens_out.shape == (rows,)
    assert slots.dtype == tokens_out.dtype == torch.int32 and positions.dtype in (torch.int32, torch.int64)
    assert slots.is_contiguous() and positions.is_contiguous() and tokens_out.is_contiguous()
    assert settings.shape == (slot_count, words.SETTINGS_WIDTH) and settings.dtype == torch.int32
    assert history.shape == (slot_count, vocab) and history.dtype == torch.int32
    assert masks.shape == (slot_count, words.mask_words(vocab)) and masks.dtype == torch.int32
    assert settings.is_contiguous() and history.is_contiguous() and masks.is_contiguous()
    assert last_tokens.shape == (slot_count,) and last_tokens.dtype == torch.int64
    assert rows <= space.work.shape[0] and space.work.shape[1] == vocab, "scratch is made for this vocabulary"
    tiles, crests = triton.cdiv(vocab, TILE), triton.cdiv(vocab, SPAN)
    steps = next(steps for most, steps in STEPS if most is None or rows <= most)
    common = (logits, logits.stride(0), slots, positions, settings, history)
    _survey[(triton.cdiv(tiles, steps), rows)](
        *common, masks, masks.stride(0), space.peaks, space.winners, space.masses, space.crests, space.work,
        vocab, tiles, crests, steps, TILE=TILE, SPAN=SPAN,
        num_warps=SURVEY_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    _choose[(rows,)](
        *common, space.peaks, space.winners, space.masses, space.crests, space.spots, space.gaps, space.tokens,
        space.work, tokens_out, last_tokens,
        vocab, tiles, crests, TILE_SPAN=max(16, triton.next_power_of_2(tiles)),
        CREST_SPAN=max(256, triton.next_power_of_2(crests)), ROOM=room, CHUNK=CHUNK,
        num_warps=CHOOSE_WARPS, maxnreg=128, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _float(row, word):
    return tl.load(row + word).to(tl.float32, bitcast=True)


@triton.jit
def _unsigned(row, word):
    return tl.load(row + word).to(tl.uint32, bitcast=True)


@triton.jit
def _first_from(ids, count, bound):
    """How many of the `count` ascending ids lie below `bound`."""
    low = count * 0
    high = count
    while low < high:
        middle = (low + high) // 2
        below = tl.load(ids + middle) < bound
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def _adjusted(x, token, start, row, cells, allowed, flags, held, vocab, TILE: tl.constexpr):
    """The logits x of the tokens of one tile after penalties, bias, held stop ids and mask, in that order."""
    if (flags & _PENALISED) != 0:
        cell = tl.load(cells + token, mask=token < vocab, other=0)
        factor = _float(row, _REPETITION)
        times = tl.maximum(cell - 1, 0).to(tl.float32)
        y = tl.where(x > 0.0, tl.div_rn(x, tl.zeros_like(x) + factor), x * factor)
        y = y - _float(row, _FREQUENCY) * times
        y = y - _float(row, _PRESENCE) * (times > 0.0).to(tl.float32)
        # A penalty must not push a finite logit to +inf.
        x = tl.where(cell > 0, tl.minimum(y, 3.4028234663852886e38), x)
    if (flags & _BIASED) != 0:
        count = tl.load(row + _BIAS_COUNT)
        at = _first_from(row + _BIAS_IDS, count, start)
        behind = _first_from(row + _BIAS_IDS, count, start + TILE)
        while at < behind:
            x = tl.where(token == tl.load(row + _BIAS_IDS + at), x + _float(row + at, _BIASES), x)
            at += 1
    if held:
        count = tl.load(row + _STOP_COUNT)
        at = _first_from(row + _STOP_IDS, count, start)
        behind = _first_from(row + _STOP_IDS, count, start + TILE)
        while at < behind:
            x = tl.where(token == tl.load(row + _STOP_IDS + at), float("-inf"), x)
            at += 1
    if (flags & _MASKED) != 0:
        word = tl.load(allowed + token // 32, mask=token < vocab, other=0)
        x = tl.where(((word >> (token % 32)) & 1) != 0, x, float("-inf"))
    return x


@triton.jit(do_not_specialize=["tiles", "crest_count", "steps"])
def _survey(
    logits, logits_stride, slots, positions, settings, history, masks, masks_stride,
    peaks, winners, masses, crests, work, vocab, tiles, crest_count, steps, TILE: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + r)
    if slot >= 0:
        row = settings + slot.to(tl.int64) * _WIDTH
        cells = history + slot.to(tl.int64) * vocab
        source = logits + r * logits_stride
        position = tl.load(positions + r)
        flags = tl.load(row + _FLAGS)
        temperature = _float(row, _TEMPERATURE)
        held = position < tl.load(row + _FIRST_FREE)
        allowed = masks + slot.to(tl.int64) * masks_stride
        changed = held | ((flags & (_PENALISED | _BIASED | _MASKED)) != 0)
        # Four neighbours to a thread, as Philox gives their words: nothing moves between threads.
        lane = tl.arange(0, TILE // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
        first = tl.program_id(0) * steps
        none = float("-inf")
        # Three tiles are under way while one is worked on.
        start = first * TILE
        end = tl.minimum(vocab, start + steps * TILE)
        ahead_0 = tl.load(source + start + lane, mask=start + lane < end, other=none)
        ahead_1 = tl.load(source + start + TILE + lane, mask=start + TILE + lane < end, other=none)
        ahead_2 = tl.load(source + start + 2 * TILE + lane, mask=start + 2 * TILE + lane < end, other=none)
        for step in range(steps):
            tile = first + step
            start = tile * TILE
            token = start + lane
            x = ahead_0.to(tl.float32)
            ahead_0 = ahead_1
            ahead_1 = ahead_2
            ahead_2 = tl.load(source + 3 * TILE + token, mask=token + 3 * TILE < end, other=none)
            sound = x < float("inf")
            if changed:
                x = _adjusted(x, token, start, row, cells, allowed, flags, held, vocab, TILE)
            x = tl.where(
                sound, x, float("inf")
            )  # a NaN or a +inf shows in the peak, whatever has been done to it
            peak = tl.max(x)
            winner = start
            if (flags & _GREEDY) != 0:
                winner = tl.min(tl.where(x == peak, token, NO_TOKEN))
            else:
                if changed:
                    tl.store(work + r * vocab + token, x, mask=token < vocab)
                shift = tl.where(peak > float("-inf"), peak, 0.0)
                if (flags & _FILTERED) != 0:
                    mass = tl.sum(tl.exp2((x - shift) * (_LOG2_E / temperature)))
                    tl.store(masses + r * tiles + tile, mass, mask=tile < tiles)
                    crest = tl.max(tl.reshape(x, [TILE // SPAN, SPAN]), 1)
                    at = tile * (TILE // SPAN) + tl.arange(0, TILE // SPAN)
                    tl.store(crests + r * crest_count + at, crest, mask=at < crest_count)
                elif (peak > float("-inf")) & (peak < float("inf")):
                    winner = _first_of_tile(
                        x, token, start, shift, temperature, position.to(tl.uint32),
                        _unsigned(row, _SEED), _unsigned(row, _SEED + 1), TILE,
                    )  # fmt: skip
            if tile < tiles:
                tl.store(peaks + r * tiles + tile, peak)
                tl.store(winners + r * tiles + tile, winner)


@triton.jit
def _first_of_tile(x, token, start, shift, temperature, position, seed_low, seed_high, TILE: tl.constexpr):
    """The token of one tile with the largest gap + noise, the lowest id of those that tie."""
    word = tl.reshape(row_words(start, position, seed_low, seed_high, TILE), [TILE // 4, 4])
    least, most = race(x, word, shift, temperature)
    able = (least <= tl.min(most) * RACE_SLACK) & (least < float("inf"))
    # One sum tells how many are able and, if it is one, which. Few tiles have two.
    ballot = tl.sum(tl.where(able, (1 << 20) + token - start, 0))
    winner = start + (ballot & ((1 << 20) - 1))
    if (ballot >> 20) > 1:
        best = shift * 0.0 + float("-inf")
        _, winner = arrive(x, token, able, shift, temperature, position, seed_low, seed_high, best, winner)
    return winner


@triton.jit(do_not_specialize=["tiles", "crest_count"])
def _choose(
    logits, logits_stride, slots, positions, settings, history,
    peaks, winners, masses, crests, spots, gaps_at, tokens_at, work, tokens_out, last_tokens,
    vocab, tiles, crest_count,
    TILE_SPAN: tl.constexpr, CREST_SPAN: tl.constexpr, ROOM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + r)
    # Of a padded row this is whatever an earlier call left: not used, but asked for before the slot is known.
    tile = tl.arange(0, TILE_SPAN)
    peak_of = tl.load(peaks + r * tiles + tile, mask=tile < tiles, other=float("-inf"))
    winner_of = tl.load(winners + r * tiles + tile, mask=tile < tiles, other=NO_TOKEN)
    if slot >= 0:
        row = settings + slot.to(tl.int64) * _WIDTH
        position = tl.load(positions + r)
        flags = tl.load(row + _FLAGS)
        temperature = _float(row, _TEMPERATURE)
        seed_low = _unsigned(row, _SEED)
        seed_high = _unsigned(row, _SEED + 1)
        source = logits + r * logits_stride
        changed_row = work + r * vocab
        held = position < tl.load(row + _FIRST_FREE)
        adjusted = (held | ((flags & (_PENALISED | _BIASED | _MASKED)) != 0)).to(tl.int32)
        peak = tl.max(peak_of)
        token = -1
        if (peak > float("-inf")) & (peak < float("inf")):
            if (flags & _GREEDY) != 0:
                token = tl.min(tl.where(peak_of == peak, winner_of, NO_TOKEN))
            elif (flags & _FILTERED) == 0:
                x = value_of(source, changed_row, winner_of, tile < tiles, adjusted)
                gaps = tl.div_rn(x - peak, tl.zeros_like(x) + temperature)
                sums = gaps + gumbel(token_words(winner_of, position.to(tl.uint32), seed_low, seed_high))
                token = tl.min(tl.where(sums == tl.max(sums), winner_of, NO_TOKEN))
            else:
                weights = tl.exp(tl.div_rn(peak_of - peak, tl.zeros_like(peak_of) + temperature))
                mass_of = tl.load(masses + r * tiles + tile, mask=tile < tiles, other=0.0)
                total = tl.sum(mass_of * weights.to(tl.float64))
                top_p = (
                    (_unsigned(row, _TOP_P + 1).to(tl.uint64) << 32) | _unsigned(row, _TOP_P).to(tl.uint64)
                ).to(tl.float64, bitcast=True)
                token = draw_filtered(
                    source, changed_row, adjusted, crests + r * crest_count,
                    spots + r * crest_count, gaps_at + r * ROOM, tokens_at + r * ROOM,
                    peak, temperature, position.to(tl.uint32), seed_low, seed_high,
                    tl.load(row + _TOP_K), keys_of(_float(row, _LOG_MIN_P)), top_p, total,
                    vocab, crest_count, CREST_SPAN, ROOM, CHUNK,
                )  # fmt: skip
        tl.store(tokens_out + r, token)
        tl.store(last_tokens + slot, tl.maximum(token, 0).to(tl.int64))
        if (token >= 0) & ((flags & _PENALISED) != 0):
            cell = history + slot.to(tl.int64) * vocab + token
            tl.store(cell, tl.maximum(tl.load(cell), 1) + 1)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Greedy, unfiltered and filtered rows. Normal logits times 4 have the entropy of text (some 50 likely tokens),
    times 1 they are flat: top_p then keeps most of the vocabulary, as it does with random weights."""
    for model, rows in (("qwen3-0.6b", 1), ("qwen3-0.6b", 8), ("qwen3-0.6b", 64), ("qwen3-0.6b", 256),
                        ("llama-3.1-8b", 1), ("llama-3.1-8b", 256)):  # fmt: skip
        vocab = WIDTHS[model]["vocab"]
        for kind, scale in (("greedy", 1.0), ("plain", 4.0), ("top_k top_p", 4.0), ("flat top_p", 1.0)):
            yield _case(f"{model} {kind} rows={rows}", kind, rows, vocab, scale, device, dtype)


def _case(
    name: str, kind: str, rows: int, vocab: int, scale: float, device: torch.device, dtype: torch.dtype
) -> Case:
    settings = torch.zeros(rows, words.SETTINGS_WIDTH, dtype=torch.int32)
    floats = settings.view(torch.float32)
    flags = {"greedy": words.GREEDY, "plain": 0}.get(kind, words.FILTERED)
    top_k, top_p = (50 if kind == "top_k top_p" else 0), (0.95 if "top_p" in kind else 1.0)
    settings[:, words.FLAGS] = flags
    settings[:, words.TOP_K] = top_k
    settings[:, words.SEED] = torch.arange(rows, dtype=torch.int32)
    settings[:, words.TOP_P : words.TOP_P + 2] = torch.tensor([top_p], dtype=torch.float64).view(torch.int32)
    floats[:, words.TEMPERATURE] = 1.0
    floats[:, words.LOG_MIN_P] = -torch.inf
    settings = settings.to(device)
    logits = (torch.randn(rows, vocab, device=device) * scale).to(dtype)
    slots = torch.arange(rows, dtype=torch.int32, device=device)
    positions = torch.full((rows,), 100, dtype=torch.int64, device=device)
    history = torch.zeros(rows, vocab, dtype=torch.int32, device=device)  # no row here reads it, nor a mask
    masks = torch.zeros(rows, words.mask_words(vocab), dtype=torch.int32, device=device)
    space = scratch(rows, vocab, device)
    tokens = torch.empty(rows, dtype=torch.int32, device=device)
    last_tokens = torch.zeros(rows, dtype=torch.int64, device=device)

    def run(_: int) -> Tensor:
        sample(logits, slots, positions, settings, history, masks, space, tokens, last_tokens)
        return tokens

    def twin(_: int) -> Tensor:
        found = torch.empty_like(tokens)
        reference_sampling.sample(logits, slots, positions, settings, history, masks, found, last_tokens)
        return found

    def peer(_: int) -> Tensor:
        """As plain torch is written for a batch: a sort for the filters, then a race of exponentials."""
        if kind == "greedy":
            return logits.argmax(-1)
        wide = logits.float()
        if flags:
            wide, order = wide.sort(descending=True)
            if top_k:
                wide[:, top_k:] = -torch.inf
            masses = wide.softmax(-1)
            masses = masses.masked_fill(masses.cumsum(-1) - masses > top_p, 0.0)
            return order.gather(
                1, (masses / torch.empty_like(masses).exponential_()).argmax(-1, keepdim=True)
            )
        masses = wide.softmax(-1)
        return (masses / torch.empty_like(masses).exponential_()).argmax(-1)

    return Case(
        name=name,
        run=run,
        twin=twin if rows == 1 else None,  # row after row, values read back: one row is enough to wait for
        peer=peer,
        bytes=logits.numel() * logits.element_size(),
        flops=logits.numel(),
    )
