"""What decode attention has to do in one step, cut into equal pieces on the device.

An item is one split of one row: a run of tokens whose attention one program computes, for one kv head at a time.
Splits are fixed in tokens and aligned to the row's own beginning. Their size depends on that row's length alone, so
a row is cut, computed and combined in the same way whatever runs beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.cases import Case

# int32 of one item: row, slot, first token, end, first item of the row, items of the row, length, first page
FIELDS = 8


def work_shape(rows: int, most_splits: int) -> tuple[int, int]:
    """The shape of the int32 tensor that holds the items of any step of up to `rows` rows."""
    return rows * most_splits, FIELDS


def plan_work(
    slots: Tensor,
    lengths: Tensor,
    items: Tensor,
    count: Tensor,
    split: int,
    most_splits: int,
    window: int = 0,
    page_table: Tensor | None = None,
    page_size: int = 0,
) -> None:
    """items[:count] are the step's items in order of rows; what lies behind them is left as it was.

    slots, lengths int32 [R]; a row of slot -1 or length 0 has no item. items int32 [>= R * most_splits, FIELDS],
    count int32 [1]. A row is cut at multiples of `split` tokens (a power of two), doubled until there are no more
    than `most_splits` (a power of two) pieces. With a `window` only pieces that reach into the newest `window`
    tokens are listed, the first one shortened to it. With page_table int32 [S, pages per slot] an item tells the
    page of its first token, else 0.
    """
    rows = len(slots)
    assert slots.shape == lengths.shape == (rows,) and rows > 0
    assert slots.dtype == lengths.dtype == items.dtype == count.dtype == torch.int32
    assert all(tensor.is_contiguous() for tensor in (slots, lengths, items, count))
    assert items.ndim == 2 and items.shape[1] == FIELDS and items.shape[0] >= rows * most_splits, items.shape
    assert count.shape == (1,) and window >= 0
    assert split.bit_count() == most_splits.bit_count() == 1, (split, most_splits)
    _plan_work[(rows,)](
        slots, lengths, items, count, page_table, 0 if page_table is None else page_table.stride(0), rows,
        page_size=page_size, window=window, shift=split.bit_length() - 1, most_splits=most_splits,
        block_rows=triton.next_power_of_2(rows), num_warps=4 if rows > 64 else 1,
    )  # fmt: skip


@triton.jit
def _pieces(lengths, window: tl.constexpr, shift: tl.constexpr, most_splits: tl.constexpr):
    """log2 of the split size, first token in the window, and number of splits of rows of these lengths."""
    begin = tl.zeros_like(lengths)
    if window > 0:
        begin = tl.maximum(lengths - window, 0)
    shifts = tl.zeros_like(lengths) + shift
    splits = ((lengths + (1 << shifts) - 1) >> shifts) - (begin >> shifts)
    while tl.max(splits, 0) > most_splits:
        shifts = tl.where(splits > most_splits, shifts + 1, shifts)
        splits = ((lengths + (1 << shifts) - 1) >> shifts) - (begin >> shifts)
    return shifts, begin, splits


@triton.jit(do_not_specialize=["rows", "table_stride"])
def _plan_work(
    slots, lengths, items, count, page_table, table_stride, rows,
    page_size: tl.constexpr, window: tl.constexpr, shift: tl.constexpr, most_splits: tl.constexpr,
    block_rows: tl.constexpr,
):  # fmt: skip
    own = tl.program_id(0)
    row = tl.arange(0, block_rows)
    slot = tl.load(slots + row, mask=row < rows, other=-1)
    length = tl.load(lengths + row, mask=(row < rows) & (slot >= 0), other=0)
    shifts, begin, splits = _pieces(length, window, shift, most_splits)
    # Every program adds up the rows before its own: cheaper than a second launch, and no program waits.
    first = tl.sum(tl.where(row < own, splits, 0), 0)
    mine = tl.sum(tl.where(row == own, splits, 0), 0)
    if own == rows - 1:
        tl.store(count, first + mine)
    if mine > 0:
        own_slot = tl.load(slots + own)
        own_length = tl.load(lengths + own)
        own_shift = tl.sum(tl.where(row == own, shifts, 0), 0)
        own_begin = tl.sum(tl.where(row == own, begin, 0), 0)
        index = tl.arange(0, most_splits)
        start = ((own_begin >> own_shift) + index) << own_shift
        target = items + (first + index) * 8
        real = index < mine
        tl.store(target, own + tl.zeros_like(index), mask=real)
        tl.store(target + 1, own_slot + tl.zeros_like(index), mask=real)
        first_token = tl.maximum(start, own_begin)
        tl.store(target + 2, first_token, mask=real)
        tl.store(target + 3, tl.minimum(start + (1 << own_shift), own_length), mask=real)
        tl.store(target + 4, first + tl.zeros_like(index), mask=real)
        tl.store(target + 5, mine + tl.zeros_like(index), mask=real)
        tl.store(target + 6, own_length + tl.zeros_like(index), mask=real)
        page = tl.zeros_like(index)
        if page_table is not None:
            place = own_slot.to(tl.int64) * table_stride + first_token // page_size
            page = tl.load(page_table + place, mask=real, other=0)
        tl.store(target + 7, page, mask=real)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Whatever the model: only rows count."""
    for rows in (1, 64, 256):
        yield _case(rows, device)


def _case(rows: int, device: torch.device) -> Case:
    slots = torch.arange(rows, dtype=torch.int32, device=device)
    lengths = torch.randint(1, 4096, (rows,)).to(device, torch.int32)
    items = torch.zeros(work_shape(rows, 32), dtype=torch.int32, device=device)
    count = torch.zeros(1, dtype=torch.int32, device=device)
    listed = len(reference.plan_work(slots, lengths, 128, 32, 0))
    return Case(
        name=f"rows={rows}",
        run=lambda _: plan_work(slots, lengths, items, count, 128, 32),
        twin=lambda _: reference.plan_work(slots, lengths, 128, 32, 0),
        peer=None,
        bytes=8 * rows + 4 * FIELDS * listed,
        flops=0,
    )
