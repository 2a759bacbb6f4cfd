"""Every op in plain torch: the meaning that fused kernels must keep, and what the CPU backend runs where nothing
faster exists. Takes tensors and numbers only.

Shapes: T tokens, R rows, S slots, P pages of `page_size` cells, H query heads, G kv heads (H is a multiple of G),
D head size. A cell is one token's place in the KV slab: page * page_size + offset. A row of slot -1 and a cell of
-1 are padding: nothing is read or written for them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resolve_tokens(token_ids: Tensor, slots: Tensor, last_tokens: Tensor) -> Tensor:
    """Token ids to compute: where token_ids is -1, the token that its slot sampled last.

    token_ids: int64 [T]. slots: int32 [T]. last_tokens: int64 [S]. Padding (slot -1) asks for an id itself.
    """
    return torch.where(token_ids < 0, last_tokens[slots.clamp_min(0).long()], token_ids)


def kv_cells(page_table: Tensor, slots: Tensor, positions: Tensor, page_size: int) -> Tensor:
    """The cell of each token: int64 [T]; -1 for padding.

    page_table: int32 [S, pages per slot]. slots: int32 [T]. positions: int64 [T].
    """
    pages = page_table[slots.clamp_min(0).long(), positions // page_size].long()
    return torch.where(slots < 0, -1, pages * page_size + positions % page_size)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., N] over its root mean square in float32, times weight (shape of x's last dims), in x's dtype.

    Rounded before the weight is applied, as the reference models do."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D] rotated by position. cos, sin: [T, 1, D]; the first half of `sin` is negated already, so that
    no half needs a sign of its own."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def silu_mul(x: Tensor) -> Tensor:
    """silu(x[:, :N]) * x[:, N:] for x [T, 2N]."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def store_kv(keys: Tensor, values: Tensor, key_cells: Tensor, value_cells: Tensor, cells: Tensor) -> None:
    """Write keys and values [T, G, D] to the cells [P * page_size, G, D] of one layer. Cell -1 is not written."""
    live = cells >= 0
    key_cells[cells[live]] = keys[live]
    value_cells[cells[live]] = values[live]


def copy_pages(slab: Tensor, sources: Tensor, targets: Tensor) -> None:
    """slab [..., P, page_size, G, D]: page targets[i] becomes a copy of sources[i]. Targets are distinct and none
    of them is a source."""
    slab.index_copy_(-4, targets, slab.index_select(-4, sources))


def decode_attention(
    query: Tensor,
    key_cells: Tensor,
    value_cells: Tensor,
    page_table: Tensor,
    slots: Tensor,
    lengths: Tensor,
    page_size: int,
    scale: float,
    window: int,
) -> Tensor:
    """Each row's one query attends to the newest `window` (0 = all) of its `lengths` tokens, itself included.

    query [R, H, D]; key_cells, value_cells [P * page_size, G, D]; slots, lengths int32 [R]. Returns [R, H, D] in
    query's dtype; zeros for padded rows. Cells beyond a row's length are never read: they may hold anything.
    """
    offsets = torch.zeros(len(slots) + 1, dtype=torch.int32)
    offsets[1:] = torch.arange(1, len(slots) + 1)
    return extend_attention(
        query, key_cells, value_cells, page_table, slots, lengths, offsets, page_size, scale, window
    )


def extend_attention(
    query: Tensor,
    key_cells: Tensor,
    value_cells: Tensor,
    page_table: Tensor,
    slots: Tensor,
    lengths: Tensor,
    row_offsets: Tensor,
    page_size: int,
    scale: float,
    window: int,
) -> Tensor:
    """Row r holds queries [row_offsets[r], row_offsets[r + 1]), the newest tokens of its `lengths[r]` tokens, each
    attending to the newest `window` (0 = all) tokens up to itself. Otherwise as decode_attention; query [T, H, D].
    """
    out = torch.zeros_like(query)
    heads, kv_heads = query.shape[1], key_cells.shape[1]
    edges = row_offsets.tolist()
    for row, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        begin, end = edges[row], edges[row + 1]
        if slot < 0 or begin == end:
            continue
        places = torch.arange(length, device=query.device)
        cells = page_table[slot, places // page_size].long() * page_size + places % page_size
        keys = key_cells[cells].repeat_interleave(heads // kv_heads, 1).float()
        values = value_cells[cells].repeat_interleave(heads // kv_heads, 1).float()
        scores = torch.einsum("qhd,khd->hqk", query[begin:end].float(), keys) * scale
        own = torch.arange(length - (end - begin), length, device=query.device)[:, None]
        hidden = places > own
        if window:
            hidden |= places <= own - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)
    return out


def embed(token_ids: Tensor, slots: Tensor, last_tokens: Tensor, table: Tensor) -> Tensor:
    """Rows [T, N] of table [V, N] for the tokens that `resolve_tokens` gives; zeros for padding (slot -1)."""
    live = slots >= 0
    tokens = torch.where(live, resolve_tokens(token_ids, slots, last_tokens), 0)
    return torch.where(live[:, None], table[tokens], 0.0)


def norm_linear(
    x: Tensor, norm_weight: Tensor | None, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """rms_norm(x) Wᵀ (+ bias) for x [T, K] and W [N, K]; without a norm weight x is multiplied as it is."""
    normed = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    return F.linear(normed, weight, bias)


def gate_up(
    x: Tensor, norm_weight: Tensor | None, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """silu(gate) * up [T, I] of rms_norm(x) Wᵀ (+ bias) for W [2I, K], which has the gate's rows first."""
    return silu_mul(norm_linear(x, norm_weight, eps, weight, bias))


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """residual [T, N] + x Wᵀ (+ bias), rounded once."""
    wide = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return (residual.double() + wide).to(residual.dtype)


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
) -> None:
    """q_out [T, H, D] and the tokens' cells of key_pages and value_pages [P, page_size, G, D] from qkv [T, (H +
    2G) * D]: heads normalised where there are weights, then turned by float32 angles, rounded once. The angles
    are of the position, plus the slot's shift where there are shifts, or of angles [3, T] by axes [D / 2]."""
    live = slots >= 0
    heads, head_dim, page_size = q_out.shape[1], q_out.shape[2], key_pages.shape[1]
    kv_heads = key_pages.shape[2]
    query, keys, values = (
        qkv[live].view(-1, heads + 2 * kv_heads, head_dim).split((heads, kv_heads, kv_heads), 1)
    )
    if q_weight is not None and k_weight is not None:
        query, keys = rms_norm(query, q_weight, eps), rms_norm(keys, k_weight, eps)
    places = positions[live].long()
    stands = places.float()[:, None]
    if shifts is not None:
        stands = (places + shifts[slots[live].long()]).float()[:, None]
    if angles is not None and axes is not None:
        stands = angles[:, live][axes.long()].t().float()
    turns = (stands[:, None] * inv_freq).double()
    cos = torch.cat((turns.cos(), turns.cos()), -1) * attention_factor
    sin = torch.cat((-turns.sin(), turns.sin()), -1) * attention_factor
    pages = page_table[slots[live].long(), places // page_size].long()
    q_out[live] = rope(query.double(), cos, sin).to(q_out.dtype)
    key_pages[pages, places % page_size] = rope(keys.double(), cos, sin).to(key_pages.dtype)
    value_pages[pages, places % page_size] = values.to(value_pages.dtype)


def plan_work(slots: Tensor, lengths: Tensor, split: int, most_splits: int, window: int) -> Tensor:
    """int32 [N, 8]: row, slot, first token, end, first item of the row, items of the row, length, 0 of every piece
    that each row's tokens are cut into. Pieces end at multiples of `split`, doubled until there are at most
    `most_splits`; those wholly before the newest `window` (0 = all) tokens are left out, the first is shortened."""
    items: list[list[int]] = []
    for row, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        if slot < 0:
            continue
        begin = max(0, length - window) if window else 0
        size = split
        while -(-length // size) - begin // size > most_splits:
            size *= 2
        starts = range(begin // size * size, length, size)
        first = len(items)
        for start in starts:
            piece = (max(start, begin), min(start + size, length))
            items.append([row, slot, *piece, first, len(starts), length, 0])
    return torch.tensor(items, dtype=torch.int32).view(-1, 8)


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
    slots: Tensor,
    lengths: Tensor,
    scale: float,
    window: int,
    *,
    shifts: Tensor | None = None,
) -> Tensor:
    """rope_store of each row's one new token, then its attention [R, H, D] in float64 over all that is stored."""
    page_size, kv_heads, head_dim = key_pages.shape[1:]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    query = torch.zeros(len(qkv), heads, head_dim, dtype=qkv.dtype)
    norms = (q_weight, k_weight, eps, inv_freq, attention_factor)
    rope_store(qkv, *norms, lengths - 1, slots, page_table, key_pages, value_pages, query, shifts=shifts)
    keys, values = key_pages.double().flatten(0, 1), value_pages.double().flatten(0, 1)
    return decode_attention(
        query.double(), keys, values, page_table, slots, lengths, page_size, scale, window
    )
