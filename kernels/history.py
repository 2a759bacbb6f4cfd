"""Which tokens each slot has seen, on the device: what penalties read.

`history` is int32 [S, V]. A cell is 0 for a token that the slot has not seen, else 1 + how often the token stands
in its output (so a token of the prompt alone has 1). Rows of slots whose settings name no penalty are never read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CLEAR_BLOCK = 8192
PLACE_BLOCK = 256


def reset(history: Tensor, slot: int, ids: Tensor, cells: Tensor) -> None:
    """history[slot] becomes 0 everywhere, then history[slot, ids[i]] = cells[i]. Two launches, one stream.

    history: int32 [S, V], contiguous. ids, cells: int32 [n], contiguous, ids distinct and in [0, V), but for
    any number of -1, which are skipped; n may be 0.
    """
    slots, width = history.shape
    assert history.dtype == ids.dtype == cells.dtype == torch.int32 and history.is_contiguous()
    assert ids.shape == cells.shape and ids.dim() == 1 and ids.is_contiguous() and cells.is_contiguous()
    assert 0 <= slot < slots, slot
    _clear[(triton.cdiv(width, CLEAR_BLOCK),)](history, slot, V=width, BLOCK=CLEAR_BLOCK, num_warps=8)
    count = ids.numel()
    if count:
        _place[(triton.cdiv(count, PLACE_BLOCK),)](
            history, slot, ids, cells, count, V=width, BLOCK=PLACE_BLOCK, num_warps=4
        )


@triton.jit(do_not_specialize=["slot"])
def _clear(history, slot, V: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = history + tl.cast(slot, tl.int64) * V
    tl.store(row + token, tl.zeros([BLOCK], tl.int32), mask=token < V)


@triton.jit(do_not_specialize=["slot", "count"])
def _place(history, slot, ids, cells, count, V: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(ids + index, mask=index < count, other=-1)
    cell = tl.load(cells + index, mask=index < count, other=0)
    row = history + tl.cast(slot, tl.int64) * V
    tl.store(row + token, cell, mask=(token >= 0) & (token < V))
