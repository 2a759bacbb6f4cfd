"""The choice of tokens on the GPU: settings and histories by slot, and the launch that reads them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.graphs.packed import ALIGN
from headrace.kernels import history
from headrace.kernels.sampling import sample, scratch
from headrace.kernels.settings import SETTINGS_WIDTH, mask_words
from headrace.runtime.device_sampling import history_cells, settings_row
from headrace.runtime.plan import SlotGrant


def sampler_bytes(slots: int, rows: int, width: int) -> int:
    """What a DeviceSampler of this size allocates."""
    space = scratch(rows, width, "meta")
    held = (getattr(space, name) for name in space.__slots__)
    return slots * (width + mask_words(width)) * 4 + sum(
        each.nbytes for each in held if isinstance(each, Tensor)
    )


class DeviceSampler:
    """Histories and masks of all slots, and the scratch of one launch. The settings table is part of the slab."""

    settings_words = SETTINGS_WIDTH

    def __init__(self, slots: int, rows: int, width: int, device: torch.device) -> None:
        self.width = width
        self.history = torch.zeros((slots, width), dtype=torch.int32, device=device)
        self.masks = torch.zeros((slots, mask_words(width)), dtype=torch.int32, device=device)
        self.scratch = scratch(rows, width, device)

    def settings_row(self, grant: SlotGrant) -> NDArray[np.int32]:
        """The words of the slot's row in the settings table."""
        return settings_row(grant, self.width)

    def history_words(self, grant: SlotGrant) -> NDArray[np.int32]:
        """What `reset_history` needs on the device: ids, then their cells. Both are filled up to whole ALIGN words,
        with ids of -1: a launch whose pointers lie anywhere would compile once more, in somebody's stream."""
        ids, cells = history_cells(grant, self.width)
        more = -len(ids) % ALIGN
        return np.concatenate((np.pad(ids, (0, more), constant_values=-1), np.pad(cells, (0, more))))

    def reset_history(self, slot: int, words: Tensor) -> None:
        """The slot has seen what `words` says and nothing else."""
        half = words.numel() // 2
        history.reset(self.history, slot, words[:half], words[half:])

    def mask_words(self, mask: bytes) -> NDArray[np.int32]:
        """What `set_mask` needs on the device. A mask that ends early allows nothing more."""
        found = np.zeros(self.masks.shape[1], dtype=np.int32)
        given = np.frombuffer(mask[: found.nbytes], dtype=np.uint8)
        found.view(np.uint8)[: len(given)] = given
        return found

    def set_mask(self, slot: int, words: Tensor) -> None:
        """The next token of `slot` is one of these."""
        self.masks[slot].copy_(words, non_blocking=True)

    def sample(
        self, logits: Tensor, slots: Tensor, positions: Tensor, settings: Tensor, tokens: Tensor, last: Tensor
    ) -> None:
        """tokens[i] is chosen from logits[i] for slots[i] and is the slot's last one; slot -1 is skipped."""
        sample(logits, slots, positions, settings, self.history, self.masks, self.scratch, tokens, last)
