"""plan_work cuts rows into splits by their own lengths alone, and lists no split of padding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headrace.kernels import reference
from headrace.kernels.attention_work import plan_work, work_shape


@pytest.mark.parametrize("rows", [1, 7, 65, 512] if torch.cuda.is_available() else [1, 7, 20])
@pytest.mark.parametrize(
    ("split", "most_splits", "window"),
    [(16, 4, 0), (64, 32, 0), (16, 8, 33), (32, 2, 4096), (1, 1, 0)],
)
def test_rows_are_cut_as_the_twin_says(
    rows: int,
    split: int,
    most_splits: int,
    window: int,
    device: torch.device,
    generator: torch.Generator,
    capture: Callable[..., Callable[[], None]],
) -> None:
    slots = torch.zeros(rows, dtype=torch.int32, device=device)
    lengths = torch.zeros(rows, dtype=torch.int32, device=device)
    items = torch.zeros(work_shape(rows, most_splits), dtype=torch.int32, device=device)
    count = torch.zeros(1, dtype=torch.int32, device=device)
    step = capture(lambda: plan_work(slots, lengths, items, count, split, most_splits, window))
    for most in (1, 3 * split, 131072):
        slots.copy_(torch.randint(-1, 500, (rows,), generator=generator))
        lengths.copy_(torch.randint(1, most + 1, (rows,), generator=generator))
        items.fill_(-7)
        count.fill_(-7)
        expected = reference.plan_work(slots.cpu(), lengths.cpu(), split, most_splits, window)
        step()
        assert count.item() == len(expected)
        assert torch.equal(items[: len(expected)].cpu(), expected)
        assert (items[len(expected) :] == -7).all()


@pytest.mark.parametrize("split", [16, 64])
def test_edges_of_a_length(split: int, device: torch.device) -> None:
    """Empty rows, one token, one below and above a split, and just where the split doubles."""
    edges = [0, 1, split - 1, split, split + 1, 4 * split, 4 * split + 1, 8 * split, 8 * split + 1]
    slots = torch.arange(len(edges), dtype=torch.int32, device=device)
    lengths = torch.tensor(edges, dtype=torch.int32, device=device)
    items = torch.zeros(work_shape(len(edges), 4), dtype=torch.int32, device=device)
    count = torch.zeros(1, dtype=torch.int32, device=device)
    plan_work(slots, lengths, items, count, split, 4)
    expected = reference.plan_work(slots.cpu(), lengths.cpu(), split, 4, 0)
    assert torch.equal(items[: int(count.item())].cpu(), expected)
    # Every token of every row exactly once.
    for row, length in enumerate(edges):
        pieces = expected[expected[:, 0] == row]
        assert (pieces[:, 3] - pieces[:, 2]).sum().item() == length


def test_neighbours_do_not_change_how_a_row_is_cut(device: torch.device) -> None:
    def cut(lengths: list[int]) -> torch.Tensor:
        rows = len(lengths)
        items = torch.zeros(work_shape(rows, 8), dtype=torch.int32, device=device)
        count = torch.zeros(1, dtype=torch.int32, device=device)
        slots = torch.arange(rows, dtype=torch.int32, device=device)
        plan_work(slots, torch.tensor(lengths, dtype=torch.int32, device=device), items, count, 16, 8)
        found = items[: int(count.item())]
        return found[found[:, 1] == 0][:, 2:4].cpu()

    assert torch.equal(cut([1000]), cut([1000, 1, 131072, 17, 1000]))
