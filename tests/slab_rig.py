"""A paged KV slab for kernel tests: random tokens in scattered pages, and NaN in every cell nobody owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PagedRows:
    """Rows of `lengths` tokens in one layer's pages; row r lives in slot slots[r] (-1: padding, length 0).

    key_pages, value_pages [P, page_size, G, D], in memory [P, G, page_size, D]; cells beyond a row's length, and
    some pages, belong to nobody and hold NaN. page_table names one such page where a row has no page.
    """

    def __init__(
        self,
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
        lengths: Sequence[int],
        page_size: int,
        kv_heads: int,
        head_dim: int,
        spare: int = 0,
    ) -> None:
        """`spare`: how many tokens each row can still grow by, so that its pages are there."""
        needed = [-(-(length + spare) // page_size) if length >= 0 else 0 for length in lengths]
        live = [row for row, length in enumerate(lengths) if length >= 0]
        count = len(lengths) + 3
        places = torch.randperm(count, generator=generator)[: len(lengths)].tolist()
        self.page_size = page_size
        self.lengths = [max(length, 0) for length in lengths]
        self.slots = [places[row] if row in live else -1 for row in range(len(lengths))]
        order = torch.randperm(sum(needed) + 3, generator=generator).tolist()
        self.nobody = order.pop()
        width = max([1, *needed]) + 1
        table = torch.full((count, width), self.nobody, dtype=torch.int32)
        shape = (len(order) + 1, kv_heads, page_size, head_dim)
        keys, values = (torch.full(shape, float("nan")) for _ in range(2))
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for row, length in enumerate(self.lengths):
            pages = [order.pop() for _ in range(needed[row])]
            if self.slots[row] >= 0:
                table[self.slots[row], : len(pages)] = torch.tensor(pages, dtype=torch.int32)
            pair = torch.randn(2, length, kv_heads, head_dim, generator=generator).to(dtype)
            for pool, own in zip((keys, values), pair, strict=True):
                for place in range(length):
                    pool[pages[place // page_size], :, place % page_size] = own[place].float()
            self.keys.append(pair[0])
            self.values.append(pair[1])
        self.key_pages = keys.to(dtype).to(device).transpose(1, 2)
        self.value_pages = values.to(dtype).to(device).transpose(1, 2)
        self.page_table = table.to(device)
        self.row_slots = torch.tensor(self.slots, dtype=torch.int32, device=device)
        self.row_lengths = torch.tensor(self.lengths, dtype=torch.int32, device=device)

    def cells(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Copies on the CPU as the plain-torch twins take them: [P * page_size, G, D]."""
        pages = (self.key_pages, self.value_pages)
        keys, values = (side.detach().cpu().to(dtype).flatten(0, 1).contiguous() for side in pages)
        return keys, values


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal bit for bit, except that one NaN is as good as another."""
    return found.shape == expected.shape and bool(
        ((found == expected) | (found.isnan() & expected.isnan())).all().item()
    )
