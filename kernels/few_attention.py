"""Attention of few decode rows: a program for each piece of work, its first keys and values read before it waits.

With few rows a launch is a chain of memory accesses that wait for each other, not a stream of bytes. What earlier
steps have written can be read while the kernel before this one still makes the queries: the piece's record, its
page and a whole block of its keys and values. So this kernel starts early (programmatic dependent launch), has all
of that in registers when the queries are there, and is nearly done by then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels.attention_work import FIELDS
from headrace.kernels.decode_attention import (
    LOG2E,
    DecodeCut,
    DecodeScratch,
    DecodeTuning,
    _attend,
    _item,
    _scores,
    _settle,
    _turned,
    _weighted,
)
from headrace.kernels.rope_store import check_norms, partner, rotation
from headrace.kernels.store_kv import check_pages

# By (head size, bytes of an element), fewest rows first. Measured inside whole steps of a 0.6B on an H200.
FEW: dict[tuple[int, int], tuple[DecodeCut, ...]] = {
    (size, 2): (
        DecodeCut(4, 64, DecodeTuning(64, 4, 1, programs=2)),
        DecodeCut(8, 64, DecodeTuning(64, 2, 1, programs=6)),
        DecodeCut(16, 128, DecodeTuning(64, 2, 1, programs=6)),
    )
    for size in (64, 128)
}


def few_cut(head_dim: int, dtype: torch.dtype, rows: int, page_size: int) -> DecodeCut | None:
    """How so many rows, 1 or more, are computed here; None where decode_attention is the better one."""
    for cut in FEW.get((head_dim, dtype.itemsize), ()):
        if 0 < rows <= cut.rows and cut.tuning.block <= page_size:
            return cut
    return None


def attend_few(
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
    tuning: DecodeTuning,
    *,
    pdl: bool = False,
    lets: bool = False,
) -> None:
    """What decode_attention.turn_and_attend does, with the same arguments, for steps of few items.

    items from plan_work with the page table, count no more than programs / G: a program takes one kv head of one
    item. tuning.block is at most a page, and items begin at multiples of it or inside a block (a window)."""
    check_pages(key_pages, value_pages, page_table)
    kv_heads, head_dim = key_pages.shape[2:]
    check_norms(q_weight, k_weight, inv_freq, head_dim)
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    group = heads // kv_heads
    assert qkv.shape[1] == (heads + 2 * kv_heads) * head_dim and qkv.stride(1) == 1, qkv.shape
    assert qkv.dtype == key_pages.dtype == out.dtype and out.is_contiguous()
    assert out.shape == (len(qkv), heads * head_dim)
    assert items.dtype == count.dtype == torch.int32 and items.is_contiguous() and items.shape[1] == FIELDS
    assert tuning.block <= key_pages.shape[1]
    pdl = pdl and qkv.is_cuda
    _attend_few[(programs,)](
        qkv, q_weight, k_weight, inv_freq, eps, attention_factor,
        key_pages, value_pages, page_table, items, count, *scratch, out,
        len(items), scale * LOG2E, qkv.stride(0),
        key_pages.stride(0), key_pages.stride(1), key_pages.stride(2), page_table.stride(0),
        page_size=key_pages.shape[1], kv_heads=kv_heads, group=group, head_dim=head_dim,
        use_dot=tuning.use_dot, block=tuning.block, block_dim=triton.next_power_of_2(head_dim),
        block_group=triton.next_power_of_2(group), stages=tuning.stages, pdl=pdl,
        lets=lets and qkv.is_cuda,
        num_warps=tuning.warps, maxnreg=tuning.registers, launch_pdl=pdl,
    )  # fmt: skip


@triton.jit(do_not_specialize=["room", "table_stride"])
def _attend_few(
    qkv, q_weight, k_weight, inv_freq, eps, attention_factor,
    key_pages, value_pages, page_table, items, count, outs, sums, arrivals, out,
    room, scale, qkv_stride,
    page_stride, cell_stride, head_stride, table_stride,
    page_size: tl.constexpr, kv_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr,
    use_dot: tl.constexpr, block: tl.constexpr, block_dim: tl.constexpr, block_group: tl.constexpr,
    stages: tl.constexpr, pdl: tl.constexpr, lets: tl.constexpr,
):  # fmt: skip
    if lets:
        tl.extra.cuda.gdc_launch_dependents()
    work = tl.program_id(0)
    todo = tl.load(count) * kv_heads
    row, slot, begin, end, first_item, splits, length = _item(items, work, room, kv_heads)
    page = tl.load(items + (work // kv_heads) * 8 + 7, mask=work < room * kv_heads, other=0).to(tl.int64)
    if work < todo:
        block_heads: tl.constexpr = max(block_group, 16) if use_dot else block_group
        member = tl.arange(0, block_heads)
        dims = tl.arange(0, block_dim)
        lanes = tl.arange(0, block)
        wide = dims < head_dim
        inside = (member < group)[:, None] & wide[None, :]
        item = work // kv_heads
        head = work % kv_heads
        table = page_table + slot.to(tl.int64) * table_stride
        shift = head.to(tl.int64) * head_stride
        own = qkv + row.to(tl.int64) * qkv_stride
        mine = own + (head * group + member)[:, None] * head_dim
        position = length - 1
        # The newest token's cell is written in this launch: its key and value come from the qkv row instead.
        last = tl.minimum(end, position)
        first = begin // block * block
        tokens = first + lanes
        real = (tokens >= begin) & (tokens < last)
        cell = (tokens % page_size)[:, None] * cell_stride + dims[None, :] + page * page_stride + shift
        there = real[:, None] & wide[None, :]
        keys = tl.load(key_pages + cell, mask=there, other=0.0)
        values = tl.load(value_pages + cell, mask=there, other=0.0)
        cos, sin = rotation(position, inv_freq, attention_factor, dims, head_dim)
        swap = partner(dims, head_dim)
        if q_weight is not None:
            straight = tl.load(q_weight + dims, mask=wide, other=0.0)[None, :]
            crossed = tl.load(q_weight + swap, mask=wide, other=0.0)[None, :]
        if pdl:
            tl.extra.cuda.gdc_wait()
        rows = tl.load(mine + dims[None, :], mask=inside, other=0.0)
        swapped = tl.load(mine + swap[None, :], mask=inside, other=0.0)
        if q_weight is not None:
            square = rows.to(tl.float32) * rows.to(tl.float32)
            rms = tl.rsqrt(tl.sum(square, 1) / head_dim + eps)[:, None]
            turned = _turned(rows, swapped, straight, crossed, rms, cos[None, :], sin[None, :])
        else:
            turned = _turned(rows, swapped, None, None, None, cos[None, :], sin[None, :])
        rows = turned.to(rows.dtype)
        peak = tl.full((block_heads,), float("-inf"), tl.float32)
        total = tl.zeros((block_heads,), tl.float32)
        acc = tl.zeros((block_heads, block_dim), tl.float32)
        if end > position:
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
            new_page = tl.load(table + position // page_size).to(tl.int64)
            place = new_page * page_stride + (position % page_size) * cell_stride + shift + dims
            tl.store(key_pages + place, key, mask=wide)
            tl.store(value_pages + place, value, mask=wide)
            # Padded dims of `cos` are anything but of `rows` are zero.
            product = tl.where(wide, key.to(tl.float32), 0.0)[None, :] * rows.to(tl.float32)
            peak = tl.sum(product, 1) * scale
            total = tl.full((block_heads,), 1.0, tl.float32)
            acc = value.to(tl.float32)[None, :] + tl.zeros((block_heads, block_dim), tl.float32)
        scores = tl.where(real[None, :], _scores(rows, keys, use_dot) * scale, float("-inf"))
        # A number: an item holds a token of the block, or the newest one.
        higher = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp2(peak - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None] + _weighted(weights, values, use_dot)
        peak, total, acc = _attend(
            rows, higher, total, acc, key_pages + shift, value_pages + shift, table,
            first + block, last, scale, page_stride, cell_stride,
            page_size, head_dim, block, block_dim, use_dot, stages,
        )  # fmt: skip
        _settle(
            peak, total, acc, outs, sums, arrivals, out, item, row, head, first_item, splits,
            kv_heads, group, head_dim, block_heads, block_group, block_dim,
        )  # fmt: skip
    elif pdl:
        # A program without work must not let this launch end before the one ahead: whoever waits for this one takes
        # it that all before have ended.
        tl.extra.cuda.gdc_wait()
