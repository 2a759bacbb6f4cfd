"""copy_pages copies whole pages in every layer, skips entries of -1 and touches no other page."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headrace.kernels import reference
from headrace.kernels.copy_page import copy_pages


@pytest.mark.parametrize("head_major", [True, False])
@pytest.mark.parametrize(
    ("layers", "kv_heads", "page_size", "head_dim"), [(2, 2, 16, 16), (1, 8, 64, 128), (3, 3, 32, 80)]
)
def test_pages_are_copied_in_every_layer(
    layers: int,
    kv_heads: int,
    page_size: int,
    head_dim: int,
    head_major: bool,
    dtype: torch.dtype,
    device: torch.device,
    random_tensor: Callable[..., torch.Tensor],
    capture: Callable[..., Callable[[], None]],
) -> None:
    pages = 7
    if head_major:
        slab = random_tensor(layers, 2, pages, kv_heads, page_size, head_dim, dtype=dtype).transpose(3, 4)
    else:
        slab = random_tensor(layers, 2, pages, page_size, kv_heads, head_dim, dtype=dtype)
    sources = torch.full((4,), -1, dtype=torch.int32, device=device)
    targets = sources.clone()
    step = capture(lambda: copy_pages(slab, sources, targets))
    for pairs in ([(5, 0), (-1, -1), (3, 6), (-1, 2)], [(4, -1), (5, 1), (5, 2), (0, 3)], [(-1, -1)] * 4):
        slab.copy_(random_tensor(*slab.shape))
        sources.copy_(torch.tensor([source for source, _ in pairs]))
        targets.copy_(torch.tensor([target for _, target in pairs]))
        expected = slab.cpu().clone()
        live = torch.tensor([pair for pair in pairs if min(pair) >= 0], dtype=torch.int64).view(-1, 2)
        reference.copy_pages(expected, live[:, 0], live[:, 1])
        step()
        assert torch.equal(slab.cpu(), expected)


def test_pages_with_gaps_are_our_mistake(device: torch.device) -> None:
    slab = torch.zeros(1, 2, 3, 16, 2, 32, device=device)[..., :16]
    one = torch.zeros(1, dtype=torch.int32, device=device)
    with pytest.raises(AssertionError):
        copy_pages(slab, one, one)
