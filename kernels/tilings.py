"""How products of few rows are cut up: the measured choice per shape, and a rule for shapes nobody measured.

Knows no tensors. `tuning_h200.json` beside this file is written by `headrace.bench.tune` and read once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOST_ROWS = 64
ROW_CLASSES = (1, 2, 4, 8, 16, 32, 64)
CUDA_CORE_ROWS = 4  # more rows than these are multiplied on the tensor cores
SHARED_BYTES = 227 << 10  # what one program may have on the H200
MULTIPROCESSORS = 132
MOST_REGISTERS = 176  # per thread, for tiles and sums


@dataclass(frozen=True, slots=True, order=True)
class Tiling:
    """A program owns `block_n` rows of W [N, K] (pairs of rows in gate_up) and walks along its share of K in tiles
    of `block_k`, with `warps` warps. `splits` programs share one K. `stages`: how many tiles are on their way to
    shared memory at once; 1: tiles go straight to registers, as many as the compiler sees fit to load ahead."""

    block_n: int
    block_k: int
    warps: int
    splits: int = 1
    stages: int = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """The fastest tiling of a shape, its microseconds inside a graph with cold weights, and those of cuBLAS with
    the kernels for norm and gate that it needs beside it (None: not measured beside)."""

    tiling: Tiling
    us: float
    library_us: float | None


Shape = tuple[int, int, int]  # N, K, row class; N of gate_up counts gate and up rows


def read_table(text: str) -> dict[Shape, Measured]:
    """What `headrace.bench.tune` wrote."""
    return {
        (row["n"], row["k"], row["rows"]): Measured(Tiling(*row["tiling"]), row["us"], row["library_us"])
        for row in json.loads(text)["measured"]
    }


TABLE = read_table((Path(__file__).parent / "tuning_h200.json").read_text())


def row_class(rows: int) -> int:
    """The smallest number of ROW_CLASSES that holds `rows`: one compiled kernel serves all of a class."""
    assert 1 <= rows <= MOST_ROWS
    return next(size for size in ROW_CLASSES if rows <= size)


def tiling_for(n: int, k: int, rows: int) -> Tiling:
    """The tiling for a matrix [n, k] and this many rows. For gate_up n counts gate and up rows together."""
    shape = (n, k, row_class(rows))
    return TABLE[shape].tiling if shape in TABLE else rule(*shape)


def pays(n: int, k: int, rows: int) -> bool:
    """Whether the few-row product of this shape is faster than cuBLAS and what it needs beside it. Where nobody
    measured, up to 16 rows."""
    if rows > MOST_ROWS:
        return False
    shape = (n, k, row_class(rows))
    if shape not in TABLE:
        return rows <= 16
    found = TABLE[shape]
    return found.library_us is None or found.us < found.library_us


def rule(n: int, k: int, rows: int) -> Tiling:
    """A tiling for any shape, from what mostly came out well on the H200: warps that read whole 16 bytes per thread
    along K, and a grid several times as wide as the card."""
    whole = 1 << (k - 1).bit_length()
    if n * k <= 1 << 18:  # the matrices of test models: few programs, however many bytes each
        return Tiling(32, max(16, min(64, whole)), 4)
    if rows <= CUDA_CORE_ROWS:
        warps = 4 if k >= 1024 else 2 if k >= 512 else 1
        return Tiling(4 if n > 1024 else 2, min(256 * warps, whole), warps)
    block_n = 64 if n >= 64 * MULTIPROCESSORS else 32 if n >= 32 * MULTIPROCESSORS else 16
    return Tiling(block_n, max(16, min(128, whole)), 4, stages=4 if rows <= 16 else 3)


def candidates(n: int, k: int, rows: int, pairs: bool = False) -> list[Tiling]:
    """What is worth timing for this shape: the rule's choice and its neighbours, and splits where the matrix is
    much longer than wide. `pairs`: for gate_up, which holds two tiles at once and never splits."""
    rows = row_class(rows)
    found = [rule(n, k, rows)]
    found += _cuda_core(n, k, rows) if rows <= CUDA_CORE_ROWS else _tensor_core(n, k, rows)
    if CUDA_CORE_ROWS < rows <= 16:
        found += _in_registers(n, k)
    return [
        one for one in dict.fromkeys(found) if fits(one, rows, 2, pairs) and not (pairs and one.splits > 1)
    ]


def fits(tiling: Tiling, rows: int, element_bytes: int, pairs: bool) -> bool:
    """Whether the tiles that are on their way, and the one at work, have room in shared memory and registers."""
    rows = row_class(rows)
    if rows <= CUDA_CORE_ROWS and tiling.stages == 1:
        # Two tiles in half precision, x in both precisions, and a sum for every 8 products, over all threads.
        owned = (1 + pairs) * tiling.block_n
        registers = (owned + rows) + rows + owned * rows / 8
        return registers * tiling.block_k <= MOST_REGISTERS * 32 * tiling.warps
    if tiling.stages == 1 and tiling.block_k > 128:
        # The tile at work and the next one, in half precision, over all threads; one goes through shared memory.
        held = (1 + pairs) * tiling.block_n * tiling.block_k * element_bytes // 4
        pieces = ((1 + pairs) * tiling.block_n + rows) * tiling.block_k * element_bytes
        return held <= 128 * 32 * tiling.warps and pieces <= SHARED_BYTES
    stage = ((1 + pairs) * tiling.block_n + rows) * tiling.block_k * element_bytes
    return stage * (tiling.stages + 1) <= SHARED_BYTES


def _cuda_core(n: int, k: int, rows: int) -> Iterator[Tiling]:
    # BK = 256 * warps: each thread reads 16 bytes of every row and the x for them once, without shared memory; a
    # multiple of it: so many pieces of 16 bytes, which all travel at once.
    for block_k, warps in ((256, 1), (512, 2), (1024, 4), (2048, 8)):
        for long in (1, 2, 4):
            if k % (long * block_k):
                continue
            for block_n in (2, 4, 8) if long == 1 else (1, 2, 4):
                if n >= block_n * MULTIPROCESSORS:
                    yield Tiling(block_n, long * block_k, warps)
    if k % 1024 == 0 and k > 1024:
        yield Tiling(4, 1024, 4, stages=3)
        yield Tiling(8 if rows == 1 else 4, 256, 4, stages=2)
        for splits in _splits(n, k):
            yield Tiling(4, 1024, 4, splits=splits)
            yield Tiling(8 if rows == 1 else 4, 512, 2, splits=splits)


def _tensor_core(n: int, k: int, rows: int) -> Iterator[Tiling]:
    for block_n, warps in ((16, 4), (32, 4), (64, 4), (128, 8)):
        tiles = -(-n // block_n)
        for block_k, stages in ((128, 4), (256, 3), (64, 6)):
            if k % block_k:
                continue
            # One stage more than steps: everything is on its way before anything is multiplied.
            depths = {stages, min(k // block_k + 1, 9)} if rows <= 16 else {stages}
            if tiles * 2 >= MULTIPROCESSORS and not (block_k == 64 and block_n < 64) and tiles <= 2500:
                for depth in sorted(depths):
                    yield Tiling(block_n, block_k, warps, stages=depth)
            for splits in (2, 4, 8):
                if block_k == 128 and MULTIPROCESSORS <= 1.1 * tiles * splits <= 3 * MULTIPROCESSORS:
                    for depth in sorted({stages, min(-(-k // block_k // splits) + 1, 9)}):
                        yield Tiling(block_n, block_k, warps, splits, depth)


def _in_registers(n: int, k: int) -> Iterator[Tiling]:
    """Tiles that travel to registers: of a kernel that starts early, the first is there when the wait is over."""
    for block_n, block_k, warps in (
        (16, 256, 1), (16, 256, 2), (16, 512, 2), (16, 512, 4), (16, 1024, 4), (16, 1024, 8), (32, 256, 2),
        (32, 256, 4), (32, 512, 4), (32, 512, 8), (32, 1024, 8), (64, 256, 4), (64, 256, 8),
    ):  # fmt: skip
        tiles = -(-n // block_n)
        for splits in (1, 2, 4, 8):
            if k % (block_k * splits) == 0 and 64 <= tiles * splits <= 6 * MULTIPROCESSORS:
                yield Tiling(block_n, block_k, warps, splits)


def _splits(n: int, k: int) -> tuple[int, ...]:
    """Splitting pays for long, narrow matrices; [6144, 4096] is the widest that was seen to gain."""
    return (2, 4) if k >= 1.7 * n else (2,) if k >= 4096 and n <= 6144 else ()
