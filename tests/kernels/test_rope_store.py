"""rope_store: norm, rotation and storing of one step's heads, at positions up to 131072."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from slab_rig import PagedRows, same

from headrace.kernels import reference
from headrace.kernels.rope_store import rope_store


def frequencies(head_dim: int, device: torch.device) -> torch.Tensor:
    return (1.0 / 1e6 ** (torch.arange(0, head_dim, 2).float() / head_dim)).to(device)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size"),
    [(4, 2, 16, 16), (16, 8, 128, 64), (3, 1, 64, 32), (14, 2, 80, 16)],
)
def test_heads_are_turned_and_stored(
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    normed: bool,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    capture: Callable[..., Callable[[], None]],
    distance: Callable[..., float],
    close: float,
) -> None:
    rows = PagedRows(generator, device, dtype, [0, page_size - 1, -1, 5], page_size, kv_heads, head_dim, 2)
    owners, places = [0, 0, 1, 1, 3, -1], [0, 1, page_size - 1, page_size, 5, 0]
    slots = torch.tensor([rows.slots[row] if row >= 0 else -1 for row in owners], dtype=torch.int32)
    positions = torch.tensor(places, dtype=torch.int64)
    tokens = len(owners)
    # Wider than a row: qkv may be a part of something larger.
    qkv = random_tensor(tokens, (heads + 2 * kv_heads) * head_dim + 16, dtype=dtype)[:, :-16]
    norms = [1 + random_tensor(head_dim, dtype=dtype, scale=0.2) for _ in range(2)] if normed else [None] * 2
    inv_freq = frequencies(head_dim, device)
    q_out = torch.empty(tokens, heads, head_dim, dtype=dtype, device=device)
    cuda_slots, cuda_positions = slots.to(device), positions.to(device)
    step = capture(
        lambda: rope_store(
            qkv, *norms, 1e-6, inv_freq, 1.25, cuda_positions, cuda_slots, rows.page_table,
            rows.key_pages, rows.value_pages, q_out,
        )
    )  # fmt: skip
    for scale in (1.0, 30.0):
        qkv.copy_(random_tensor(*qkv.shape, scale=scale))
        for poisoned in (q_out, rows.key_pages, rows.value_pages):
            poisoned.fill_(float("nan"))
        exact = [side.clone().cpu() for side in (rows.key_pages, rows.value_pages, q_out)]
        weights = [None if weight is None else weight.cpu() for weight in norms]
        reference.rope_store(
            qkv.cpu(), *weights, 1e-6, inv_freq.cpu(), 1.25, positions, slots, rows.page_table.cpu(), *exact
        )
        step()
        # Where the twin wrote nothing, NaN must still stand; padding's row of q_out is one such place.
        for found, expected in zip((rows.key_pages, q_out), (exact[0], exact[2]), strict=True):
            written = expected.isfinite()
            assert written.any() and torch.equal(found.cpu().isfinite(), written)
            assert distance(found.cpu()[written], expected[written]) < close
        assert same(rows.value_pages.cpu(), exact[1])
        assert q_out[-1].isnan().all()


@pytest.mark.parametrize("position", [0, 1, 4095, 65537, 105616, 131071, 131072])
@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64])
def test_far_positions_turn_exactly(
    position: int,
    position_dtype: torch.dtype,
    device: torch.device,
    random_tensor: Callable[..., torch.Tensor],
    distance: Callable[..., float],
) -> None:
    """Against cos and sin in float64 of the same float32 angle: what is lost is rounding of float32 alone."""
    heads, head_dim, page_size = 2, 128, 128
    qkv = random_tensor(1, (heads + 2) * head_dim)
    pages = torch.full((2, 1, page_size, head_dim), float("nan"), device=device).transpose(1, 2)
    key_pages, value_pages = pages, pages.clone()
    # One page serves every place: only the last one matters here.
    table = torch.ones(1, 131072 // page_size + 1, dtype=torch.int32, device=device)
    inv_freq = frequencies(head_dim, device)
    q_out = torch.empty(1, heads, head_dim, device=device)
    rope_store(
        qkv, None, None, 0.0, inv_freq, 1.0, torch.tensor([position], dtype=position_dtype, device=device),
        torch.zeros(1, dtype=torch.int32, device=device), table, key_pages, value_pages, q_out,
    )  # fmt: skip
    angle = (torch.tensor(float(position)) * inv_freq.cpu()).double()
    cos, sin = torch.cat((angle.cos(),) * 2), torch.cat((-angle.sin(), angle.sin()))
    x = qkv.cpu().double().view(heads + 2, head_dim)
    exact = x * cos + x.roll(head_dim // 2, -1) * sin
    assert distance(q_out[0], exact[:heads]) < 5e-7
    assert distance(key_pages[1, position % page_size], exact[heads : heads + 1]) < 5e-7
    assert torch.equal(value_pages[1, position % page_size, 0].cpu(), qkv.cpu()[0, -head_dim:])


def test_one_norm_alone_is_our_mistake(device: torch.device) -> None:
    pages = torch.zeros(1, 16, 1, 16, device=device)
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    qkv, q_out, weight = (torch.zeros(*shape, device=device) for shape in ((1, 48), (1, 1, 16), (16,)))
    with pytest.raises(AssertionError, match="both norms"):
        rope_store(
            qkv, weight, None, 1e-6, frequencies(16, device), 1.0, zero, zero, zero[None], pages, pages, q_out
        )
