"""Grants and one-row draws, spelled briefly."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from headrace.runtime.plan import SlotGrant
from headrace.runtime.request import SamplingParams
from headrace.runtime.sampling import SamplingTable


def grant(
    slot: int, params: SamplingParams, known: tuple[int, ...] = (0,), prompt_len: int | None = None
) -> SlotGrant:
    return SlotGrant(
        slot=slot,
        req_id=slot + 100,
        params=params,
        prompt_len=len(known) if prompt_len is None else prompt_len,
        pages=(),
        history=known if params.needs_history else (),
    )


def table_of(width: int, *grants: SlotGrant) -> SamplingTable:
    table = SamplingTable(max(each.slot for each in grants) + 1, width)
    for each in grants:
        table.grant(each)
    return table


def one(row: torch.Tensor, params: SamplingParams, position: int = 1, known: tuple[int, ...] = (0,)) -> int:
    """The token that a fresh slot chooses from one row."""
    table = table_of(row.shape[-1], grant(0, params, known))
    return table.sample(row.reshape(1, -1), [0], [position])[0]


@pytest.fixture
def draws() -> SimpleNamespace:
    return SimpleNamespace(grant=grant, table_of=table_of, one=one)
