"""Device tables of a few slots, granted as the engine does it, and sampling params drawn from all that is legal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headrace.kernels import reference_sampling
from headrace.kernels.settings import SETTINGS_WIDTH, mask_words
from headrace.runtime.device_sampling import history_cells, settings_row
from headrace.runtime.plan import SlotGrant
from headrace.runtime.request import SamplingParams

POISON = -559038737


def grant_of(
    slot: int, params: SamplingParams, known: tuple[int, ...], prompt_len: int, guided: bool = False
) -> SlotGrant:
    history = known if params.needs_history else ()
    return SlotGrant(slot, slot, params, prompt_len, (), history, guided=guided)


def random_params(random: np.random.Generator, width: int) -> SamplingParams:
    """Any mix of options; each is off about half of the time."""

    def one_of(*values: object) -> object:
        return values[random.integers(len(values))]

    def ids(most: int) -> list[int]:
        return random.integers(0, width, random.integers(1, most)).tolist()

    return SamplingParams(
        temperature=one_of(0.0, 1e-3, 0.3, 0.7, 1.0, 1.0, 2.0, 30.0),
        top_k=one_of(0, 0, 0, 1, 5, 40, width // 2, width, 1 << 31),
        top_p=one_of(1.0, 1.0, 1.0, 5e-324, 0.05, 0.5, 0.9, 0.99, 1.0 - 2**-53),
        min_p=one_of(0.0, 0.0, 0.0, 5e-324, 0.01, 0.2, 1.0),
        repetition_penalty=one_of(1.0, 1.0, 1.3, 0.01, 100.0),
        presence_penalty=one_of(0.0, 0.0, 0.5, -2.0),
        frequency_penalty=one_of(0.0, 0.0, 0.7, -0.3),
        logit_bias=one_of((), (), tuple((token, random.uniform(-9, 9)) for token in ids(20))),
        seed=int(random.integers(0, 1 << 64, dtype=np.uint64)),
        stop_ids=one_of(frozenset(), frozenset(ids(40))),
        min_tokens=one_of(0, 2, 1 << 31),
    )


@dataclass
class Tables:
    """Every per-slot table that sampling reads or writes, and the tokens of one call's rows."""

    settings: Tensor
    history: Tensor
    masks: Tensor
    last_tokens: Tensor
    width: int

    def grant(self, grant: SlotGrant) -> None:
        row = torch.from_numpy(settings_row(grant, self.width))
        self.settings[grant.slot] = row.to(self.settings.device)
        if grant.params.needs_history:
            ids, cells = (torch.from_numpy(part).to(self.history.device) for part in self.cells(grant))
            reference_sampling.reset(self.history, grant.slot, ids, cells)

    def cells(self, grant: SlotGrant) -> tuple[np.ndarray, np.ndarray]:
        return history_cells(grant, self.width)

    def copy(self) -> Tables:
        parts = (self.settings, self.history, self.masks, self.last_tokens)
        return Tables(*(part.clone() for part in parts), self.width)

    def equals(self, other: Tables) -> bool:
        return all(
            torch.equal(getattr(self, name), getattr(other, name))
            for name in ("settings", "history", "masks", "last_tokens")
        )

    def sample_by_twin(self, logits: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        tokens = torch.full_like(slots, POISON)
        reference_sampling.sample(
            logits, slots, positions, self.settings, self.history, self.masks, tokens, self.last_tokens
        )
        return tokens


def tables_of(slots: int, width: int, device: torch.device | str = "cpu") -> Tables:
    """Tables that hold nothing but poison."""
    return Tables(
        settings=torch.full((slots, SETTINGS_WIDTH), POISON, dtype=torch.int32, device=device),
        history=torch.full((slots, width), POISON, dtype=torch.int32, device=device),
        masks=torch.full((slots, mask_words(width)), POISON, dtype=torch.int32, device=device),
        last_tokens=torch.full((slots,), POISON, dtype=torch.int64, device=device),
        width=width,
    )
