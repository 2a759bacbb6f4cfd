"""Paged attention on the CPU: the host decides once per step how each row reads its cells, every layer follows.

Two ways to compute. torch's fused attention is best for few queries, and in float32. For the many queries of a
prompt chunk in bfloat16 it reaches a sixth of what oneDNN's matrix products do, so those take products and a
softmax, one kv head after the other. bfloat16 products are rounded, and a rounded score of 50 is off by 0.1;
therefore each score is computed twice, once plainly and once minus the rounded first result (summed in float32
inside the product). The two halves together have 16 bits.

Decode rows of similar length share one call: the shorter ones are filled up with their own newest token, whose
weight the mask makes zero. (Capped scores have no fused attention; their rows go the same ways by plain products in
float32.) So no row ever reads a cell that is not its own, nor one that was never written: what
lies there may even be NaN. Their cells are gathered, also where they lie in a row: the copy runs at the speed of
memory, and the attention then finds its keys in the cache, which is 2.5 times faster than attending from memory.
Calls are cut to what the cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from headrace.graphs.inputs import StepInputs

SIMILAR = 0.75  # rows at least this long, relative to the longest, share its call
SHORT = 64  # and so do rows that lack at most this many tokens: padding them is cheaper than another call
CALL_BYTES = 3 << 20  # keys of one call, if it has several rows
GATHER_BYTES = 8 << 20  # keys of one row that are worth copying; a longer one no longer fits the cache
MANY = 1 << 14  # chunks with so many scores per head, in bfloat16, use matrix products
SCORES = 1 << 22  # scores of one product at most (16 MiB in float32); longer chunks are cut


@dataclass(frozen=True, slots=True)
class Cells:
    """Where `rows` rows of `length` tokens each lie: a run that starts at `first`, or the `index` of each."""

    rows: int
    length: int
    first: int
    index: Tensor | None

    def read(self, cells: Tensor, scratch: Tensor | None = None) -> Tensor:
        """cells [N, G, D] -> [rows, G, length, D]. Without scratch a run is a view; in scratch (flat) all is a
        copy, valid until the scratch is used again."""
        count = self.rows * self.length
        elements = count * cells.shape[1] * cells.shape[2]
        if scratch is not None and elements <= scratch.numel():
            found = scratch[:elements].view(count, *cells.shape[1:])
            if self.index is None:
                found.copy_(cells[self.first : self.first + count])
            else:
                torch.index_select(cells, 0, self.index, out=found)
        elif self.index is None:
            found = cells[self.first : self.first + count]
        else:
            found = cells.index_select(0, self.index)
        return found.view(self.rows, self.length, *cells.shape[1:]).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decode rows of one call. `tokens`: their places among the step's tokens, None for all decode rows in order.
    `mask`: [rows, 1, 1, length] to add to the scores, or None if all rows are equally long."""

    cells: Cells
    tokens: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class ExtendRow:
    """One prefill row: tokens [begin, end) of the step are the newest of its cells. `mask`: [end - begin, newest n]
    to add to the scores of the newest n cells (all read the older ones); None: the plain causal triangle. `many`:
    computed by matrix products."""

    cells: Cells
    begin: int
    end: int
    many: bool
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class CpuReach:
    """What the rows of one step read in the layers of one window."""

    decode: tuple[DecodeGroup, ...]
    extend: tuple[ExtendRow, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a step as arrays: row r reads tokens [firsts[r], lengths[r]) of slots[r]."""

    table: NDArray[np.int32]
    slots: NDArray[np.int32]
    firsts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    page_size: int

    def cells(self, rows: list[int]) -> Cells:
        """Where these rows lie. A shorter row is filled up with its own newest token."""
        firsts, lengths = self.firsts[rows], self.lengths[rows]
        longest = int((lengths - firsts).max())
        places = np.minimum(firsts[:, None] + np.arange(longest), lengths[:, None] - 1)
        pages = self.table[self.slots[rows][:, None], places // self.page_size].astype(np.int64)
        cells = (pages * self.page_size + places % self.page_size).reshape(-1)
        if len(rows) == 1 and _is_run(cells):
            return Cells(1, longest, int(cells[0]), None)
        return Cells(len(rows), longest, -1, torch.from_numpy(cells))


def _is_run(cells: NDArray[np.int64]) -> bool:
    # The distance of the ends alone could be right by chance, where a table goes back and forth.
    return cells[-1] - cells[0] == len(cells) - 1 and bool((np.diff(cells) == 1).all())


def _decode_groups(rows: Rows, count: int, dtype: torch.dtype, most: int) -> Iterator[DecodeGroup]:
    """Rows by falling length, cut where a row is so much shorter that padding it would cost more than a call, and
    where a call would have more than `most` cells."""
    lengths = (rows.lengths - rows.firsts)[:count]
    order = np.argsort(-lengths, kind="stable").tolist()
    begin = 0
    while begin < count:
        longest = int(lengths[order[begin]])
        end = begin + 1
        while (
            end < count
            and lengths[order[end]] >= min(longest * SIMILAR, longest - SHORT)
            and (end + 1 - begin) * longest <= most
        ):
            end += 1
        chosen = sorted(order[begin:end])
        mask = None
        if lengths[order[end - 1]] < longest:
            beyond = np.arange(longest) >= lengths[chosen][:, None]
            mask = _mask(torch.from_numpy(beyond), dtype)[:, None, None]
        tokens = None if len(chosen) == count else torch.tensor(chosen)
        yield DecodeGroup(rows.cells(chosen), tokens, mask)
        begin = end


def _mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _extend_row(
    rows: Rows,
    row: int,
    begin: int,
    end: int,
    window: int,
    mutual: Sequence[tuple[int, int]],
    dtype: torch.dtype,
) -> ExtendRow:
    count, length = end - begin, int(rows.lengths[row])
    cells = rows.cells([row])
    many = dtype is torch.bfloat16 and count * cells.length >= MANY
    mine = [span for span in mutual if begin <= span[0] < end]
    if not many and not mine and count == cells.length and not (window and window < length):
        return ExtendRow(cells, begin, end, False, None)
    # Without a window only the chunk's own tokens hide anything from each other.
    masked = count if many and not window else cells.length
    own = torch.arange(length - count, length)[:, None]
    read = torch.arange(length - masked, length)
    hidden = read > own
    for first, last in mine:
        assert last <= end, "tokens that read each other are in one row"
        hidden[first - begin : last - begin, masked - (end - first) : masked - (end - last)] = False
    if window:
        hidden |= read <= own - window
    return ExtendRow(cells, begin, end, many, _mask(hidden, torch.float32 if many else dtype))


class CpuAttention:
    """`reach` and `attend` of the CPU's op table. Holds the scratch that gathered cells are copied to.

    cell_elements: keys of one token in one layer, kv heads times head size; decides how calls are cut. 0: no
    scratch, cells in a row are read in place."""

    def __init__(self, dtype: torch.dtype, cell_elements: int) -> None:
        self.dtype = dtype
        self.most = CALL_BYTES // (max(1, cell_elements) * dtype.itemsize)
        size = GATHER_BYTES // dtype.itemsize if cell_elements else 0
        self.scratch = torch.empty((2, size), dtype=dtype)

    def reach(
        self,
        inputs: StepInputs,
        page_table: Tensor,
        page_size: int,
        window: int,
        mutual: Sequence[tuple[int, int]] = (),
    ) -> CpuReach:
        """Host work, once per step and window. Reads tables and lengths, never the slab."""
        table = page_table.numpy()
        slots, lengths, edges = inputs.slots.numpy(), inputs.lengths.numpy(), inputs.row_offsets.numpy()
        firsts = np.maximum(lengths - np.diff(edges) + 1 - window, 0) if window else np.zeros_like(lengths)
        rows = Rows(table, slots, firsts, lengths, page_size)
        decode = inputs.shape.decode_rows
        extend = tuple(
            _extend_row(rows, row, int(edges[row]), int(edges[row + 1]), window, mutual, self.dtype)
            for row in range(decode, len(slots))
        )
        return CpuReach(tuple(_decode_groups(rows, decode, self.dtype, self.most)), extend)

    def attend(
        self,
        query: Tensor,
        key_cells: Tensor,
        value_cells: Tensor,
        reach: CpuReach,
        scale: float,
        cap: float = 0.0,
    ) -> Tensor:
        """query [T, H, D] -> [T, H, D], as `reach` says."""
        if len(reach.decode) == 1 and not reach.extend:
            return self._decode(query, key_cells, value_cells, reach.decode[0], scale, cap)
        out = torch.empty_like(query)
        for group in reach.decode:
            if group.tokens is None:
                rows = group.cells.rows
                out[:rows] = self._decode(query[:rows], key_cells, value_cells, group, scale, cap)
            else:
                mine = query.index_select(0, group.tokens)
                found = self._decode(mine, key_cells, value_cells, group, scale, cap)
                out.index_copy_(0, group.tokens, found)
        for row in reach.extend:
            extend = _extend_many if row.many else _extend_few
            part = slice(row.begin, row.end)
            extend(out[part], query[part], key_cells, value_cells, row, scale, cap)
        return out

    def _decode(
        self,
        query: Tensor,
        key_cells: Tensor,
        value_cells: Tensor,
        group: DecodeGroup,
        scale: float,
        cap: float,
    ) -> Tensor:
        """The query heads that share a kv head are taken as so many queries, so that its keys are read once."""
        rows, heads, size = query.shape
        shared = query.view(rows, key_cells.shape[1], -1, size)
        keys = group.cells.read(key_cells, self.scratch[0])
        values = group.cells.read(value_cells, self.scratch[1])
        if cap:
            read = _capped(shared, keys, values, group.mask, scale, cap)
        else:
            read = F.scaled_dot_product_attention(shared, keys, values, group.mask, scale=scale)
        return read.reshape(rows, heads, size)


def _capped(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, cap: float
) -> Tensor:
    """query [rows, G, n, D] over keys and values [rows, G, length, D], scores capped before `mask` is added."""
    scores = torch.matmul(query.float(), keys.float().transpose(-1, -2))
    scores = scores.mul_(scale / cap).tanh_().mul_(cap)
    if mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(-1), values.float()).to(query.dtype)


def _extend_capped(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, cap: float
) -> Tensor:
    """query [shared, G, n, D] over keys and values [1, G, length, D], one kv head after the other, in cuts that
    stay in the cache. mask: as ExtendRow has it."""
    shared, kv_heads, count, _ = query.shape
    length = keys.shape[2]
    if mask is None:
        mask = _mask(torch.ones(count, count, dtype=torch.bool).triu_(1), torch.float32)
    cut = max(1, SCORES // (shared * length))
    out = torch.empty_like(query)
    for head in range(kv_heads):
        for begin in range(0, count, cut):
            part = slice(begin, begin + cut)
            mine = slice(head, head + 1)
            out[:, mine, part] = _capped(
                query[:, mine, part], keys[:, mine], values[:, mine], mask[part], scale, cap
            )
    return out


def _extend_few(
    out: Tensor,
    query: Tensor,
    key_cells: Tensor,
    value_cells: Tensor,
    row: ExtendRow,
    scale: float,
    cap: float,
) -> None:
    """Query heads that share a kv head become a batch over the same keys, expanded and not copied."""
    count, heads, size = query.shape
    kv_heads = key_cells.shape[1]
    shared = heads // kv_heads
    keys, values = row.cells.read(key_cells), row.cells.read(value_cells)
    turned = query.view(count, kv_heads, shared, size).permute(2, 1, 0, 3)
    if cap:
        read = _extend_capped(turned, keys, values, row.mask, scale, cap)
    else:
        read = F.scaled_dot_product_attention(
            turned,
            keys.expand(shared, -1, -1, -1),
            values.expand(shared, -1, -1, -1),
            row.mask,
            is_causal=row.mask is None,
            scale=scale,
        )
    out.view(count, kv_heads, shared, size).copy_(read.permute(2, 1, 0, 3))


def _extend_many(
    out: Tensor,
    query: Tensor,
    key_cells: Tensor,
    value_cells: Tensor,
    row: ExtendRow,
    scale: float,
    cap: float,
) -> None:
    """One kv head at a time, all its query heads at once, in cuts that stay in the cache."""
    count, heads, size = query.shape
    shared = heads // key_cells.shape[1]
    keys, values = row.cells.read(key_cells)[0], row.cells.read(value_cells)[0]
    length = keys.shape[1]
    assert row.mask is not None
    older = length - row.mask.shape[1]
    cut = max(1, SCORES // (shared * length))
    for head in range(keys.shape[0]):
        mine = slice(head * shared, (head + 1) * shared)
        turned = keys[head].t()
        for begin in range(0, count, cut):
            part = query[begin : begin + cut, mine].transpose(0, 1)
            rows = part.shape[1]
            part = part.reshape(shared * rows, size)
            scores = torch.mm(part, turned)
            rest = torch.addmm(scores, part, turned, beta=-1.0)
            scores = scores.float().add_(rest).view(shared, rows, length).mul_(scale)
            if cap:
                scores.div_(cap).tanh_().mul_(cap)
            scores[..., older:].add_(row.mask[begin : begin + rows])
            weights = scores.softmax(-1).to(query.dtype).view(shared * rows, length)
            read = torch.mm(weights, values[head]).view(shared, rows, size)
            out[begin : begin + rows, mine] = read.transpose(0, 1)
