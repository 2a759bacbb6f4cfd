"""Device memory of requests for the GPU engine: KV pages, and every small table by slot in one int32 arena."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.runtime.models.config import ModelConfig


class DeviceSlab:
    """KV of every page and what each slot needs, allocated once.

    pages: [layers, 2, page_count, page_size, kv_heads, head_dim]; in memory the tokens of one head in one page
    lie together, so that attention reads whole runs. page_table: int32 [slots, pages_per_slot]. settings: int32
    [slots, settings_words]. shifts: int32 [slots], what is added to an index to find the token's place on the
    axes of a model that sees. All three are parts of `arena`. last_tokens: int64 [slots].

    The host keeps a copy of the arena, so that only words that change travel.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        page_count: int,
        page_size: int,
        slots: int,
        pages_per_slot: int,
        settings_words: int,
    ) -> None:
        shape = (config.layers, 2, page_count, config.kv_heads, page_size, config.head_dim)
        self.page_count = page_count
        self.page_size = page_size
        self.pages_per_slot = pages_per_slot
        self.settings_words = settings_words
        memory = torch.zeros(shape, dtype=dtype, device=device)
        self.pages = memory.transpose(3, 4)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.pages]
        self._settings_at = slots * pages_per_slot
        self._shifts_at = self._settings_at + slots * settings_words
        self.arena = torch.zeros(self._shifts_at + slots, dtype=torch.int32, device=device)
        self.page_table = self.arena[: self._settings_at].view(slots, pages_per_slot)
        self.settings = self.arena[self._settings_at : self._shifts_at].view(slots, settings_words)
        self.shifts = self.arena[self._shifts_at :]
        self.last_tokens = torch.zeros(slots, dtype=torch.int64, device=device)
        self._shadow: NDArray[np.int32] = np.zeros(self.arena.numel(), dtype=np.int32)

    def write_pages(self, slot: int, first: int, pages: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Places and values that make entries [first, first + len(pages)) of the page table of `slot` these.

        Entries behind them keep what an earlier owner left: nobody reads beyond a row's length."""
        assert all(0 <= page < self.page_count for page in pages), pages
        assert first + len(pages) <= self.pages_per_slot
        return self._changes(slot * self.pages_per_slot + first, np.array(pages, dtype=np.int32))

    def write_settings(self, slot: int, row: NDArray[np.int32]) -> tuple[list[int], list[int]]:
        """Places and values that make the settings of `slot` this row."""
        assert row.shape == (self.settings_words,) and row.dtype == np.int32
        return self._changes(self._settings_at + slot * self.settings_words, row)

    def write_shift(self, slot: int, shift: int) -> tuple[list[int], list[int]]:
        """Places and values that make `shift` that of `slot`."""
        return self._changes(self._shifts_at + slot, np.array([shift], dtype=np.int32))

    def _changes(self, place: int, row: NDArray[np.int32]) -> tuple[list[int], list[int]]:
        held = self._shadow[place : place + len(row)]
        changed = np.flatnonzero(held != row)
        held[changed] = row[changed]
        return (changed + place).tolist(), row[changed].tolist()
