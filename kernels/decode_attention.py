"""Attention of decode rows over the paged KV slab: one query token per row, cut into splits that run side by side.

A fixed number of programs loops over the items that `attention_work.plan_work` listed on the device, so that one
captured launch serves every mix of lengths. The query heads of a kv head are computed together: keys and values are
read once. Rows of several splits are combined by whichever program finishes last, always in the order of splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels.attention_work import FIELDS
from headrace.kernels.cases import Case
from headrace.kernels.rope_store import check_norms, check_turning, partner, rotation
from headrace.kernels.store_kv import check_pages

LOG2E = 1.4426950408889634
DOT_ROWS = 16  # the fewest rows a matrix instruction takes


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """block: tokens per inner step. use_dot: matrix instructions with the group's heads padded to 16 rows, else
    multiply and add. programs: how many programs each multiprocessor should be given."""

    block: int
    warps: int
    stages: int
    use_dot: bool = True
    programs: int = 2

    @property
    def registers(self) -> int:
        """What a thread may use so that all programs of a multiprocessor really run side by side."""
        return min(255, 65536 // (self.programs * self.warps * 32) // 8 * 8)


@dataclass(frozen=True, slots=True)
class DecodeCut:
    """How steps of up to `rows` rows are computed: a row is cut at multiples of `split` tokens (see plan_work).

    Few rows want many pieces, which fill the card; many rows fill it anyway, and each piece costs its hand-over."""

    rows: int
    split: int
    tuning: DecodeTuning


MOST_SPLITS = 16  # pieces of one row; longer rows are cut into longer pieces
ANY = 1 << 30

# By (head size up to, bytes of an element), fewest rows first. float32 is there for exactness, not for speed.
CUTS: dict[tuple[int, int], tuple[DecodeCut, ...]] = {
    (64, 2): (
        DecodeCut(4, 64, DecodeTuning(64, 4, 3, programs=2)),
        DecodeCut(16, 128, DecodeTuning(64, 4, 3, programs=4)),
        DecodeCut(ANY, 1024, DecodeTuning(64, 4, 3, programs=4)),
    ),
    # Measured on an H200 at 256 to 1024 tokens a row: bench/results/notes-h200.md.
    (128, 2): (
        DecodeCut(4, 64, DecodeTuning(64, 4, 3, programs=1)),
        DecodeCut(16, 128, DecodeTuning(32, 2, 3, programs=4)),
        DecodeCut(ANY, 1024, DecodeTuning(32, 2, 3, programs=4)),
    ),
    (256, 2): (DecodeCut(ANY, 128, DecodeTuning(32, 4, 2)),),
    (64, 4): (DecodeCut(ANY, 128, DecodeTuning(32, 4, 1)),),
    (128, 4): (DecodeCut(ANY, 128, DecodeTuning(32, 4, 1)),),
    (256, 4): (DecodeCut(ANY, 128, DecodeTuning(16, 4, 1)),),
}


def cut_for(head_dim: int, dtype: torch.dtype, rows: int) -> DecodeCut:
    """The table's entry for heads of this size, up to 256 elements, and this many rows."""
    most = next(size for size in (64, 128, 256) if head_dim <= size)
    return next(cut for cut in CUTS[most, dtype.itemsize] if rows <= cut.rows)


def tuning_for(head_dim: int, dtype: torch.dtype, rows: int = 1) -> DecodeTuning:
    """The tuning of `cut_for`."""
    return cut_for(head_dim, dtype, rows).tuning


class DecodeScratch(NamedTuple):
    """What programs hand to each other within one launch; every launch of a step can use the same.

    outs float32 [items, H, D], sums float32 [items, H, 2] (maximum and sum of a split); arrivals int32 [R, G], zero
    between launches: the kernel leaves it so.
    """

    outs: Tensor
    sums: Tensor
    arrivals: Tensor


def scratch_for(
    rows: int, most_splits: int, heads: int, kv_heads: int, head_dim: int, device: torch.device
) -> DecodeScratch:
    """Scratch for up to `rows` rows of up to `most_splits` splits each."""
    items = rows * most_splits
    return DecodeScratch(
        torch.empty(items, heads, head_dim, dtype=torch.float32, device=device),
        torch.empty(items, heads, 2, dtype=torch.float32, device=device),
        torch.zeros(rows, kv_heads, dtype=torch.int32, device=device),
    )


def decode_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    items: Tensor,
    count: Tensor,
    scratch: DecodeScratch,
    out: Tensor,
    scale: float,
    programs: int,
    tuning: DecodeTuning | None = None,
    *,
    pdl: bool = False,
) -> None:
    """out[r] is the attention of row r's query over the tokens that its items list, its newest one included.

    query [R, H, D], keys and values of all tokens stored already; key_pages, value_pages [P, page_size, G, D];
    page_table int32 [S, pages per slot]; items and count from plan_work for these R rows (its window is applied
    there); out [R, H * D], rows without items are not written. `programs` is the grid; it changes no result.
    `pdl`: start before the launch ahead has ended, and wait for it only where queries are read. plan_work must be
    over by then: it is, as it never lets the next launch start early.
    """
    assert query.is_contiguous()
    rows, heads, head_dim = query.shape
    _launch(
        query.view(rows, heads * head_dim), heads, None, None, None, 0.0, 1.0, key_pages, value_pages,
        page_table, items, count, scratch, out, scale, programs, tuning, pdl,
    )  # fmt: skip


def turn_and_attend(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    inv_freq: Tensor,
    attention_factor: float,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    items: Tensor,
    count: Tensor,
    scratch: DecodeScratch,
    out: Tensor,
    scale: float,
    programs: int,
    tuning: DecodeTuning | None = None,
    *,
    shifts: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """What `rope_store` and then `decode_attention` do for rows of one new token each, in one launch.

    qkv [R, (H + 2G) * D], norm weights, inv_freq, attention_factor and shifts as in rope_store; the token's
    position is its row's length - 1. The rest as in decode_attention. Its key and value end up in its cell of the
    pages, which no row reads in this launch: no page of it may be shared.
    """
    check_norms(q_weight, k_weight, inv_freq, key_pages.shape[3])
    kv_heads, head_dim = key_pages.shape[2:]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    assert qkv.shape[1] == (heads + 2 * kv_heads) * head_dim and qkv.stride(1) == 1, qkv.shape
    check_turning(shifts, None, None, len(qkv), page_table, head_dim)
    _launch(
        qkv, heads, q_weight, k_weight, inv_freq, eps, attention_factor, key_pages, value_pages, page_table,
        items, count, scratch, out, scale, programs, tuning, pdl, shifts,
    )  # fmt: skip


def _launch(
    query: Tensor,
    heads: int,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    inv_freq: Tensor | None,
    eps: float,
    attention_factor: float,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    items: Tensor,
    count: Tensor,
    scratch: DecodeScratch,
    out: Tensor,
    scale: float,
    programs: int,
    tuning: DecodeTuning | None,
    pdl: bool,
    shifts: Tensor | None = None,
) -> None:
    kv_heads, head_dim = key_pages.shape[2:]
    _check(key_pages, value_pages, page_table, items, count, scratch, out, len(query), heads, head_dim)
    assert query.dtype == key_pages.dtype
    tuning = tuning or tuning_for(head_dim, query.dtype, len(query))
    group = heads // kv_heads
    pdl = pdl and query.is_cuda
    _decode[(programs,)](
        query, q_weight, k_weight, inv_freq, eps, attention_factor, shifts,
        key_pages, value_pages, page_table, items, count, *scratch, out,
        len(items), scale * LOG2E, query.stride(0),
        key_pages.stride(0), key_pages.stride(1), key_pages.stride(2), page_table.stride(0),
        page_size=key_pages.shape[1], kv_heads=kv_heads, group=group, head_dim=head_dim,
        use_dot=tuning.use_dot, block=tuning.block, block_dim=triton.next_power_of_2(head_dim),
        block_group=triton.next_power_of_2(group), stages=tuning.stages, pdl=pdl,
        num_warps=tuning.warps, maxnreg=tuning.registers, launch_pdl=pdl,
    )  # fmt: skip


def _check(
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    items: Tensor,
    count: Tensor,
    scratch: DecodeScratch,
    out: Tensor,
    rows: int,
    heads: int,
    head_dim: int,
) -> None:
    check_pages(key_pages, value_pages, page_table)
    kv_heads = key_pages.shape[2]
    assert key_pages.shape[3] == head_dim and heads % kv_heads == 0, (key_pages.shape, heads)
    assert out.shape == (rows, heads * head_dim) and out.is_contiguous() and out.dtype == key_pages.dtype
    assert items.dtype == count.dtype == torch.int32 and items.is_contiguous() and count.shape == (1,)
    assert items.ndim == 2 and items.shape[1] == FIELDS
    outs, sums, arrivals = scratch
    assert outs.shape[0] >= items.shape[0] and outs.shape[1:] == (heads, head_dim) and outs.is_contiguous()
    assert sums.shape == (outs.shape[0], heads, 2) and sums.is_contiguous()
    assert outs.dtype == sums.dtype == torch.float32
    assert arrivals.shape[0] >= rows and arrivals.shape[1] == kv_heads and arrivals.is_contiguous()
    assert arrivals.dtype == torch.int32


@triton.jit
def _scores(query, keys, use_dot: tl.constexpr):
    """[heads, tokens] float32 from query [heads, D] and keys [tokens, D]."""
    if use_dot:
        return tl.dot(query, tl.trans(keys), input_precision="ieee")
    return tl.sum(query[:, None, :].to(tl.float32) * keys[None, :, :].to(tl.float32), 2)


@triton.jit
def _weighted(weights, values, use_dot: tl.constexpr):
    """[heads, D] float32 from weights [heads, tokens] and values [tokens, D]."""
    if use_dot:
        return tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return tl.sum(weights[:, :, None] * values[None, :, :].to(tl.float32), 1)


@triton.jit
def _attend(
    query, peak, total, acc,
    key_pages, value_pages, table, begin, end, scale,
    page_stride, cell_stride,
    page_size: tl.constexpr, head_dim: tl.constexpr, block: tl.constexpr, block_dim: tl.constexpr,
    use_dot: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Online softmax over tokens [begin, end) of one slot: `table` is its row of the page table, the pages are
    already those of one kv head. peak and total [heads], acc [heads, D] come in and go out; scale includes log2(e).
    """
    dims = tl.arange(0, block_dim)
    lanes = tl.arange(0, block)
    # Inner steps are aligned, so that a step of no more than a page reads one contiguous piece of it. Page numbers
    # come one step ahead, so that keys and values wait for no other load.
    first = begin // block * block
    if block <= page_size:
        pages = tl.load(table + first // page_size)
    else:
        pages = tl.load(table + (first + lanes) // page_size, mask=first + lanes < end, other=0)
    for start in tl.range(first, end, block, num_stages=stages):
        tokens = start + lanes
        real = (tokens >= begin) & (tokens < end)
        if block <= page_size:
            cell = (
                (tokens % page_size)[:, None] * cell_stride + dims[None, :] + pages.to(tl.int64) * page_stride
            )
            pages = tl.load(table + (start + block) // page_size, mask=start + block < end, other=0)
        else:
            cell = (pages.to(tl.int64) * page_stride + (tokens % page_size) * cell_stride)[:, None] + dims[
                None, :
            ]
            pages = tl.load(table + (tokens + block) // page_size, mask=tokens + block < end, other=0)
        inside = real[:, None]
        if block_dim != head_dim:
            inside = inside & (dims < head_dim)[None, :]
        keys = tl.load(key_pages + cell, mask=inside, other=0.0)
        values = tl.load(value_pages + cell, mask=inside, other=0.0)
        scores = tl.where(real[None, :], _scores(query, keys, use_dot) * scale, float("-inf"))
        # Every step holds a real token, so the new peak is a number.
        higher = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp2(peak - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None] + _weighted(weights, values, use_dot)
        peak = higher
    return peak, total, acc


@triton.jit
def _approach(
    key_pages, value_pages, table, begin, end, page_stride, cell_stride,
    page_size: tl.constexpr, head_dim: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """Ask for the first `ahead` tokens' keys and values without waiting for them. Only a hint: nothing is read."""
    line: tl.constexpr = 1024 // key_pages.dtype.element_ty.primitive_bitwidth  # elements in 128 bytes
    lines: tl.constexpr = (head_dim + line - 1) // line
    # There is no mask: tokens past the end ask for the last one again.
    tokens = tl.minimum(begin + tl.arange(0, ahead), end - 1)
    pages = tl.load(table + tokens // page_size).to(tl.int64)
    cells = pages * page_stride + (tokens % page_size) * cell_stride
    for part in tl.static_range(lines):
        for side in tl.static_range(2):
            at = (key_pages if side == 0 else value_pages) + cells + part * line
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; // $0", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
            )


@triton.jit
def _settle(
    peak, total, acc, outs, sums, arrivals, out, item, row, head, first_item, splits,
    kv_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr,
    block_heads: tl.constexpr, block_group: tl.constexpr, block_dim: tl.constexpr,
):  # fmt: skip
    """Write one split's result: to `out` if the row has no other split, else to scratch, and if all the others are
    there already, their combination to `out`."""
    heads: tl.constexpr = kv_heads * group
    member = tl.arange(0, block_heads)
    dims = tl.arange(0, block_dim)
    inside = (member < group)[:, None] & (dims < head_dim)[None, :]
    mine = head * group + member
    if splits == 1:
        found = acc / total[:, None]
        place = (row.to(tl.int64) * heads + mine)[:, None] * head_dim + dims[None, :]
        tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)
    else:
        line = item.to(tl.int64) * heads + mine
        tl.store(outs + line[:, None] * head_dim + dims[None, :], acc, mask=inside)
        tl.store(sums + line * 2, peak, mask=member < group)
        tl.store(sums + line * 2 + 1, total, mask=member < group)
        # All threads' stores come before the one thread's release, and its acquire before all threads' loads.
        tl.debug_barrier()
        counter = arrivals + row * kv_heads + head
        if tl.atomic_add(counter, 1, sem="acq_rel") == splits - 1:
            _combine(
                outs,
                sums,
                out,
                row,
                head,
                first_item,
                splits,
                kv_heads,
                group,
                head_dim,
                block_group,
                block_dim,
            )
            tl.store(counter, 0)  # nobody else looks at it before the next launch


@triton.jit
def _combine(
    outs, sums, out, row, head, first_item, splits,
    kv_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr,
    block_group: tl.constexpr, block_dim: tl.constexpr,
):  # fmt: skip
    """One row and kv head from all its splits, in their order. Several at a time: their loads wait together."""
    heads: tl.constexpr = kv_heads * group
    several: tl.constexpr = max(1, min(16, 4096 // (block_group * block_dim)))
    member = tl.arange(0, block_group)
    dims = tl.arange(0, block_dim)
    peak = tl.full((block_group,), float("-inf"), tl.float32)
    total = tl.zeros((block_group,), tl.float32)
    acc = tl.zeros((block_group, block_dim), tl.float32)
    mine = head * group + member
    for start in range(0, splits, several):
        split = start + tl.arange(0, several)
        line = (first_item + split).to(tl.int64)[:, None] * heads + mine[None, :]
        real = (split < splits)[:, None] & (member < group)[None, :]
        # Read past the first cache, which may hold what the last layer left at these addresses.
        peaks = tl.load(sums + line * 2, mask=real, other=float("-inf"), cache_modifier=".cg")
        totals = tl.load(sums + line * 2 + 1, mask=real, other=0.0, cache_modifier=".cg")
        parts = tl.load(
            outs + line[:, :, None] * head_dim + dims[None, None, :],
            mask=real[:, :, None] & (dims < head_dim)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        higher = tl.maximum(peak, tl.max(peaks, 0))
        higher = tl.where(member < group, higher, 0.0)  # padded heads have no peak: keep them numbers
        fade = tl.exp2(peak - higher)
        weights = tl.exp2(peaks - higher[None, :])
        total = total * fade + tl.sum(totals * weights, 0)
        acc = acc * fade[:, None] + tl.sum(parts * weights[:, :, None], 0)
        peak = higher
    found = acc / tl.where(member < group, total, 1.0)[:, None]
    place = (row.to(tl.int64) * heads + mine)[:, None] * head_dim + dims[None, :]
    inside = (member < group)[:, None] & (dims < head_dim)[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turned(x, y, x_weight, y_weight, rms, cos, sin):
    """Heads x [..., D] normalised with `rms` and rotated; y is x with its halves swapped, rms None for no norm."""
    if rms is not None:
        kind = x.dtype
        x = (x.to(tl.float32) * rms).to(kind) * x_weight
        y = (y.to(tl.float32) * rms).to(kind) * y_weight
    return x.to(tl.float32) * cos + y.to(tl.float32) * sin


@triton.jit
def _item(items, work, room, kv_heads: tl.constexpr):
    """The record of one piece of work: row, slot, first token, end, first item of the row, its items, its length.
    Anything where nothing was planned; `room` records can be read."""
    there = work < room * kv_heads
    record = items + (work // kv_heads) * 8
    return (
        tl.load(record, mask=there, other=0),
        tl.load(record + 1, mask=there, other=0),
        tl.load(record + 2, mask=there, other=0),
        tl.load(record + 3, mask=there, other=0),
        tl.load(record + 4, mask=there, other=0),
        tl.load(record + 5, mask=there, other=0),
        tl.load(record + 6, mask=there, other=0),
    )


@triton.jit(do_not_specialize=["room", "table_stride"])
def _decode(
    query, q_weight, k_weight, inv_freq, eps, attention_factor, shifts,
    key_pages, value_pages, page_table, items, count, outs, sums, arrivals, out,
    room, scale, query_stride,
    page_stride, cell_stride, head_stride, table_stride,
    page_size: tl.constexpr, kv_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr,
    use_dot: tl.constexpr, block: tl.constexpr, block_dim: tl.constexpr, block_group: tl.constexpr,
    stages: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """With inv_freq, `query` holds whole qkv rows of new tokens, not yet turned or stored; else ready queries."""
    block_heads: tl.constexpr = max(block_group, 16) if use_dot else block_group
    member = tl.arange(0, block_heads)
    dims = tl.arange(0, block_dim)
    wide = dims < head_dim
    inside = (member < group)[:, None] & wide[None, :]
    # An item is read while the one before is computed, and the first before it is known that there is one.
    todo = tl.load(count) * kv_heads
    step = tl.num_programs(0)
    next_row, next_slot, next_begin, next_end, next_first, next_splits, next_length = _item(
        items, tl.program_id(0), room, kv_heads
    )
    for work in range(tl.program_id(0), todo, step):
        row, slot, begin, end = next_row, next_slot, next_begin, next_end
        first_item, splits, length = next_first, next_splits, next_length
        next_row, next_slot, next_begin, next_end, next_first, next_splits, next_length = _item(
            items, work + step, room, kv_heads
        )
        item = work // kv_heads
        head = work % kv_heads
        table = page_table + slot.to(tl.int64) * table_stride
        shift = head.to(tl.int64) * head_stride
        own = query + row.to(tl.int64) * query_stride
        mine = own + (head * group + member)[:, None] * head_dim
        position = length - 1
        if pdl:  # noqa: SIM102 - known when compiled; the inner one is not
            # What the launch ahead makes is the query and, at most, the newest token; the others' keys and values
            # are on their way to the second cache while it ends.
            if work == tl.program_id(0):
                _approach(
                    key_pages + shift, value_pages + shift, table, begin, end, page_stride, cell_stride,
                    page_size, head_dim, 2 * block,
                )  # fmt: skip
        if inv_freq is not None:
            place = position
            if shifts is not None:
                place += tl.load(shifts + slot)
            cos, sin = rotation(place, inv_freq, attention_factor, dims, head_dim)
        if pdl:
            tl.extra.cuda.gdc_wait()
        rows = tl.load(mine + dims[None, :], mask=inside, other=0.0)
        peak = tl.full((block_heads,), float("-inf"), tl.float32)
        total = tl.zeros((block_heads,), tl.float32)
        acc = tl.zeros((block_heads, block_dim), tl.float32)
        if inv_freq is not None:
            swap = partner(dims, head_dim)
            swapped = tl.load(mine + swap[None, :], mask=inside, other=0.0)
            if q_weight is not None:
                square = rows.to(tl.float32) * rows.to(tl.float32)
                rms = tl.rsqrt(tl.sum(square, 1) / head_dim + eps)[:, None]
                straight = tl.load(q_weight + dims, mask=wide, other=0.0)[None, :]
                crossed = tl.load(q_weight + swap, mask=wide, other=0.0)[None, :]
                turned = _turned(rows, swapped, straight, crossed, rms, cos[None, :], sin[None, :])
            else:
                turned = _turned(rows, swapped, None, None, None, cos[None, :], sin[None, :])
            rows = turned.to(rows.dtype)
            # The row's last split holds the new token. Its program makes the key and value and starts its sums with
            # them; the cell itself is nobody's to read, for no other program knows when it has been written.
            if end > position:
                end = position
                new = own + (kv_heads * group + head) * head_dim
                x = tl.load(new + dims, mask=wide, other=0.0)
                y = tl.load(new + swap, mask=wide, other=0.0)
                value = tl.load(new + kv_heads * head_dim + dims, mask=wide, other=0.0)
                if k_weight is not None:
                    key_rms = tl.rsqrt(tl.sum(x.to(tl.float32) * x.to(tl.float32), 0) / head_dim + eps)
                    key_straight = tl.load(k_weight + dims, mask=wide, other=0.0)
                    key_crossed = tl.load(k_weight + swap, mask=wide, other=0.0)
                    key = _turned(x, y, key_straight, key_crossed, key_rms, cos, sin).to(x.dtype)
                else:
                    key = _turned(x, y, None, None, None, cos, sin).to(x.dtype)
                page = tl.load(table + position // page_size).to(tl.int64)
                cell = page * page_stride + (position % page_size) * cell_stride + shift + dims
                tl.store(key_pages + cell, key, mask=wide)
                tl.store(value_pages + cell, value, mask=wide)
                # Padded dims of `cos` are anything but of `rows` are zero.
                product = tl.where(wide, key.to(tl.float32), 0.0)[None, :] * rows.to(tl.float32)
                peak = tl.sum(product, 1) * scale
                total = tl.full((block_heads,), 1.0, tl.float32)
                acc = value.to(tl.float32)[None, :] + tl.zeros((block_heads, block_dim), tl.float32)
        peak, total, acc = _attend(
            rows, peak, total, acc, key_pages + shift, value_pages + shift, table,
            begin, end, scale, page_stride, cell_stride,
            page_size, head_dim, block, block_dim, use_dot, stages,
        )  # fmt: skip
        _settle(
            peak, total, acc, outs, sums, arrivals, out, item, row, head, first_item, splits,
            kv_heads, group, head_dim, block_heads, block_group, block_dim,
        )  # fmt: skip
    if pdl:
        # A program without work must not let this launch end before the one ahead: whoever waits for this one
        # takes it that all before have ended.
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Decode rows with ready queries, and from their qkv rows."""
    from headrace.kernels.attention_cases import decode_cases  # it launches what stands above

    return decode_cases(device, dtype)
