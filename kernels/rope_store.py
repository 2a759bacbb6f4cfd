"""From a qkv row to attention's inputs: query and key heads normalised and rotated, keys and values in the slab."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.cases import Case
from headrace.kernels.paged_cases import PagedSets, timed_heads
from headrace.kernels.store_kv import check_pages

BLOCK = 1024  # elements per program: 8 for each of 128 threads, so that small batches still fill the card


def check_norms(q_weight: Tensor | None, k_weight: Tensor | None, inv_freq: Tensor, head_dim: int) -> None:
    """The head norms' weights [D], both or none, and inv_freq float32 [D / 2]."""
    assert head_dim % 2 == 0
    assert (q_weight is None) == (k_weight is None), "both norms or none"
    for weight in (q_weight, k_weight):
        assert weight is None or (weight.shape == (head_dim,) and weight.is_contiguous()), weight
    assert inv_freq.dtype == torch.float32 and inv_freq.shape == (head_dim // 2,) and inv_freq.is_contiguous()


def rope_store(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    inv_freq: Tensor,
    attention_factor: float,
    positions: Tensor,
    slots: Tensor,
    page_table: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    q_out: Tensor,
    *,
    shifts: Tensor | None = None,
    angles: Tensor | None = None,
    axes: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Each token's query heads are in q_out and its key and value heads in its cell, normalised and rotated.

    qkv [T, (H + 2G) * D]: query, key and value heads of a token, in this order. q_weight, k_weight [D]: each query
    and key head is divided by its root mean square, rounded, and multiplied by the weight; None: no norm. Then the
    head's halves turn by position * inv_freq (float32 [D / 2]), cos and sin times attention_factor. positions int32
    or int64 [T]; slots int32 [T], for a token of slot -1 nothing is written. page_table int32 [S, pages per slot];
    key_pages, value_pages [P, page_size, G, D]; q_out [T, H, D]. `pdl`: start before the launch ahead has ended,
    and wait for it before anything is read.

    Tokens may turn by something else than their position, which always names their cell: shifts int32 [S] is
    added to it, by slot; or angles int32 [3, T] has three places for each token, and axes int32 [D / 2] says
    which of them turns which pair.
    """
    check_pages(key_pages, value_pages, page_table)
    tokens, heads, head_dim = q_out.shape
    kv_heads = key_pages.shape[2]
    check_norms(q_weight, k_weight, inv_freq, head_dim)
    assert qkv.shape == (tokens, (heads + 2 * kv_heads) * head_dim), (qkv.shape, q_out.shape)
    assert qkv.stride(1) == 1 and q_out.is_contiguous() and key_pages.shape[3] == head_dim
    assert qkv.dtype == q_out.dtype == key_pages.dtype
    assert slots.shape == positions.shape == (tokens,) and slots.dtype == torch.int32
    assert slots.is_contiguous() and positions.is_contiguous()
    check_turning(shifts, angles, axes, tokens, page_table, head_dim)
    if tokens == 0:
        return
    block_dim = triton.next_power_of_2(head_dim)
    block_heads = max(1, BLOCK // block_dim)
    pdl = pdl and qkv.is_cuda
    _rope_store[(tokens, triton.cdiv(heads + 2 * kv_heads, block_heads))](
        qkv, q_weight, k_weight, eps, inv_freq, attention_factor, positions, slots, page_table,
        key_pages, value_pages, q_out, shifts, angles, axes, tokens,
        qkv.stride(0), key_pages.stride(0), key_pages.stride(1), key_pages.stride(2), page_table.stride(0),
        page_size=key_pages.shape[1], heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        block_heads=block_heads, block_dim=block_dim, pdl=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip


def check_turning(
    shifts: Tensor | None,
    angles: Tensor | None,
    axes: Tensor | None,
    tokens: int,
    page_table: Tensor,
    head_dim: int,
) -> None:
    """shifts or angles, or neither; angles never without axes."""
    assert shifts is None or angles is None, "one way to turn"
    assert (angles is None) == (axes is None), "angles and what they turn"
    if shifts is not None:
        assert shifts.dtype == torch.int32 and shifts.shape == page_table.shape[:1] and shifts.is_contiguous()
    if angles is not None and axes is not None:
        assert angles.dtype == axes.dtype == torch.int32
        assert angles.shape == (3, tokens) and angles.is_contiguous()
        assert axes.shape == (head_dim // 2,) and axes.is_contiguous()


@triton.jit
def rotation(position, inv_freq, attention_factor, dims, head_dim: tl.constexpr):
    """cos and signed sin float32 of each dim in `dims` (those beyond head_dim: anything) at one position.

    The angle is rounded to float32 as in the reference models; cos and sin of it are accurate at any size."""
    half: tl.constexpr = head_dim // 2
    angle = position.to(tl.float32) * tl.load(inv_freq + dims % half)
    sign = tl.where(dims < half, -attention_factor, attention_factor)
    return tl.cos(angle) * attention_factor, tl.sin(angle) * sign


@triton.jit
def partner(dims, head_dim: tl.constexpr):
    """The dim that each dim turns together with."""
    half: tl.constexpr = head_dim // 2
    return tl.where(dims < half, dims + half, dims - half)


@triton.jit(do_not_specialize=["table_stride", "tokens"])
def _rope_store(
    qkv, q_weight, k_weight, eps, inv_freq, attention_factor, positions, slots, page_table,
    key_pages, value_pages, q_out, shifts, angles, axes, tokens,
    qkv_stride, page_stride, cell_stride, head_stride, table_stride,
    page_size: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, head_dim: tl.constexpr,
    block_heads: tl.constexpr, block_dim: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    if pdl:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        position = tl.load(positions + token).to(tl.int32)
        page = tl.load(page_table + slot.to(tl.int64) * table_stride + position // page_size).to(tl.int64)
        head = (tl.program_id(1) * block_heads + tl.arange(0, block_heads))[:, None]
        dims = tl.arange(0, block_dim)
        wide = dims[None, :] < head_dim
        is_query = (head < heads) & wide
        is_key = (head >= heads) & (head < heads + kv_heads) & wide
        is_value = (head >= heads + kv_heads) & (head < heads + 2 * kv_heads) & wide
        row = qkv + token * qkv_stride + head * head_dim
        other = partner(dims, head_dim)
        x = tl.load(row + dims[None, :], mask=is_query | is_key | is_value, other=0.0)
        # The same head again, halves swapped: cheaper from the cache than through shuffles.
        y = tl.load(row + other[None, :], mask=is_query | is_key, other=0.0)
        value = x
        if q_weight is not None:
            wide_x = x.to(tl.float32)
            rms = tl.rsqrt(tl.sum(wide_x * wide_x, 1) / head_dim + eps)[:, None]
            x_weight = tl.load(q_weight + dims[None, :], mask=is_query, other=0.0)
            x_weight += tl.load(k_weight + dims[None, :], mask=is_key, other=0.0)
            y_weight = tl.load(q_weight + other[None, :], mask=is_query, other=0.0)
            y_weight += tl.load(k_weight + other[None, :], mask=is_key, other=0.0)
            x = (wide_x * rms).to(x.dtype) * x_weight
            y = (y.to(tl.float32) * rms).to(y.dtype) * y_weight
        if angles is not None:
            axis = tl.load(axes + dims % (head_dim // 2))
            place = tl.load(angles + axis.to(tl.int64) * tokens + token)
        elif shifts is not None:
            place = position + tl.load(shifts + slot)
        else:
            place = position
        cos, sin = rotation(place, inv_freq, attention_factor, dims, head_dim)
        turned = (x.to(tl.float32) * cos[None, :] + y.to(tl.float32) * sin[None, :]).to(value.dtype)
        tl.store(q_out + (token * heads + head) * head_dim + dims[None, :], turned, mask=is_query)
        cell = page * page_stride + (position % page_size) * cell_stride + dims[None, :]
        tl.store(key_pages + cell + (head - heads) * head_stride, turned, mask=is_key)
        tl.store(value_pages + cell + (head - heads - kv_heads) * head_stride, value, mask=is_value)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The new tokens of decode rows, and of chunks."""
    for heads in timed_heads():
        for rows, count in ((1, 1), (8, 1), (64, 1), (256, 1), (1, 512), (1, 2048), (1, 8192)):
            yield _case(PagedSets(heads, rows, max(count, 64), device, dtype), count)


def _case(paged: PagedSets, count: int) -> Case:
    tokens, heads = paged.rows * count, paged.heads
    qkv, norms, inv_freq = paged.qkv(tokens), paged.norms(), paged.inv_freq()
    q_out = qkv.new_empty(tokens, heads.heads, heads.head_dim)
    positions = torch.arange(count, device=paged.device).repeat(paged.rows)
    slots = paged.slots.repeat_interleave(count)
    pages = (paged.key_pages[0], paged.value_pages[0])

    def run(_: int) -> Tensor:
        rope_store(qkv, *norms, 1e-6, inv_freq, 1.0, positions, slots, paged.page_table, *pages, q_out)
        return q_out

    def twin(_: int) -> Tensor:
        reference.rope_store(
            qkv, *norms, 1e-6, inv_freq, 1.0, positions, slots, paged.page_table, *pages, q_out
        )
        return q_out

    return Case(
        name=f"{heads.model} rows={tokens}",
        run=run,
        twin=twin,
        peer=None,
        bytes=2 * qkv.numel() * qkv.element_size(),
        flops=6 * qkv.numel(),
    )
