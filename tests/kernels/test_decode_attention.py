"""decode_attention over scattered pages: every split count, group and window, against the twin in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from slab_rig import PagedRows, same

from headrace.kernels import reference
from headrace.kernels.attention_work import plan_work, work_shape
from headrace.kernels.decode_attention import (
    DecodeTuning,
    decode_attention,
    scratch_for,
    tuning_for,
    turn_and_attend,
)
from headrace.kernels.few_attention import attend_few
from headrace.kernels.linear_add import linear_add
from headrace.kernels.norm_linear import norm_linear

ON_GPU = torch.cuda.is_available()
# heads, kv heads, head size, page size
SHAPES = [(4, 2, 16, 16), (16, 8, 128, 64), (6, 2, 64, 32), (5, 1, 80, 16), (2, 2, 32, 128)]
PROGRAMS = 264 if ON_GPU else 5
if ON_GPU:
    SHAPES.append((32, 8, 128, 64))


class Step:
    """Rows of a step with their plan, ready to launch; `out` is poisoned."""

    def __init__(
        self, rows: PagedRows, heads: int, split: int, most_splits: int, window: int, dtype: torch.dtype
    ) -> None:
        device = rows.key_pages.device
        count, (kv_heads, head_dim) = len(rows.lengths), rows.key_pages.shape[2:]
        self.items = torch.zeros(work_shape(count, most_splits), dtype=torch.int32, device=device)
        self.count = torch.zeros(1, dtype=torch.int32, device=device)
        self.scratch = scratch_for(count, most_splits, heads, kv_heads, head_dim, device)
        self.out = torch.full((count, heads * head_dim), float("nan"), dtype=dtype, device=device)
        table = (rows.page_table, rows.page_size)
        plan_work(
            rows.row_slots, rows.row_lengths, self.items, self.count, split, most_splits, window, *table
        )

    def poison(self) -> None:
        self.out.fill_(float("nan"))
        self.scratch.outs.fill_(float("nan"))
        self.scratch.sums.fill_(float("nan"))


def exact(rows: PagedRows, query: torch.Tensor, scale: float, window: int) -> torch.Tensor:
    """The twin's answer in float64, over cells in which nobody's tokens are NaN."""
    keys, values = rows.cells()
    return reference.decode_attention(
        query.cpu().double(), keys, values, rows.page_table.cpu(), rows.row_slots.cpu(),
        rows.row_lengths.cpu(), rows.page_size, scale, window,
    ).flatten(1)  # fmt: skip


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "page_size"), SHAPES)
@pytest.mark.parametrize(
    ("split", "most_splits", "window"),
    [(64, 4, 0), (32, 32, 50)] + [(128, 2, 0), (16, 32, 0), (256, 8, 100)] * ON_GPU,
)
def test_rows_attend_to_their_tokens(
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    split: int,
    most_splits: int,
    window: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    capture: Callable[..., Callable[[], None]],
    distance: Callable[..., float],
    close: float,
) -> None:
    lengths = [1, split, -1, split + 1, 150 if device.type == "cpu" else 3000]
    rows = PagedRows(generator, device, dtype, lengths, page_size, kv_heads, head_dim)
    step = Step(rows, heads, split, most_splits, window, dtype)
    query = random_tensor(len(lengths), heads, head_dim, dtype=dtype)
    scale = head_dim**-0.5
    launch = capture(
        lambda: decode_attention(
            query, rows.key_pages, rows.value_pages, rows.page_table, step.items, step.count, step.scratch,
            step.out, scale, PROGRAMS,
        )
    )  # fmt: skip
    for size in (1.0, 8.0):
        query.copy_(random_tensor(*query.shape, scale=size))
        step.poison()
        launch()
        expected = exact(rows, query, scale, window)
        live = [row for row, slot in enumerate(rows.slots) if slot >= 0]
        for row in live:
            assert distance(step.out[row], expected[row]) < close, row
        assert step.out[2].isnan().all(), "padding was written"
        assert (step.scratch.arrivals == 0).all()


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "page_size"), SHAPES)
@pytest.mark.parametrize(
    ("split", "most_splits", "window"), [(32, 4, 0), *([(64, 32, 0), (16, 32, 40)] if ON_GPU else [])]
)
def test_new_tokens_are_turned_stored_and_attended(
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    split: int,
    most_splits: int,
    window: int,
    normed: bool,
    few: bool,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    capture: Callable[..., Callable[[], None]],
    distance: Callable[..., float],
    close: float,
) -> None:
    """Lengths count the new token, whose cell holds NaN before: the first of a row, of a split and of a page."""
    before = [0, split - 1, -1, split, 100 if device.type == "cpu" else 3000]
    rows = PagedRows(generator, device, dtype, before, page_size, kv_heads, head_dim, spare=1)
    rows.row_lengths += (rows.row_slots >= 0).int()
    step = Step(rows, heads, split, most_splits, window, dtype)
    clean = rows.key_pages.clone(), rows.value_pages.clone()
    qkv = random_tensor(len(before), (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    norms = [1 + random_tensor(head_dim, dtype=dtype, scale=0.2) for _ in range(2)] if normed else [None] * 2
    inv_freq = (1e4 ** -(torch.arange(0, head_dim, 2) / head_dim)).to(device)
    scale = head_dim**-0.5
    tuning = tuning_for(head_dim, dtype, len(before))
    attend, programs = turn_and_attend, PROGRAMS
    if few:
        attend, programs = attend_few, len(before) * most_splits * kv_heads
        tuning = replace(tuning, block=min(tuning.block, split, page_size))
    launch = capture(
        lambda: attend(
            qkv, *norms, 1e-6, inv_freq, 1.25, rows.key_pages, rows.value_pages, rows.page_table, step.items,
            step.count, step.scratch, step.out, scale, programs, tuning,
        )
    )  # fmt: skip
    for size in (1.0, 8.0)[: 2 if ON_GPU else 1]:
        qkv.copy_(random_tensor(*qkv.shape, scale=size))
        rows.key_pages.copy_(clean[0])
        rows.value_pages.copy_(clean[1])
        step.poison()
        weights = [None if weight is None else weight.cpu() for weight in norms]
        key_pages, value_pages = clean[0].cpu().clone(), clean[1].cpu().clone()
        expected = reference.turn_and_attend(
            qkv.cpu(), *weights, 1e-6, inv_freq.cpu(), 1.25, key_pages, value_pages, rows.page_table.cpu(),
            rows.row_slots.cpu(), rows.row_lengths.cpu(), scale, window,
        ).flatten(1)  # fmt: skip
        launch()
        for row, slot in enumerate(rows.slots):
            if slot >= 0:
                assert distance(step.out[row], expected[row]) < close, row
        assert step.out[2].isnan().all(), "padding was written"
        assert (step.scratch.arrivals == 0).all()
        assert same(rows.value_pages.cpu(), value_pages)
        owned = key_pages.isfinite()
        assert torch.equal(rows.key_pages.cpu().isfinite(), owned)
        assert distance(rows.key_pages.cpu()[owned], key_pages[owned]) < close


@pytest.mark.parametrize("use_dot", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_every_tuning_gives_the_same(
    use_dot: bool,
    block: int,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    distance: Callable[..., float],
) -> None:
    """Blocks below, of and above a page; both kinds of arithmetic."""
    rows = PagedRows(generator, device, torch.float32, [100, 7, 64], 32, 2, 32)
    step = Step(rows, 4, 64, 8, 0, torch.float32)
    query = random_tensor(3, 4, 32)
    decode_attention(
        query, rows.key_pages, rows.value_pages, rows.page_table, step.items, step.count, step.scratch,
        step.out, 0.2, PROGRAMS, DecodeTuning(block, warps=4, stages=2, use_dot=use_dot),
    )  # fmt: skip
    assert distance(step.out, exact(rows, query, 0.2, 0)) < 5e-6


def test_neighbours_and_grid_change_no_bit(
    device: torch.device, generator: torch.Generator, random_tensor: Callable[..., torch.Tensor]
) -> None:
    lengths = [300, 5, 64, 129]
    rows = PagedRows(generator, device, torch.float32, lengths, 16, 2, 16)
    query = random_tensor(len(lengths), 4, 16)

    def attend(picked: list[int], programs: int) -> torch.Tensor:
        part = Step(rows, 4, 32, 8, 0, torch.float32)
        slots, row_lengths = rows.row_slots[picked].contiguous(), rows.row_lengths[picked].contiguous()
        plan_work(slots, row_lengths, part.items, part.count, 32, 8)
        out = torch.full((len(picked), 64), float("nan"), device=device)
        decode_attention(
            query[picked].contiguous(), rows.key_pages, rows.value_pages, rows.page_table, part.items,
            part.count, part.scratch, out, 0.25, programs,
        )  # fmt: skip
        return out

    together = attend([0, 1, 2, 3], PROGRAMS)
    assert torch.equal(attend([3, 0], 1), together[[3, 0]])
    assert torch.equal(attend([0], 37), together[:1])


@pytest.mark.parametrize("count", [1, 6])
def test_an_early_start_changes_no_bit(
    count: int,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    capture: Callable[..., Callable[[], None]],
) -> None:
    """Layers in a row, each launch reading what the one before wrote, with and without programmatic dependents.
    Without a GPU both chains are the same one."""
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    heads, kv_heads, head_dim, hidden, layers = (16, 8, 128, 1024, 12) if ON_GPU else (4, 2, 16, 32, 2)
    lengths = [2000 if ON_GPU else 40, 1, 700 if ON_GPU else 20, 64, 129, 2][:count]
    rows = PagedRows(
        generator, device, dtype, [length - 1 for length in lengths], 64, kv_heads, head_dim, spare=1
    )
    slabs = [(rows.key_pages, rows.value_pages), (rows.value_pages.clone(), rows.key_pages.clone())]
    step = Step(rows, heads, 64, 8, 0, dtype)
    width = (heads + 2 * kv_heads) * head_dim
    first, norm = (
        random_tensor(width, hidden, dtype=dtype, scale=hidden**-0.5),
        random_tensor(hidden, dtype=dtype),
    )
    second = random_tensor(hidden, heads * head_dim, dtype=dtype, scale=(heads * head_dim) ** -0.5)
    weight = random_tensor(head_dim, dtype=dtype)
    inv_freq = (1e4 ** -(torch.arange(0, head_dim, 2) / head_dim)).to(device)
    start = random_tensor(count, hidden, dtype=dtype)
    stream, qkv = torch.empty_like(start), torch.empty(count, width, dtype=dtype, device=device)
    row_lengths = torch.tensor(lengths, dtype=torch.int32, device=device)

    def chain(pdl: bool) -> None:
        stream.copy_(start)
        plan_work(rows.row_slots, row_lengths, step.items, step.count, 64, 8)
        for layer in range(layers):
            norm_linear(stream, norm, 1e-6, first, None, qkv, pdl=pdl)
            turn_and_attend(
                qkv, weight, weight, 1e-6, inv_freq, 1.0, *slabs[layer % 2], rows.page_table, step.items,
                step.count, step.scratch, step.out, head_dim**-0.5, PROGRAMS, pdl=pdl,
            )  # fmt: skip
            linear_add(step.out, second, None, stream, stream, pdl=pdl)

    replays = [capture(lambda: chain(False)), capture(lambda: chain(True))]
    for _ in range(5 if ON_GPU else 1):
        start.copy_(random_tensor(*start.shape))
        ends = []
        for replay in replays:
            stream.fill_(float("nan"))
            step.poison()
            replay()
            ends.append(stream.clone())
        assert torch.equal(*ends) and ends[0].isfinite().all()


def test_a_table_entry_exists_for_every_size() -> None:
    for head_dim in (16, 64, 80, 128, 256):
        for dtype in (torch.float32, torch.bfloat16):
            assert tuning_for(head_dim, dtype).block >= 16
