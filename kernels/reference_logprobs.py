"""The plain-torch twin of kernels/logprobs.py, and what the CPU engine runs: logprobs of given tokens and of
the most likely ones, from rows of logits."""

from __future__ import annotations

import torch
from torch import Tensor


def logprobs(logits: Tensor, targets: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values [R], ids [R, top], tops [R, top]) of log_softmax(logits[r]) in float32.

    logits: [R, V], any float dtype. targets: integers [R], in [0, V). values[r] is that of targets[r]; ids[r]
    are the most likely tokens, best first, ties by the lowest id, int32, and tops[r] theirs. All come from
    one subtraction per row, so a target among ids has the same bits in both."""
    rows, vocab = logits.shape
    assert targets.shape == (rows,) and 0 <= top <= vocab, (targets.shape, top)
    wide = logits.float()
    peak = wide.amax(-1, keepdim=True)
    total = (wide - peak).exp().sum(-1, keepdim=True).log()
    values = wide.gather(1, targets.long()[:, None]).sub_(peak).sub_(total)[:, 0]
    # Which of equal values `topk` keeps is nobody's promise, so it only says down to where they reach.
    ids = torch.empty(rows, top, dtype=torch.int32, device=logits.device)
    if not top:
        return values, ids, wide.new_empty(rows, 0)
    least = wide.topk(top, -1).values[:, -1]
    for row in range(rows):
        able = (wide[row] >= least[row]).nonzero()[:, 0]
        ranked = wide[row, able].sort(descending=True, stable=True).indices[:top]
        ids[row, : len(ranked)] = able[ranked].int()
        ids[row, len(ranked) :] = 0  # a row with a NaN has no ranks
    return values, ids, wide.gather(1, ids.long()).sub_(peak).sub_(total)
