"""Sampling from device tables in plain torch: the meaning that kernels/sampling.py and kernels/history.py keep.

Row after row, with a sort and sums in float64. Slow, and for CPU tensors or tests only: it reads values back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels import settings as words

_LOW = 0xFFFFFFFF
_LARGEST = torch.finfo(torch.float32).max


def reset(history: Tensor, slot: int, ids: Tensor, cells: Tensor) -> None:
    """history[slot] becomes 0 everywhere, then history[slot, ids[i]] = cells[i]."""
    history[slot] = 0
    history[slot, ids.long()] = cells


def sample(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    settings: Tensor,
    history: Tensor,
    masks: Tensor,
    tokens_out: Tensor,
    last_tokens: Tensor,
) -> None:
    """As kernels.sampling.sample, which takes scratch besides."""
    for r, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        if slot < 0:
            continue
        row = settings[slot].cpu()
        flags = int(row[words.FLAGS])
        token = _choose(logits[r].float().cpu(), position, row, history[slot].cpu(), masks[slot].cpu())
        tokens_out[r] = token
        last_tokens[slot] = max(token, 0)
        if token >= 0 and flags & words.PENALISED:
            history[slot, token] = max(int(history[slot, token]), 1) + 1


def _choose(x: Tensor, position: int, row: Tensor, cells: Tensor, mask: Tensor) -> int:
    floats = row.view(torch.float32)
    flags = int(row[words.FLAGS])
    if not x.max().isfinite():  # a NaN counts as the maximum
        return -1
    if flags & words.PENALISED:
        times = (cells - 1).clamp_min(0).float()
        factor = floats[words.REPETITION_PENALTY]
        y = torch.where(x > 0, x / factor, x * factor)
        y = y - floats[words.FREQUENCY_PENALTY] * times
        y = y - floats[words.PRESENCE_PENALTY] * (times > 0)
        x = torch.where(cells > 0, y.clamp_max(_LARGEST), x)
    if flags & words.BIASED:
        count = int(row[words.BIAS_COUNT])
        ids = row[words.BIAS_IDS : words.BIAS_IDS + count].long()
        x = x.index_add(0, ids, floats[words.BIASES : words.BIASES + count])
    if position < int(row[words.FIRST_FREE]):
        count = int(row[words.STOP_COUNT])
        x = x.index_fill(0, row[words.STOP_IDS : words.STOP_IDS + count].long(), -torch.inf)
    if flags & words.MASKED:
        bits = mask[:, None] >> torch.arange(32, dtype=torch.int32) & 1
        x = x.masked_fill(bits.flatten()[: len(x)] == 0, -torch.inf)
    peak = x.max()
    if not peak.isfinite():
        return -1
    if flags & words.GREEDY:
        return int((x == peak).nonzero()[0])
    gaps = (x - peak) / floats[words.TEMPERATURE]
    keep = torch.ones_like(gaps, dtype=torch.bool)
    if flags & words.FILTERED:
        keep = kept(gaps, row)
    low, high = (int(word) & _LOW for word in row[words.SEED : words.SEED + 2])
    sums = gaps.double() + gumbel(philox_words(low, high, position, torch.arange(len(x))))
    sums[~keep] = -torch.inf
    return int((sums == sums.max()).nonzero()[0])


def kept(gaps: Tensor, row: Tensor) -> Tensor:
    """Which tokens the filters of one settings row keep: bool [V]. gaps: float32, the highest at 0."""
    floats = row.view(torch.float32)
    keep = gaps >= floats[words.LOG_MIN_P]
    top_k = int(row[words.TOP_K])
    if top_k:
        keep &= gaps >= gaps.sort(descending=True).values[top_k - 1]
    top_p = float(row[words.TOP_P : words.TOP_P + 2].view(torch.float64))
    if top_p < 1.0:
        ranked, order = gaps.sort(descending=True, stable=True)
        masses = torch.where(keep[order], ranked.exp(), 0.0).double()
        sums = masses.cumsum(0)
        keep[order] &= sums - masses < top_p * sums[-1]
    return keep


def philox_words(seed_low: int, seed_high: int, position: int, ids: Tensor) -> Tensor:
    """Word id % 4 of Philox4x32-10 of the counter (id // 4, position, 0, 0), per id: int64 in [0, 2**32)."""
    zero = torch.zeros_like(ids)
    c0, c1, c2, c3 = ids >> 2, zero + (position & _LOW), zero, zero
    for turn in range(10):
        key_0 = (seed_low + turn * 0x9E3779B9) & _LOW
        key_1 = (seed_high + turn * 0xBB67AE85) & _LOW
        # Products wrap around in int64; shifted and masked, both halves are still right.
        front, back = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (back >> 32 & _LOW) ^ c1 ^ key_0, (front >> 32 & _LOW) ^ c3 ^ key_1
        c1, c3 = back & _LOW, front & _LOW
    return torch.stack((c0, c1, c2, c3)).gather(0, (ids & 3)[None])[0]


def gumbel(ids_words: Tensor) -> Tensor:
    """-log(-log1p(-v)), v = (word + 0.5) * 2**-32, float64."""
    return -torch.log(-torch.log1p(-(ids_words.double() + 0.5) * 2.0**-32))
