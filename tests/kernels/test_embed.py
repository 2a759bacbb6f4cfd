"""From tokens to rows."""

from __future__ import annotations

import pytest
import torch

from headrace.kernels import reference
from headrace.kernels.embed import embed

ON_GPU = torch.cuda.is_available()
WIDTHS = [1, 64, 1100, *([1024, 4096] if ON_GPU else [])]


@pytest.mark.parametrize("width", WIDTHS)
def test_equals_the_reference(width: int, dtype, device, generator, random_tensor, capture) -> None:
    table = random_tensor(50, width, dtype=dtype)
    token_ids = torch.tensor([3, -1, 0, 49, -1, 7], device=device)
    slots = torch.tensor([0, 4, 1, 2, 5, -1], dtype=torch.int32, device=device)
    last_tokens = torch.randint(50, (6,), generator=generator).to(device)
    out = table.new_empty(6, width)
    replay = capture(lambda: embed(token_ids, slots, last_tokens, table, out))
    last_tokens.copy_(torch.randint(50, (6,), generator=generator))
    token_ids.copy_(token_ids.roll(1))
    out.fill_(float("nan"))
    replay()
    assert torch.equal(out, reference.embed(token_ids, slots, last_tokens, table))
    assert torch.equal(out[0], table[7]) and torch.equal(out[2], table[last_tokens[1]])


def test_padding_reads_nothing_and_becomes_zeros(dtype, device, random_tensor) -> None:
    table = random_tensor(8, 64, dtype=dtype)
    last_tokens = torch.tensor([5, 1 << 40], device=device)  # nothing may follow the second one
    token_ids = torch.tensor([-1, -1, 1 << 40, 2], device=device)
    slots = torch.tensor([0, -1, -1, 0], dtype=torch.int32, device=device)
    out = torch.full((4, 64), float("nan"), dtype=dtype, device=device)
    embed(token_ids, slots, last_tokens, table, out)
    assert torch.equal(out[[0, 3]], table[[5, 2]])
    assert not out[1:3].any()


def test_rows_of_a_wider_table(dtype, random_tensor, device) -> None:
    table = random_tensor(8, 100, dtype=dtype)[:, 4:68]
    token_ids, slots = torch.tensor([7, 0], device=device), torch.zeros(2, dtype=torch.int32, device=device)
    out = table.new_full((2, 64), float("nan"))
    embed(token_ids, slots, torch.zeros(1, dtype=torch.int64, device=device), table, out)
    assert torch.equal(out, table[[7, 0]])


def test_wrong_tensors_are_refused(device) -> None:
    ids, slots = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)
    table, out = torch.ones(4, 64), torch.ones(2, 64)
    for wrong in (
        (ids.float(), slots, ids, table, out),
        (ids, slots.long(), ids, table, out),
        (ids, slots, ids, table, out.half()),
        (ids, slots, ids, table, out[:1]),
    ):
        with pytest.raises(AssertionError):
            embed(*(tensor.to(device) for tensor in wrong))
