"""Keys and values of new tokens into their cells of the paged KV slab."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.cases import Case
from headrace.kernels.paged_cases import PagedSets, timed_heads


def check_pages(key_pages: Tensor, value_pages: Tensor, page_table: Tensor) -> None:
    """One layer's pages as every kernel takes them: [P, page_size, G, D], keys and values alike, heads' elements
    side by side, any other strides; page_table int32 [S, pages per slot]."""
    assert key_pages.ndim == 4 and key_pages.shape == value_pages.shape, (key_pages.shape, value_pages.shape)
    assert key_pages.dtype == value_pages.dtype
    assert key_pages.stride() == value_pages.stride() and key_pages.stride(3) == 1, key_pages.stride()
    page_size = key_pages.shape[1]
    assert page_size & (page_size - 1) == 0, f"page size {page_size} is no power of two"
    assert page_table.dtype == torch.int32 and page_table.ndim == 2 and page_table.stride(1) == 1


def store_kv(
    keys: Tensor,
    values: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    slots: Tensor,
    positions: Tensor,
) -> None:
    """Token t's keys[t] and values[t] [G, D] are in its cell: place positions[t] of slot slots[t].

    keys, values [T, G, D], any token and head strides. key_pages, value_pages [P, page_size, G, D]. page_table
    int32 [S, pages per slot]. slots int32 [T]; a token of slot -1 is not written. positions int32 or int64 [T].
    """
    check_pages(key_pages, value_pages, page_table)
    tokens, kv_heads, head_dim = keys.shape
    assert values.shape == keys.shape and key_pages.shape[2:] == keys.shape[1:]
    assert keys.stride(2) == 1 and values.stride(2) == 1
    assert keys.dtype == values.dtype == key_pages.dtype
    assert slots.shape == positions.shape == (tokens,) and slots.dtype == torch.int32
    assert slots.is_contiguous() and positions.is_contiguous()
    if tokens == 0:
        return
    _store_kv[(tokens,)](
        keys, values, key_pages, value_pages, page_table, slots, positions,
        keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
        key_pages.stride(0), key_pages.stride(1), key_pages.stride(2), page_table.stride(0),
        page_size=key_pages.shape[1], kv_heads=kv_heads, head_dim=head_dim,
        block_heads=triton.next_power_of_2(kv_heads), block_dim=triton.next_power_of_2(head_dim),
        num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride"])
def _store_kv(
    keys, values, key_pages, value_pages, page_table, slots, positions,
    key_token_stride, key_head_stride, value_token_stride, value_head_stride,
    page_stride, cell_stride, head_stride, table_stride,
    page_size: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr,
    block_heads: tl.constexpr, block_dim: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        position = tl.load(positions + token).to(tl.int32)
        page = tl.load(page_table + slot.to(tl.int64) * table_stride + position // page_size).to(tl.int64)
        heads = tl.arange(0, block_heads)[:, None]
        dims = tl.arange(0, block_dim)[None, :]
        inside = (heads < kv_heads) & (dims < head_dim)
        cell = page * page_stride + (position % page_size) * cell_stride + heads * head_stride + dims
        key = tl.load(keys + token * key_token_stride + heads * key_head_stride + dims, mask=inside)
        value = tl.load(values + token * value_token_stride + heads * value_head_stride + dims, mask=inside)
        tl.store(key_pages + cell, key, mask=inside)
        tl.store(value_pages + cell, value, mask=inside)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The new tokens of decode rows, and of a chunk."""
    for heads in timed_heads():
        for rows, count in ((1, 1), (64, 1), (1, 2048)):
            yield _case(PagedSets(heads, rows, max(count, 256), device, dtype), count)


def _case(paged: PagedSets, count: int) -> Case:
    tokens, heads = paged.rows * count, paged.heads
    keys, values = (
        torch.randn(tokens, heads.kv_heads, heads.head_dim, device=paged.device, dtype=paged.dtype)
        for _ in range(2)
    )
    slots = paged.slots.repeat_interleave(count)
    positions = torch.arange(count, device=paged.device).repeat(paged.rows)
    pages, table = (paged.key_pages[0], paged.value_pages[0]), paged.page_table
    cells = reference.kv_cells(table, slots, positions, pages[0].shape[1])
    flat = paged.cells(0)
    return Case(
        name=f"{heads.model} rows={tokens}",
        run=lambda _: store_kv(keys, values, *pages, table, slots, positions),
        twin=lambda _: reference.store_kv(keys, values, *flat, cells),
        peer=None,
        bytes=2 * heads.kv_bytes(tokens, paged.dtype),
        flops=0,
    )
