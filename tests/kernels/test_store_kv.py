"""store_kv writes each token's own cell, whatever the strides, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from slab_rig import PagedRows, same

from headrace.kernels import reference
from headrace.kernels.store_kv import store_kv


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "page_size"), [(2, 16, 16), (8, 128, 64), (3, 64, 32), (1, 80, 16)]
)
@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64])
def test_each_token_goes_to_its_cell(
    kv_heads: int,
    head_dim: int,
    page_size: int,
    position_dtype: torch.dtype,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    capture: Callable[..., Callable[[], None]],
) -> None:
    rows = PagedRows(
        generator, device, dtype, [0, page_size + 3, -1, 5], page_size, kv_heads, head_dim, spare=4
    )
    # Row 0 writes places 0 and 1, row 1 three places across no edge, row 3 one; two tokens are padding.
    owners, places = [0, 0, 1, 1, 1, 3, -1, -1], [0, 1, page_size + 3, page_size + 4, page_size + 5, 5, 0, 0]
    slots = torch.tensor([rows.slots[row] if row >= 0 else -1 for row in owners], dtype=torch.int32)
    positions = torch.tensor(places, dtype=position_dtype)
    # Keys and values as they lie in a qkv row: neither is contiguous.
    packed = random_tensor(len(owners), 2 * kv_heads + 3, head_dim, dtype=dtype)
    keys, values = packed[:, 3 : 3 + kv_heads], packed[:, 3 + kv_heads :]
    args = (rows.page_table, slots.to(device), positions.to(device))
    step = capture(lambda: store_kv(keys, values, rows.key_pages, rows.value_pages, *args))
    for _ in range(2):
        packed.copy_(random_tensor(*packed.shape))
        rows.key_pages.fill_(float("nan"))
        rows.value_pages.fill_(float("nan"))
        expected = rows.cells(dtype)
        cells = reference.kv_cells(rows.page_table.cpu(), slots, positions.long(), page_size)
        reference.store_kv(keys.cpu(), values.cpu(), *expected, cells)
        step()
        for found, exact in zip(rows.cells(dtype), expected, strict=True):
            assert exact.isfinite().any() and same(found, exact)


def test_nothing_is_written_for_no_token(device: torch.device, generator: torch.Generator) -> None:
    rows = PagedRows(generator, device, torch.float32, [3], 16, 2, 16)
    before = rows.cells()
    none = torch.empty(0, 2, 16, device=device)
    nobody = torch.empty(0, dtype=torch.int32, device=device)
    store_kv(none, none, rows.key_pages, rows.value_pages, rows.page_table, nobody, nobody)
    assert all(same(found, exact) for found, exact in zip(rows.cells(), before, strict=True))


def test_a_wrong_shape_is_our_mistake(device: torch.device, generator: torch.Generator) -> None:
    rows = PagedRows(generator, device, torch.float32, [3], 16, 2, 16)
    keys = torch.zeros(1, 3, 16, device=device)
    one = torch.zeros(1, dtype=torch.int32, device=device)
    with pytest.raises(AssertionError):
        store_kv(keys, keys, rows.key_pages, rows.value_pages, rows.page_table, one, one)
