"""Set words of an int32 table by place: how grants and page patches reach the device without a copy each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


def write_words(table: Tensor, places: Tensor, values: Tensor) -> None:
    """table[places[i]] = values[i]; a place of -1 is skipped. Places are distinct. All int32, one-dimensional."""
    assert table.dtype == places.dtype == values.dtype == torch.int32
    assert table.is_contiguous() and places.stride() == values.stride() == (1,)
    count = places.numel()
    assert values.numel() == count >= 1
    _write_words[(triton.cdiv(count, BLOCK),)](table, places, values, count, BLOCK=BLOCK, num_warps=2)


@triton.jit(do_not_specialize=["count"])
def _write_words(table, places, values, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + index, mask=index < count, other=-1)
    value = tl.load(values + index, mask=index < count, other=0)
    tl.store(table + place.to(tl.int64), value, mask=place >= 0)
