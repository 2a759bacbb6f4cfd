"""Random KV slabs for what `headrace bench kernels` times: rows of one length, their pages scattered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.cases import WIDTHS, sets_for

PAGE_SIZE = 64


@dataclass(frozen=True, slots=True)
class Heads:
    """Head counts and size of one of the timed models."""

    model: str
    heads: int
    kv_heads: int
    head_dim: int

    def kv_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """Keys and values of so many tokens in one layer."""
        return 2 * tokens * self.kv_heads * self.head_dim * dtype.itemsize

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def normed(self) -> bool:
        """Whether the model normalises its query and key heads."""
        return self.model.startswith("qwen3")


def timed_heads() -> Iterator[Heads]:
    """Those of every timed model."""
    for model, widths in WIDTHS.items():
        yield Heads(model, widths["heads"], widths["kv_heads"], widths["head_dim"])


class PagedSets:
    """`sets` slabs of one layer, each with `rows` rows of `length` tokens in slots 0 to rows - 1, one page table
    for all. key_pages[i], value_pages[i]: [P, page_size, G, D], in memory [P, G, page_size, D]."""

    def __init__(
        self, heads: Heads, rows: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.heads = heads
        self.rows = rows
        self.page_size = PAGE_SIZE
        self.length = length
        self.device = device
        self.dtype = dtype
        self.sets = sets_for(heads.kv_bytes(rows * length, dtype))
        per_row = -(-length // PAGE_SIZE)
        order = torch.randperm(rows * per_row).to(torch.int32).view(rows, per_row)
        self.page_table = order.to(device).contiguous()
        shape = (self.sets, 2, rows * per_row, heads.kv_heads, PAGE_SIZE, heads.head_dim)
        memory = torch.empty(shape, dtype=dtype, device=device)
        for one in memory:
            one.normal_()
        self.key_pages = [one[0].transpose(1, 2) for one in memory]
        self.value_pages = [one[1].transpose(1, 2) for one in memory]
        self.slots = torch.arange(rows, dtype=torch.int32, device=device)
        self.lengths = torch.full((rows,), length, dtype=torch.int32, device=device)

    def cells(self, index: int) -> tuple[Tensor, Tensor]:
        """Copies as the plain-torch twins take them: [P * page_size, G, D]."""
        return self.key_pages[index].flatten(0, 1), self.value_pages[index].flatten(0, 1)

    def dense(self, index: int) -> tuple[Tensor, Tensor]:
        """Copies as libraries take them: [R, G, length, D]."""
        table = self.page_table.long()
        keys, values = (
            pages[table].flatten(1, 2)[:, : self.length].transpose(1, 2).contiguous()
            for pages in (self.key_pages[index], self.value_pages[index])
        )
        return keys, values

    def inv_freq(self) -> Tensor:
        """Rotary frequencies float32 [D / 2]."""
        exponents = torch.arange(0, self.heads.head_dim, 2, device=self.device).float() / self.heads.head_dim
        return 1.0 / 1e6**exponents

    def qkv(self, tokens: int) -> Tensor:
        """Random qkv rows [tokens, (H + 2G) * D]."""
        width = (self.heads.heads + 2 * self.heads.kv_heads) * self.heads.head_dim
        return torch.randn(tokens, width, device=self.device, dtype=self.dtype)

    def norms(self) -> tuple[Tensor | None, Tensor | None]:
        """Weights of the head norms, where the model has them."""
        if not self.heads.normed:
            return None, None
        first, second = torch.randn(2, self.heads.head_dim, device=self.device, dtype=self.dtype)
        return first, second
