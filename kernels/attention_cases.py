"""What is timed of decode and extend attention: by `headrace bench kernels`, and in variants when tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headrace.kernels import reference
from headrace.kernels.attention_work import plan_work, work_shape
from headrace.kernels.cases import Case
from headrace.kernels.decode_attention import (
    MOST_SPLITS,
    DecodeTuning,
    cut_for,
    decode_attention,
    scratch_for,
    turn_and_attend,
)
from headrace.kernels.extend_attention import TILE, ExtendTuning, extend_attention
from headrace.kernels.paged_cases import PagedSets, timed_heads

DECODE_SHAPES = ((1, 1024), (8, 1024), (64, 1024), (256, 1024), (1, 8192), (16, 8192))
"""Rows, and tokens in each."""
EXTEND_SHAPES = ((128, 128), (512, 512), (2048, 2048), (8192, 8192), (512, 4096), (2048, 8192))
"""Queries of one row, and its tokens in all."""
TWIN_TOKENS = 2048  # the twin of extend_attention holds all scores at once


def decode_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Decode rows with ready queries, and from their qkv rows."""
    for heads in timed_heads():
        for rows, length in DECODE_SHAPES:
            paged = PagedSets(heads, rows, length, device, dtype)
            yield decode_case(paged, fused=False)
            yield decode_case(paged, fused=True)


def extend_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One prefill row: whole prompts, and chunks with context before them."""
    for heads in timed_heads():
        for count, length in EXTEND_SHAPES:
            yield extend_case(PagedSets(heads, 1, length, device, dtype), count)


def decode_case(
    paged: PagedSets,
    fused: bool,
    split: int = 0,
    most_splits: int = MOST_SPLITS,
    tuning: DecodeTuning | None = None,
) -> Case:
    """decode_attention, or with `fused` turn_and_attend, over this slab. split 0, no tuning: as the table says."""
    heads, rows, length, device = paged.heads, paged.rows, paged.length, paged.device
    cut = cut_for(heads.head_dim, paged.dtype, rows)
    split, tuning = split or cut.split, tuning or cut.tuning
    items = torch.zeros(work_shape(rows, most_splits), dtype=torch.int32, device=device)
    count = torch.zeros(1, dtype=torch.int32, device=device)
    scratch = scratch_for(rows, most_splits, heads.heads, heads.kv_heads, heads.head_dim, device)
    qkv, norms, inv_freq = paged.qkv(rows), paged.norms(), paged.inv_freq()
    query = torch.randn(rows, heads.heads, heads.head_dim, device=device, dtype=paged.dtype)
    out = query.new_empty(rows, heads.heads * heads.head_dim)
    programs = tuning.programs
    if device.type == "cuda":
        plan_work(paged.slots, paged.lengths, items, count, split, most_splits)
        programs *= torch.cuda.get_device_properties(device).multi_processor_count

    def run(index: int) -> Tensor:
        pages = (paged.key_pages[index], paged.value_pages[index], paged.page_table)
        if fused:
            turn_and_attend(
                qkv,
                *norms,
                1e-6,
                inv_freq,
                1.0,
                *pages,
                items,
                count,
                scratch,
                out,
                heads.scale,
                programs,
                tuning,
            )
        else:
            decode_attention(query, *pages, items, count, scratch, out, heads.scale, programs, tuning)
        return out

    def twin(index: int) -> Tensor:
        if fused:
            pages = (paged.key_pages[index].clone(), paged.value_pages[index].clone(), paged.page_table)
            rows_of = (paged.slots, paged.lengths)
            return reference.turn_and_attend(
                qkv, *norms, 1e-6, inv_freq, 1.0, *pages, *rows_of, heads.scale, 0
            ).flatten(1)
        return reference.decode_attention(
            query, *paged.cells(index), paged.page_table, paged.slots, paged.lengths, paged.page_size,
            heads.scale, 0,
        ).flatten(1)  # fmt: skip

    kind = "turn and attend" if fused else "attend"
    return Case(
        name=f"{heads.model} {kind} rows={rows} context={length}",
        run=run,
        twin=twin,
        peer=None if fused else _decode_library(paged, query),
        bytes=heads.kv_bytes(rows * length, paged.dtype) + 2 * out.numel() * out.element_size(),
        flops=4 * rows * length * heads.heads * heads.head_dim,
        sets=paged.sets,
    )


def _decode_library(paged: PagedSets, query: Tensor) -> Callable[[int], Tensor]:
    """torch's attention over the same keys and values, laid out densely as it wants them."""
    dense: list[tuple[Tensor, Tensor]] = []

    def attend(index: int) -> Tensor:
        if not dense:  # when it is first timed: variants of one slab never are
            dense.extend(paged.dense(number) for number in range(paged.sets))
        keys, values = dense[index]
        found = scaled_dot_product_attention(
            query[:, :, None], keys, values, scale=paged.heads.scale, enable_gqa=True
        )
        return found.flatten(1)

    return attend


def extend_case(paged: PagedSets, count: int, tile: int = TILE, tuning: ExtendTuning | None = None) -> Case:
    """The newest `count` tokens of every row of this slab."""
    heads, rows, length, device = paged.heads, paged.rows, paged.length, paged.device
    query = torch.randn(rows * count, heads.heads, heads.head_dim, device=device, dtype=paged.dtype)
    out = query.new_empty(rows * count, heads.heads * heads.head_dim)
    offsets = torch.arange(0, rows * count + 1, count, dtype=torch.int32, device=device)
    starts = torch.arange(0, count, tile, dtype=torch.int32, device=device)
    tile_rows = paged.slots.repeat_interleave(len(starts))
    tile_starts = starts.repeat(rows)
    where = (paged.page_table, paged.slots, paged.lengths)

    def run(index: int) -> Tensor:
        extend_attention(
            query, paged.key_pages[index], paged.value_pages[index], *where, offsets, tile_rows, tile_starts,
            out, heads.scale, 0, tile, tuning,
        )  # fmt: skip
        return out

    def twin(index: int) -> Tensor:
        return reference.extend_attention(
            query, *paged.cells(index), *where, offsets, paged.page_size, heads.scale, 0
        ).flatten(1)

    seen = rows * (count * (length - count) + count * (count + 1) // 2)
    return Case(
        name=f"{heads.model} rows={rows * count} context={length}",
        run=run,
        twin=twin if length <= TWIN_TOKENS else None,
        peer=_extend_library(paged, query) if count == length else None,
        bytes=heads.kv_bytes(rows * length, paged.dtype) + 2 * out.numel() * out.element_size(),
        flops=4 * seen * heads.heads * heads.head_dim,
        sets=paged.sets,
    )


def _extend_library(paged: PagedSets, query: Tensor) -> Callable[[int], Tensor]:
    """torch's causal attention over the same keys and values, laid out densely as it wants them."""
    dense: list[tuple[Tensor, Tensor]] = []
    own = query.view(paged.rows, paged.length, *query.shape[1:]).transpose(1, 2).contiguous()

    def attend(index: int) -> Tensor:
        if not dense:
            dense.extend(paged.dense(number) for number in range(paged.sets))
        keys, values = dense[index]
        found = scaled_dot_product_attention(
            own, keys, values, is_causal=True, scale=paged.heads.scale, enable_gqa=True
        )
        return found.transpose(1, 2).reshape(len(query), -1)

    return attend
