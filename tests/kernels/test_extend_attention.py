"""extend_attention: chunks of several rows at once, with context, windows and padding, in scattered pages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from slab_rig import PagedRows

from headrace.kernels import reference
from headrace.kernels.extend_attention import ExtendTuning, extend_attention, tuning_for

ON_GPU = torch.cuda.is_available()
# heads, kv heads, head size, page size
SHAPES = [(4, 2, 16, 16), (3, 1, 80, 32), (2, 1, 32, 128), (8, 8, 16, 64)]
if ON_GPU:
    SHAPES += [(16, 8, 128, 64), (32, 8, 128, 64), (14, 2, 64, 16), (4, 2, 256, 32)]


def cut(counts: list[int], tile: int, spare: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """tile_rows and tile_starts of rows that compute `counts` queries, with `spare` unused tiles among them."""
    pairs = [(row, start) for row, count in enumerate(counts) for start in range(0, count, tile)]
    pairs = [(-1, 0)] * (spare // 2) + pairs + [(-1, 0)] * (spare - spare // 2)
    both = torch.tensor(pairs, dtype=torch.int32, device=device)
    return both[:, 0].contiguous(), both[:, 1].contiguous()


class Chunk:
    """The chunk of a step: `counts` newest tokens of each row are computed, some padding tokens behind them."""

    def __init__(self, rows: PagedRows, counts: list[int], padding: int) -> None:
        device = rows.key_pages.device
        edges = [0]
        for count in counts:
            edges.append(edges[-1] + count)
        self.tokens, self.real = edges[-1] + padding, edges[-1]
        self.offsets = torch.tensor(edges, dtype=torch.int32, device=device)

    def exact(self, rows: PagedRows, query: torch.Tensor, scale: float, window: int) -> torch.Tensor:
        keys, values = rows.cells()
        return reference.extend_attention(
            query.cpu().double(), keys, values, rows.page_table.cpu(), rows.row_slots.cpu(),
            rows.row_lengths.cpu(), self.offsets.cpu(), rows.page_size, scale, window,
        ).flatten(1)  # fmt: skip


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "page_size"), SHAPES)
@pytest.mark.parametrize(("tile", "window"), [(16, 0), (32, 20)] + [(64, 0), (64, 100), (128, 0)] * ON_GPU)
def test_chunks_attend_to_their_context(
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    tile: int,
    window: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    capture: Callable[..., Callable[[], None]],
    distance: Callable[..., float],
    close: float,
) -> None:
    # A whole prompt, a chunk with context, one token with context, an exact tile, and a row without queries.
    lengths, counts = [tile + 5, 3 * tile + 1, 50, tile, 9], [tile + 5, tile - 1, 1, tile, 0]
    if ON_GPU:
        lengths, counts = [*lengths, 3000, 1111], [*counts, 1000, 1111]
    rows = PagedRows(generator, device, dtype, lengths, page_size, kv_heads, head_dim)
    chunk = Chunk(rows, counts, padding=3)
    query = random_tensor(chunk.tokens, heads, head_dim, dtype=dtype)
    out = torch.empty(chunk.tokens, heads * head_dim, dtype=dtype, device=device)
    tiles = cut(counts, tile, 3, device)
    scale = head_dim**-0.5
    launch = capture(
        lambda: extend_attention(
            query, rows.key_pages, rows.value_pages, rows.page_table, rows.row_slots, rows.row_lengths,
            chunk.offsets, *tiles, out, scale, window, tile,
        )
    )  # fmt: skip
    for size in (1.0, 8.0)[: 2 if ON_GPU else 1]:
        query.copy_(random_tensor(*query.shape, scale=size))
        query[chunk.real :] = float("nan")
        out.fill_(float("nan"))
        launch()
        expected = chunk.exact(rows, query, scale, window)
        for row, count in enumerate(counts):
            mine = slice(int(chunk.offsets[row]), int(chunk.offsets[row]) + count)
            if count:
                assert distance(out[mine], expected[mine]) < close, row
        assert out[chunk.real :].isnan().all(), "padding was written"


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("rows_at_most", [16, 64])
@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize("bulk", [False, True])
def test_every_tuning_gives_the_same(
    block: int,
    rows_at_most: int,
    window: int,
    bulk: bool,
    device: torch.device,
    generator: torch.Generator,
    random_tensor: Callable[..., torch.Tensor],
    distance: Callable[..., float],
) -> None:
    """Blocks below, of and above a page; one head or several heads of a group in a program; both ways to fetch."""
    rows = PagedRows(generator, device, torch.float32, [70, 40], 32, 2, 16)
    chunk = Chunk(rows, [33, 40], padding=0)
    query = random_tensor(chunk.tokens, 8, 16)
    out = torch.full((chunk.tokens, 128), float("nan"), device=device)
    extend_attention(
        query, rows.key_pages, rows.value_pages, rows.page_table, rows.row_slots, rows.row_lengths, chunk.offsets,
        *cut([33, 40], 16, 0, device), out, 0.3, window, 16, ExtendTuning(rows_at_most, block, 4, 2, bulk),
    )  # fmt: skip
    assert distance(out, chunk.exact(rows, query, 0.3, window)) < 5e-6


def test_no_tile_is_no_launch(device: torch.device, generator: torch.Generator) -> None:
    rows = PagedRows(generator, device, torch.float32, [3], 16, 1, 16)
    none = torch.empty(0, dtype=torch.int32, device=device)
    edges = torch.zeros(2, dtype=torch.int32, device=device)
    out = torch.full((1, 16), float("nan"), device=device)
    extend_attention(
        out.view(1, 1, 16), rows.key_pages, rows.value_pages, rows.page_table, rows.row_slots, rows.row_lengths,
        edges, none, none, out, 1.0,
    )  # fmt: skip
    assert out.isnan().all()


def test_a_table_entry_exists_for_every_size() -> None:
    for head_dim in (16, 64, 80, 128, 256):
        for dtype in (torch.float32, torch.bfloat16):
            assert tuning_for(head_dim, dtype).block >= 16
