"""All device memory of requests, allocated once: the KV slab and the tables by slot. Sized in one function."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.runtime.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of everything that lives as long as the engine."""

    weights: int
    kv: int
    tables: int
    scratch: int
    images: int = 0
    plain: int = 0  # weights once more, as a native decode step reads them

    @property
    def total(self) -> int:
        return self.weights + self.plain + self.kv + self.tables + self.scratch + self.images

    def __str__(self) -> str:
        parts = (
            ("weights", self.weights),
            *((("some of them twice", self.plain),) if self.plain else ()),
            ("kv", self.kv),
            ("tables", self.tables),
            ("scratch", self.scratch),
            *((("images", self.images),) if self.images else ()),
        )
        words = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in parts)
        return f"{words}, together {self.total / 2**20:.1f} MiB"


def page_bytes(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Keys and values of one page in all layers."""
    return 2 * config.layers * page_size * config.kv_heads * config.head_dim * dtype.itemsize


def measure(
    config: ModelConfig,
    dtype: torch.dtype,
    parameters: int,
    page_count: int,
    page_size: int,
    slots: int,
    pages_per_slot: int,
    step_tokens: int,
    image_rows: int = 0,
    plain: int = 0,
) -> Sizes:
    """What the engine will allocate. `parameters` counts every weight that is kept, a tied head twice: it is read
    by row as an embedding and packed as a matrix; `plain` those that are kept in a second form. Scratch is what one
    layer and the logits of one step need."""
    widest = 2 * config.intermediate_size + 2 * config.hidden_size
    widest = max(widest, (2 * config.heads + 2 * config.kv_heads) * config.head_dim + 2 * config.hidden_size)
    return Sizes(
        weights=parameters * dtype.itemsize,
        kv=page_count * page_bytes(config, page_size, dtype),
        tables=slots * (pages_per_slot * 4 + 8),
        scratch=step_tokens * widest * dtype.itemsize + slots * config.vocab_size * (dtype.itemsize + 4),
        images=image_rows * config.image_row_size * dtype.itemsize,
        plain=plain * dtype.itemsize,
    )


class KVSlab:
    """KV of every page, the page table and the last sampled token of every slot. Nothing grows after birth.

    data: [layers, 2, page_count, page_size, kv_heads, head_dim]. page_table: int32 [slots, pages_per_slot].
    last_tokens: int64 [slots].
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        page_count: int,
        page_size: int,
        slots: int,
        pages_per_slot: int,
    ) -> None:
        shape = (config.layers, 2, page_count, page_size, config.kv_heads, config.head_dim)
        self.page_count = page_count
        self.page_size = page_size
        # Written once here, so that the machine has really given the memory before the first request.
        self.data = torch.empty(shape, dtype=dtype).fill_(0)
        cells = self.data.view(config.layers, 2, page_count * page_size, config.kv_heads, config.head_dim)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in cells]
        self.page_table = torch.zeros((slots, pages_per_slot), dtype=torch.int32)
        self.last_tokens = torch.zeros(slots, dtype=torch.int64)
        self._table = self.page_table.numpy()

    def grant(self, slot: int, pages: tuple[int, ...]) -> None:
        """The slot has a new owner: its table starts over with `pages`, and its last token is gone."""
        assert all(0 <= page < self.page_count for page in pages), pages
        row = self._table[slot]
        row[: len(pages)] = pages
        row[len(pages) :] = 0
        self.last_tokens[slot] = 0

    def patch(self, slot: int, index: int, page: int) -> None:
        """Entry `index` of the page table of `slot` becomes `page`."""
        assert 0 <= page < self.page_count, page
        self._table[slot, index] = page
