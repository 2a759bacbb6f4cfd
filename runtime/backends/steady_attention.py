"""Attention whose bits depend on the sequence alone: keys in blocks at fixed places, one after the other.

Every block is a product of the same shape. One that is hidden from a token, wholly or in part, adds exact zeros to
it. Scores, weights and sums are float32 whatever the slab holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.graphs.inputs import StepInputs
from headrace.runtime.backends.row_counts import agreeing, pieces

TILES = (16, 1)  # tokens of one request that are taken at once, where they agree; the first is the measure
BLOCK = 256  # keys of one product
TRIALS = 2  # draws of numbers that two tiles must agree on


@dataclass(frozen=True, slots=True)
class SteadyRow:
    """One row of a step: its tokens [begin, end), their first position, and the cells of its sequence from `first`
    (a multiple of BLOCK) on, padded to whole blocks with the newest one. mutual: positions [begin, end) whose
    tokens read each other too."""

    begin: int
    end: int
    position: int
    first: int
    cells: Tensor
    mutual: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SteadyReach:
    """What a step reads in layers of one window (0: everything before)."""

    rows: tuple[SteadyRow, ...]
    window: int


class SteadyAttention:
    """`reach` and `attend` of an op table.

    heads, kv_heads, head_dim: of the model. Which tile sizes agree is found when it is made."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int) -> None:
        self.kv_heads = kv_heads
        self.shared = heads // kv_heads
        made = torch.Generator().manual_seed(0)
        sizes = (2 * BLOCK, kv_heads, head_dim)
        keys, values = (torch.randn(sizes, generator=made) for _ in range(2))
        hidden = torch.arange(2 * BLOCK)[None].expand(max(TILES), -1) > 300

        def compute(query: Tensor) -> Tensor:
            return self._tile(query, *self._blocks(keys, values), hidden[: len(query)], 0.1, 0.0)

        draws = [torch.randn((max(TILES), heads, head_dim), generator=made) for _ in range(TRIALS)]
        self.tiles = agreeing(TILES, compute, draws)

    def reach(
        self,
        inputs: StepInputs,
        page_table: Tensor,
        page_size: int,
        window: int,
        mutual: Sequence[tuple[int, int]] = (),
    ) -> SteadyReach:
        """Host work, once per step and window."""
        table = page_table.numpy()
        slots, lengths, edges = inputs.slots.numpy(), inputs.lengths.numpy(), inputs.row_offsets.numpy()
        rows = []
        for row, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
            begin, end = int(edges[row]), int(edges[row + 1])
            position = length - (end - begin)
            first = max(0, position - window + 1) // BLOCK * BLOCK if window else 0
            cells = _cells(table[slot], first, length, page_size)
            shift = position - begin
            mine = tuple(
                (span[0] + shift, span[1] + shift) for span in mutual if begin <= span[0] and span[1] <= end
            )
            rows.append(SteadyRow(begin, end, position, first, cells, mine))
        return SteadyReach(tuple(rows), window)

    def attend(
        self,
        query: Tensor,
        key_cells: Tensor,
        value_cells: Tensor,
        reach: SteadyReach,
        scale: float,
        cap: float = 0.0,
    ) -> Tensor:
        """query [T, H, D] -> [T, H, D]."""
        out = torch.empty_like(query)
        for row in reach.rows:
            keys, values = self._blocks(
                key_cells.index_select(0, row.cells).float(), value_cells.index_select(0, row.cells).float()
            )
            read = torch.arange(row.first, row.first + len(row.cells))[None]
            for begin, end, count in pieces(row.end - row.begin, self.tiles):
                own = torch.arange(row.position + begin, row.position + begin + count)[:, None]
                hidden = read > own
                for first, last in row.mutual:
                    hidden &= ~((own >= first) & (own < last) & (read >= first) & (read < last))
                if reach.window:
                    hidden |= read <= own - reach.window
                part = query[row.begin + begin : row.begin + end].float()
                if end - begin < count:
                    part = torch.cat((part, part.new_zeros((count - len(part), *part.shape[1:]))))
                found = self._tile(part, keys, values, hidden, scale, cap)
                out[row.begin + begin : row.begin + end] = found[: end - begin]
        return out

    def _blocks(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[N, G, D] each -> keys [N / BLOCK, G, D, BLOCK], values [N / BLOCK, G, BLOCK, D]."""
        shape = (-1, BLOCK, *keys.shape[1:])
        return (
            keys.view(shape).permute(0, 2, 3, 1).contiguous(),
            values.view(shape).permute(0, 2, 1, 3).contiguous(),
        )

    def _tile(
        self, query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, scale: float, cap: float
    ) -> Tensor:
        """query [R, H, D], hidden [R, N] -> [R, H, D], all float32. Query heads that share a kv head are
        so many rows of its products."""
        count, heads, size = query.shape
        blocks, groups, rows = len(keys), self.kv_heads, count * self.shared
        turned = query.view(count, groups, self.shared, size).permute(1, 0, 2, 3).reshape(groups, rows, size)
        scores = torch.stack([torch.bmm(turned, block) for block in keys], 2)  # [G, rows, blocks, BLOCK]
        scores = scores.mul_(scale / cap).tanh_().mul_(cap) if cap else scores.mul_(scale)
        scores = scores.view(groups, count, self.shared, blocks * BLOCK)
        scores.masked_fill_(hidden[:, None], float("-inf"))
        # Which key is highest does not depend on the order of looking, so the weights need no correction later.
        weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_().view(groups, rows, blocks, BLOCK)
        mass = weights[:, :, 0].sum(-1, keepdim=True)
        read = torch.bmm(weights[:, :, 0].contiguous(), values[0])
        for block in range(1, blocks):
            part = weights[:, :, block].contiguous()
            mass = mass + part.sum(-1, keepdim=True)
            read = read + torch.bmm(part, values[block])
        read = read / mass
        return read.view(groups, count, self.shared, size).permute(1, 0, 2, 3).reshape(count, heads, size)


def _cells(pages: NDArray[np.int32], first: int, length: int, page_size: int) -> Tensor:
    places = np.minimum(np.arange(first, -(-length // BLOCK) * BLOCK), length - 1)
    return torch.from_numpy(pages[places // page_size].astype(np.int64) * page_size + places % page_size)
