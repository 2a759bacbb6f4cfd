"""How products of few rows are cut up: the measured choice per shape, and a rule for shapes nobody measured.

Knows no tensors. The table is written by `bench/tune.py` on the device that its name says.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_ROWS = 64
ROW_CLASSES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Tiling:
    """A program owns `block_n` rows of W [N, K] (pairs of rows in gate_up) and walks along its share of K in tiles
    of `block_k`, with `warps` warps. `splits` programs share one K. `stages`: how many tiles are on their way at
    once, 1: as many as the compiler sees fit to load ahead."""

    block_n: int
    block_k: int
    warps: int
    splits: int = 1
    stages: int = 1


def row_class(rows: int) -> int:
    """The smallest number of ROW_CLASSES that holds `rows`: one compiled kernel serves all of a class."""
    assert 1 <= rows <= MOST_ROWS
    return next(size for size in ROW_CLASSES if rows <= size)


def tiling_for(n: int, k: int, rows: int) -> Tiling:
    """The tiling for a matrix [n, k] and this many rows. For gate_up n counts gate and up rows together."""
    return _rule(n, k, row_class(rows))


def _rule(n: int, k: int, rows: int) -> Tiling:
    """What mostly came out well on the H200: whole rows of K per warp, and a grid several times as wide as it has
    multiprocessors."""
    longest = 1 << (k - 1).bit_length()
    if n * k <= 1 << 18:  # the matrices of test models: few programs, however many bytes each
        return Tiling(32, max(16, min(128, longest)), 4)
    if rows <= 4:
        warps = 4 if k >= 1024 else 2 if k >= 512 else 1
        return Tiling(4 if n > 1024 else 2, min(256 * warps, longest), warps)
    return Tiling(64 if n >= 4096 else 16, 128, 4, stages=4)
