"""The tensors that one step reads, each with its padding declared beside it. Knows shapes, no model and no plan.

Tokens lie flat: first one per decode row, then the tokens of the prefill rows. A step of fewer rows or tokens than
its shape is padded by FIELDS, so that a captured graph of that shape can run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

FROM_SLOT = -1  # token id of a decode row: take the token that this slot sampled last


@dataclass(frozen=True, slots=True)
class InputField:
    """One static tensor: its dtype, which count sizes it, what fills its tail and why that is harmless."""

    dtype: torch.dtype
    axis: Literal["tokens", "rows", "edges", "samples"]
    pad: int
    why: str


FIELDS: dict[str, InputField] = {
    "token_ids": InputField(
        torch.int64, "tokens", 0, "any embedding row will do: nobody reads the token's output"
    ),
    "positions": InputField(
        torch.int64, "tokens", 0, "a valid angle, and entry 0 of a page table is always there"
    ),
    "token_slots": InputField(
        torch.int32, "tokens", -1, "cells of slot -1 are -1, which store_kv leaves alone"
    ),
    "slots": InputField(torch.int32, "rows", -1, "attention returns at slot -1"),
    "lengths": InputField(torch.int32, "rows", 0, "no token to attend to"),
    "row_offsets": InputField(torch.int32, "edges", -1, "the last real edge again: padded rows are empty"),
    "sample_tokens": InputField(
        torch.int64, "samples", 0, "logits of token 0 once more; the sampler skips them"
    ),
}


@dataclass(frozen=True, slots=True)
class StepShape:
    """Counts that a step has, or is padded to. The first `decode_rows` rows hold one token each."""

    decode_rows: int
    prefill_rows: int
    tokens: int
    samples: int

    def count(self, axis: str) -> int:
        rows = self.decode_rows + self.prefill_rows
        return {"tokens": self.tokens, "rows": rows, "edges": rows + 1, "samples": self.samples}[axis]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What `forward` reads besides weights and KV. Views of static buffers: valid until the next `fill`.

    token_ids[t]: int64, or FROM_SLOT. positions[t]: int64. token_slots[t]: int32, the slot of the token's row.
    slots[r], lengths[r]: int32; a row's KV length after this step. row_offsets[r]: int32 edges of the rows in the
    tokens. sample_tokens[s]: int64, the tokens whose logits are wanted.
    """

    shape: StepShape
    token_ids: Tensor
    positions: Tensor
    token_slots: Tensor
    slots: Tensor
    lengths: Tensor
    row_offsets: Tensor
    sample_tokens: Tensor


@dataclass(frozen=True, slots=True)
class RowLayout:
    """One row as numbers: tokens [start, start + count) of `slot`; `ids` is None where the slot's last token is
    meant (count 1)."""

    slot: int
    start: int
    count: int
    ids: Sequence[int] | None
    sample: bool


class StepBuffers:
    """The static tensors behind StepInputs, allocated once for the largest step."""

    def __init__(self, max_tokens: int, max_rows: int) -> None:
        largest = StepShape(max_rows, 0, max_tokens, max_rows)
        self.host: dict[str, np.ndarray] = {}
        self.device: dict[str, Tensor] = {}
        for name, field in FIELDS.items():
            tensor = torch.full((largest.count(field.axis),), field.pad, dtype=field.dtype)
            self.device[name] = tensor
            self.host[name] = tensor.numpy()  # the same memory: there is one device today, the CPU

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.host.values())

    def fill(
        self, decode: Sequence[RowLayout], prefill: Sequence[RowLayout], shape: StepShape | None = None
    ) -> StepInputs:
        """The inputs of a step; padded to `shape` where one is given. Overwrites what `fill` returned before."""
        rows = [*decode, *prefill]
        assert all(row.count == 1 for row in decode), "a decode row holds one token"
        samples = [row.sample for row in rows].count(True)
        exact = StepShape(len(decode), len(prefill), sum(row.count for row in rows), samples)
        shape = shape or exact
        assert shape.decode_rows >= exact.decode_rows and shape.tokens >= exact.tokens
        assert shape == exact or not prefill, "only steps of decode rows are padded"
        host = self.host
        host["row_offsets"][0] = 0
        # Decode rows lie one token each at the front, so all of them are written at once.
        count = len(decode)
        host["token_ids"][:count] = [FROM_SLOT if row.ids is None else row.ids[0] for row in decode]
        host["positions"][:count] = starts = [row.start for row in decode]
        host["slots"][:count] = host["token_slots"][:count] = [row.slot for row in decode]
        host["lengths"][:count] = [start + 1 for start in starts]
        host["row_offsets"][1 : count + 1] = np.arange(1, count + 1)
        wanted = [index for index, row in enumerate(decode) if row.sample]
        token = count
        for index, row in enumerate(prefill, count):
            end = token + row.count
            host["token_ids"][token:end] = FROM_SLOT if row.ids is None else row.ids
            host["positions"][token:end] = np.arange(row.start, row.start + row.count)
            host["token_slots"][token:end] = row.slot
            host["slots"][index] = row.slot
            host["lengths"][index] = row.start + row.count
            host["row_offsets"][index + 1] = end
            if row.sample:
                wanted.append(end - 1)
            token = end
        host["sample_tokens"][: len(wanted)] = wanted
        sample = len(wanted)
        used = {"tokens": token, "rows": len(rows), "edges": len(rows) + 1, "samples": sample}
        views = {}
        for name, field in FIELDS.items():
            size = shape.count(field.axis)
            tail = host[name][used[field.axis] : size]
            tail[:] = token if name == "row_offsets" else field.pad
            views[name] = self.device[name][:size]
        return StepInputs(shape, **views)


assert [field.name for field in fields(StepInputs)][1:] == list(FIELDS), "one padding policy per tensor"
