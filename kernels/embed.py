"""From tokens to rows: the first kernel of a step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.cases import WIDTHS, Case

BLOCK = 1024


def embed(
    token_ids: Tensor, slots: Tensor, last_tokens: Tensor, table: Tensor, out: Tensor, *, pdl: bool = False
) -> None:
    """out[t] = table[token], where a token id of -1 asks for the token that its slot sampled last.

    token_ids int32 or int64 [T]; slots int32 [T]; last_tokens int64 [S]; table [V, N] and out [T, N] of one dtype,
    columns contiguous. A row of slot -1 is padding: it becomes zeros, so that whatever is computed from it stays
    finite, and its token id means nothing.
    """
    rows, width = out.shape
    assert token_ids.shape == slots.shape == (rows,) and table.shape[1] == width
    assert token_ids.dtype in (torch.int32, torch.int64)
    assert last_tokens.dtype == torch.int64 and slots.dtype == torch.int32
    assert token_ids.stride() == slots.stride() == (1,) and last_tokens.stride() == (1,)
    assert table.dtype == out.dtype and table.stride(1) == out.stride(1) == 1
    pdl = pdl and out.is_cuda
    block = min(BLOCK, triton.next_power_of_2(width))
    _embed[(rows, triton.cdiv(width, block))](
        token_ids, slots, last_tokens, table, out, table.stride(0), out.stride(0),
        WIDTH=width, BLOCK=block, PDL=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip


@triton.jit
def _embed(
    token_ids, slots, last_tokens, table, out, table_stride, out_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(slots + row)
    token = tl.load(token_ids + row)
    # Read whether it is asked for or not, so that the two loads need not wait for each other.
    sampled = tl.load(last_tokens + tl.maximum(slot, 0))
    token = tl.where(token < 0, sampled, token)
    known = column < tl.where(slot < 0, 0, WIDTH)
    found = tl.load(table + token * table_stride + column, mask=known, other=0.0)
    tl.store(out + row * out_stride + column, found, mask=inside)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Random tokens out of the whole table."""
    for model, widths in WIDTHS.items():
        table = torch.randn(widths["vocab"], widths["hidden"], device=device, dtype=dtype)
        for rows in (1, 16, 256, 2048):
            yield _case(f"{model} embed rows={rows}", table, rows)


def _case(name: str, table: Tensor, rows: int) -> Case:
    token_ids = torch.randint(len(table), (rows,), device=table.device)
    slots = torch.arange(rows, device=table.device, dtype=torch.int32)
    last_tokens = torch.zeros(rows, device=table.device, dtype=torch.int64)
    out = table.new_empty(rows, table.shape[1])

    def run(_: int) -> Tensor:
        embed(token_ids, slots, last_tokens, table, out)
        return out

    return Case(
        name=name,
        run=run,
        twin=lambda _: reference.embed(token_ids, slots, last_tokens, table),
        peer=lambda _: table.index_select(0, token_ids),
        bytes=2 * out.numel() * out.element_size() + rows * 12,
        flops=0,
    )
