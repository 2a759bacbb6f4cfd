"""Attention of prefill rows over the paged KV slab: many queries per row, causal, all earlier context included.

The host cuts each row's queries into tiles; one program takes one tile for a bundle of query heads that share a kv
head, so that keys and values are read once for the bundle. Rows of any lengths lie in one launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from headrace.kernels.cases import Case
from headrace.kernels.decode_attention import LOG2E
from headrace.kernels.store_kv import check_pages

TILE = 64  # queries per tile unless the caller cuts otherwise


@dataclass(frozen=True, slots=True)
class ExtendTuning:
    """rows: how many rows (queries times heads of the bundle) a program computes at most, at least one head. block:
    keys per inner step. bulk: fetch steps that every query sees whole with the copy engine, where the slab lies in
    memory so that it can (heads apart, the cells of one in one run) and a step is no more than a page. programs:
    how many should share a multiprocessor, so that one multiplies while another is at its softmax."""

    rows: int
    block: int
    warps: int
    stages: int
    bulk: bool = False
    programs: int = 1

    @property
    def registers(self) -> int:
        """What a thread may use so that all programs of a multiprocessor really run side by side."""
        return min(255, 65536 // (self.programs * self.warps * 32) // 8 * 8)


# By (head size up to, bytes of an element). float32 is there for exactness, not for speed.
TUNED: dict[tuple[int, int], ExtendTuning] = {
    (64, 2): ExtendTuning(rows=128, block=128, warps=8, stages=3),
    # Measured on an H200: 1.3 to 2.5 times as fast as 128 rows below 4096 tokens, equal at 8192.
    (128, 2): ExtendTuning(rows=64, block=64, warps=4, stages=3, bulk=True),
    (256, 2): ExtendTuning(rows=64, block=32, warps=4, stages=2),
    (64, 4): ExtendTuning(rows=64, block=32, warps=4, stages=1),
    (128, 4): ExtendTuning(rows=64, block=32, warps=8, stages=1),
    (256, 4): ExtendTuning(rows=64, block=16, warps=8, stages=1),
}


def tuning_for(head_dim: int, dtype: torch.dtype) -> ExtendTuning:
    """The table's entry for heads of this size; up to 256 elements."""
    most = next(size for size in (64, 128, 256) if head_dim <= size)
    return TUNED[most, dtype.itemsize]


def extend_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    slots: Tensor,
    lengths: Tensor,
    row_offsets: Tensor,
    tile_rows: Tensor,
    tile_starts: Tensor,
    out: Tensor,
    scale: float,
    window: int = 0,
    tile: int = TILE,
    tuning: ExtendTuning | None = None,
    *,
    pdl: bool = False,
) -> None:
    """out[t] is the attention of query t over the newest `window` (0 = all) tokens of its row up to itself.

    query [T, H, D]; keys and values of all tokens are stored already, key_pages, value_pages [P, page_size, G, D].
    Row r holds queries [row_offsets[r], row_offsets[r + 1]), the newest of its lengths[r] tokens in slot slots[r];
    all int32, slots and lengths [R]. Tile i is the queries [tile_starts[i], tile_starts[i] + tile) of row
    tile_rows[i] that the row has; int32, a row of -1: no tile. Tiles cover each query once. page_table int32 [S,
    pages per slot]. out [T, H * D]; what no tile covers is not written. `pdl`: start before the launch ahead has
    ended, and wait for it before anything is read.
    """
    check_pages(key_pages, value_pages, page_table)
    tokens, heads, head_dim = query.shape
    kv_heads = key_pages.shape[2]
    group = heads // kv_heads
    assert key_pages.shape[3] == head_dim and heads % kv_heads == 0, (key_pages.shape, heads)
    assert query.is_contiguous() and query.dtype == key_pages.dtype == out.dtype
    assert out.shape == (tokens, heads * head_dim) and out.is_contiguous()
    rows, tiles = len(slots), len(tile_rows)
    assert lengths.shape == slots.shape and row_offsets.shape == (rows + 1,) and window >= 0
    assert tile_starts.shape == (tiles,) and tile.bit_count() == 1 and tile >= 16, tile
    for counts in (slots, lengths, row_offsets, tile_rows, tile_starts):
        assert counts.dtype == torch.int32 and counts.is_contiguous()
    if tiles == 0:
        return
    tuning = tuning or tuning_for(head_dim, query.dtype)
    bundle = max(
        size for size in (1, 2, 4, 8, 16) if group % size == 0 and (size == 1 or size * tile <= tuning.rows)
    )
    pdl = pdl and query.is_cuda
    key_blocks, value_blocks, page_rows, head_rows = None, None, 0, 0
    if tuning.bulk and bulk_suits(key_pages, tuning.block):
        key_blocks, value_blocks = (_blocks(pages, tuning.block) for pages in (key_pages, value_pages))
        page_rows, head_rows = (key_pages.stride(dim) // key_pages.stride(1) for dim in (0, 2))
    _extend[(heads // bundle, tiles)](
        key_blocks, value_blocks, page_rows, head_rows,
        query, key_pages, value_pages, page_table, slots, lengths, row_offsets, tile_rows, tile_starts, out,
        scale * LOG2E, key_pages.stride(0), key_pages.stride(1), key_pages.stride(2), page_table.stride(0),
        page_size=key_pages.shape[1], window=window, heads=heads, group=group, bundle=bundle, tile=tile,
        head_dim=head_dim, block_dim=triton.next_power_of_2(head_dim), block=tuning.block,
        stages=tuning.stages, pdl=pdl,
        num_warps=tuning.warps, maxnreg=tuning.registers, launch_pdl=pdl,
    )  # fmt: skip


def bulk_suits(pages: Tensor, block: int) -> bool:
    """Whether the copy engine can fetch `block` cells of one head in one go: pages [P, page_size, G, D]."""
    page_stride, cell_stride, head_stride, _ = pages.stride()
    head_dim = pages.shape[3]
    return (
        head_dim.bit_count() == 1
        and block <= pages.shape[1]
        and page_stride % cell_stride == head_stride % cell_stride == 0
        and cell_stride * pages.element_size() % 16 == pages.data_ptr() % 16 == 0
    )


def _blocks(pages: Tensor, block: int) -> TensorDescriptor:
    """All cells of all heads as rows of one matrix, to be fetched `block` at a time."""
    page_stride, cell_stride, head_stride, _ = pages.stride()
    count, page_size, kv_heads, head_dim = pages.shape
    last = (count - 1) * page_stride + (kv_heads - 1) * head_stride + (page_size - 1) * cell_stride
    return TensorDescriptor(pages, [last // cell_stride + 1, head_dim], [cell_stride, 1], [block, head_dim])


@triton.jit
def _visit(
    key_blocks, value_blocks, page_rows, head_row,
    rows, places, peak, total, acc, key_pages, value_pages, table, first, end, scale, page_stride, cell_stride,
    hides: tl.constexpr, window: tl.constexpr, page_size: tl.constexpr, head_dim: tl.constexpr,
    block_dim: tl.constexpr, block: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys [first, end), `first` a multiple of block. places: each row's position. Without
    `hides` every row sees every key and end is a multiple of block, so nothing is compared."""
    dims = tl.arange(0, block_dim)
    lanes = tl.arange(0, block)
    # Page numbers come one step ahead, so that keys and values wait for no other load.
    if block <= page_size:
        pages = tl.load(table + first // page_size, mask=first < end, other=0)
    else:
        pages = tl.load(table + (first + lanes) // page_size, mask=first + lanes < end, other=0)
    for start in tl.range(first, end, block, num_stages=stages):
        tokens = start + lanes
        page = pages.to(tl.int64)
        if block <= page_size:
            at = pages * page_rows + head_row + start % page_size
            cell = (tokens % page_size)[:, None] * cell_stride + dims[None, :] + page * page_stride
            pages = tl.load(table + (start + block) // page_size, mask=start + block < end, other=0)
        else:
            at = 0
            cell = (page * page_stride + (tokens % page_size) * cell_stride)[:, None] + dims[None, :]
            pages = tl.load(table + (tokens + block) // page_size, mask=tokens + block < end, other=0)
        if hides:
            inside = (tokens < end)[:, None]
            if block_dim != head_dim:
                inside = inside & (dims < head_dim)[None, :]
            keys = tl.load(key_pages + cell, mask=inside, other=0.0)
            values = tl.load(value_pages + cell, mask=inside, other=0.0)
        elif key_blocks is not None:
            keys = key_blocks.load([at, 0])
            values = value_blocks.load([at, 0])
        elif block_dim != head_dim:
            keys = tl.load(key_pages + cell, mask=(dims < head_dim)[None, :], other=0.0)
            values = tl.load(value_pages + cell, mask=(dims < head_dim)[None, :], other=0.0)
        else:
            keys = tl.load(key_pages + cell)
            values = tl.load(value_pages + cell)
        scores = tl.dot(rows, tl.trans(keys), input_precision="ieee")
        if hides:
            seen = tokens[None, :] <= places[:, None]
            if window > 0:
                seen = seen & (tokens[None, :] > places[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1) * scale)
        if hides:
            # A row may have seen nothing yet; subtracting its peak must still give -inf and not NaN.
            ground = tl.where(higher == float("-inf"), 0.0, higher)
        else:
            ground = higher
        fade = tl.exp2(peak - ground)
        weights = tl.exp2(scores * scale - ground[:, None])
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
        peak = higher
    return peak, total, acc


@triton.jit(do_not_specialize=["table_stride"])
def _extend(
    key_blocks, value_blocks, page_rows, head_rows,
    query, key_pages, value_pages, page_table, slots, lengths, row_offsets, tile_rows, tile_starts, out,
    scale, page_stride, cell_stride, head_stride, table_stride,
    page_size: tl.constexpr, window: tl.constexpr, heads: tl.constexpr, group: tl.constexpr,
    bundle: tl.constexpr, tile: tl.constexpr, head_dim: tl.constexpr, block_dim: tl.constexpr,
    block: tl.constexpr, stages: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    if pdl:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    # Tiles late in a row see the most keys: they start first, so that short ones fill the end of the launch.
    index = tl.num_programs(1) - 1 - tl.program_id(1)
    row = tl.load(tile_rows + index)
    if row >= 0:
        first_head = tl.program_id(0) * bundle
        start = tl.load(tile_starts + index)
        slot = tl.load(slots + row).to(tl.int64)
        length = tl.load(lengths + row)
        edge = tl.load(row_offsets + row)
        count = tl.load(row_offsets + row + 1) - edge
        own = tl.minimum(count - start, tile)  # queries of this tile
        position = length - count + start  # of its first query
        line = tl.arange(0, tile * bundle)
        member = line % tile
        dims = tl.arange(0, block_dim)
        token = (edge + start + member).to(tl.int64)
        place = (token * heads + first_head + line // tile)[:, None] * head_dim + dims[None, :]
        real = (member < own)[:, None] & (dims < head_dim)[None, :]
        rows = tl.load(query + place, mask=real, other=0.0)
        places = position + member
        peak = tl.full((tile * bundle,), float("-inf"), tl.float32)
        total = tl.zeros((tile * bundle,), tl.float32)
        acc = tl.zeros((tile * bundle, block_dim), tl.float32)
        shift = (first_head // group).to(tl.int64) * head_stride
        keys, values, table = key_pages + shift, value_pages + shift, page_table + slot * table_stride
        head_row = (first_head // group) * head_rows
        # Keys up to the first query's own are seen by all queries; only whole steps of them need no comparing.
        common = (position + 1) // block * block
        begin = 0
        if window > 0:
            begin = tl.maximum(position - window + 1, 0) // block * block
            near = tl.cdiv(tl.maximum(position + tile - window, 0), block) * block
            near = tl.minimum(tl.maximum(near, begin), tl.maximum(common, begin))
            common = tl.maximum(common, near)
            peak, total, acc = _visit(
                key_blocks, value_blocks, page_rows, head_row,
                rows, places, peak, total, acc, keys, values, table, begin, near, scale, page_stride, cell_stride,
                True, window, page_size, head_dim, block_dim, block, stages,
            )  # fmt: skip
            begin = near
        peak, total, acc = _visit(
            key_blocks, value_blocks, page_rows, head_row,
            rows, places, peak, total, acc, keys, values, table, begin, common, scale, page_stride, cell_stride,
            False, window, page_size, head_dim, block_dim, block, stages,
        )  # fmt: skip
        peak, total, acc = _visit(
            key_blocks, value_blocks, page_rows, head_row,
            rows, places, peak, total, acc, keys, values, table, common, position + own, scale, page_stride,
            cell_stride, True, window, page_size, head_dim, block_dim, block, stages,
        )  # fmt: skip
        found = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out + place, found.to(out.dtype.element_ty), mask=real)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One prefill row: whole prompts, and chunks with context before them."""
    from headrace.kernels.attention_cases import extend_cases  # it launches what stands above

    return extend_cases(device, dtype)
