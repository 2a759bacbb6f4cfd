"""Heads that turn by something else than their position: a shift by slot, or three places by axis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from slab_rig import PagedRows, same

from headrace.kernels import reference
from headrace.kernels.attention_work import plan_work, work_shape
from headrace.kernels.decode_attention import scratch_for, turn_and_attend
from headrace.kernels.rope_store import rope_store

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 4, 2, 32, 16


def frequencies(device: torch.device) -> torch.Tensor:
    return (1.0 / 1e4 ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)).to(device)


@pytest.mark.parametrize("way", ["shifts", "angles"])
def test_cells_go_by_position_and_heads_by_what_is_said(
    way: str,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    capture: Callable[..., Callable[[], None]],
    distance: Callable[..., float],
    close: float,
) -> None:
    rows = PagedRows(generator, device, dtype, [0, PAGE_SIZE - 1, -1, 5], PAGE_SIZE, KV_HEADS, HEAD_DIM, 2)
    owners, places = [0, 0, 1, 1, 3, -1], [0, 1, PAGE_SIZE - 1, PAGE_SIZE, 5, 0]
    slots = torch.tensor([rows.slots[row] if row >= 0 else -1 for row in owners], dtype=torch.int32)
    positions = torch.tensor(places, dtype=torch.int32)
    turning: dict[str, torch.Tensor]
    if way == "shifts":
        turning = {"shifts": torch.arange(len(rows.page_table), dtype=torch.int32) * 7 - 9}
    else:
        turning = {
            "angles": torch.randint(0, 4000, (3, len(owners)), generator=generator, dtype=torch.int32),
            "axes": torch.arange(HEAD_DIM // 2, dtype=torch.int32) % 3,
        }
    qkv = random_tensor(len(owners), (HEADS + 2 * KV_HEADS) * HEAD_DIM, dtype=dtype)
    norms = [1 + random_tensor(HEAD_DIM, dtype=dtype, scale=0.2) for _ in range(2)]
    q_out = torch.full((len(owners), HEADS, HEAD_DIM), float("nan"), dtype=dtype, device=device)
    there = {name: part.to(device) for name, part in turning.items()}
    there_slots, there_positions = slots.to(device), positions.to(device)
    inv_freq = frequencies(device)
    exact = [side.clone().cpu() for side in (rows.key_pages, rows.value_pages, q_out)]
    reference.rope_store(
        qkv.cpu(), *(norm.cpu() for norm in norms), 1e-6, inv_freq.cpu(), 1.25, positions, slots,
        rows.page_table.cpu(), *exact, **turning,
    )  # fmt: skip
    plain = [side.clone() for side in (exact[0], exact[1], q_out.cpu())]
    reference.rope_store(
        qkv.cpu(), *(norm.cpu() for norm in norms), 1e-6, inv_freq.cpu(), 1.25, positions, slots,
        rows.page_table.cpu(), *plain,
    )  # fmt: skip
    capture(
        lambda: rope_store(
            qkv, *norms, 1e-6, inv_freq, 1.25, there_positions, there_slots, rows.page_table,
            rows.key_pages, rows.value_pages, q_out, **there,
        )
    )()  # fmt: skip
    for found, expected in zip((rows.key_pages, q_out), (exact[0], exact[2]), strict=True):
        written = expected.isfinite()
        assert torch.equal(found.cpu().isfinite(), written)
        assert distance(found.cpu()[written], expected[written]) < close
    assert same(rows.value_pages.cpu(), exact[1])
    live = slots >= 0
    assert distance(plain[2][live], exact[2][live]) > 100 * close, "it must matter what heads turn by"


def test_new_decode_tokens_turn_by_the_shift_of_their_slot(
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    capture: Callable[..., Callable[[], None]],
    distance: Callable[..., float],
    close: float,
) -> None:
    before = [0, 31, -1, 70]
    rows = PagedRows(generator, device, dtype, before, PAGE_SIZE, KV_HEADS, HEAD_DIM, spare=1)
    rows.row_lengths += (rows.row_slots >= 0).int()
    items = torch.zeros(work_shape(len(before), 4), dtype=torch.int32, device=device)
    count = torch.zeros(1, dtype=torch.int32, device=device)
    scratch = scratch_for(len(before), 4, HEADS, KV_HEADS, HEAD_DIM, device)
    plan_work(rows.row_slots, rows.row_lengths, items, count, 32, 4)
    shifts = torch.arange(len(rows.page_table), dtype=torch.int32, device=device) * 5 - 11
    qkv = random_tensor(len(before), (HEADS + 2 * KV_HEADS) * HEAD_DIM, dtype=dtype)
    norms = [1 + random_tensor(HEAD_DIM, dtype=dtype, scale=0.2) for _ in range(2)]
    inv_freq, scale = frequencies(device), HEAD_DIM**-0.5
    pages = rows.key_pages.cpu().clone(), rows.value_pages.cpu().clone()
    expected = reference.turn_and_attend(
        qkv.cpu(), *(norm.cpu() for norm in norms), 1e-6, inv_freq.cpu(), 1.0, *pages, rows.page_table.cpu(),
        rows.row_slots.cpu(), rows.row_lengths.cpu(), scale, 0, shifts=shifts.cpu(),
    ).flatten(1)  # fmt: skip
    out = torch.full((len(before), HEADS * HEAD_DIM), float("nan"), dtype=dtype, device=device)
    capture(
        lambda: turn_and_attend(
            qkv, *norms, 1e-6, inv_freq, 1.0, rows.key_pages, rows.value_pages, rows.page_table, items, count,
            scratch, out, scale, 5, shifts=shifts,
        )
    )()  # fmt: skip
    for row, slot in enumerate(rows.slots):
        if slot >= 0:
            assert distance(out[row], expected[row]) < close, row
    owned = pages[0].isfinite()
    assert torch.equal(rows.key_pages.cpu().isfinite(), owned)
    assert distance(rows.key_pages.cpu()[owned], pages[0][owned]) < close


def test_two_ways_at_once_are_our_mistake(device: torch.device) -> None:
    pages = torch.zeros(1, 16, 1, 16, device=device)
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    qkv, q_out = torch.zeros(1, 48, device=device), torch.zeros(1, 1, 16, device=device)
    inv_freq = torch.ones(8, device=device)
    angles, axes = (
        torch.zeros(3, 1, dtype=torch.int32, device=device),
        torch.zeros(8, dtype=torch.int32, device=device),
    )

    def launch(**turning: torch.Tensor) -> None:
        rope_store(
            qkv, None, None, 1e-6, inv_freq, 1.0, zero, zero, zero[None], pages, pages, q_out, **turning
        )

    with pytest.raises(AssertionError, match="one way"):
        launch(shifts=zero, angles=angles, axes=axes)
    with pytest.raises(AssertionError, match="what they turn"):
        launch(angles=angles)
