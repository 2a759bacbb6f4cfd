"""Products of few rows with a matrix that is read once: what norm_linear, gate_up and linear_add share.

A program owns BN rows of the matrix W [N, K] and walks along K in tiles [BN, BK]. Up to 4 rows of x are multiplied
element by element on the CUDA cores, more on the tensor cores with W as the tall operand. Sums are float32. Nothing
here depends on what the other programs do, but for splits: SPLITS programs share the K of one tile, and the one
that arrives last adds their sums in the order of the splits, so that equal inputs give equal bits.

`first_tile` is a call of its own so that a kernel started early (programmatic dependent launch) can read weights,
which nobody writes, before it waits for the kernel before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels.tilings import CUDA_CORE_ROWS, MOST_ROWS, ROW_CLASSES, Tiling, row_class, tiling_for

# Per program. Programs that wait fill the card: 8 of them on each of 132 multiprocessors ask for half of its L2.
AHEAD_BYTES = 24 << 10


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where programs that share a tile leave their sums. One for all launches of a stream: each leaves `arrivals`
    at zero, as it found it.

    partials float32 [any]; arrivals int32 [any], zeros.
    """

    partials: Tensor
    arrivals: Tensor

    @staticmethod
    def of(shapes: list[tuple[int, int]], most_rows: int, device: torch.device) -> Scratch:
        """Enough for every product of up to `most_rows` rows with matrices of these shapes (N, K)."""
        partials = arrivals = 1
        for n, k in shapes:
            for rows in (size for size in ROW_CLASSES if size <= row_class(min(most_rows, MOST_ROWS))):
                tiling = tiling_for(n, k, rows)
                tiles = triton.cdiv(n, tiling.block_n)
                if tiling.splits > 1:
                    partials = max(partials, tiles * tiling.splits * _chunk(tiling, rows))
                    arrivals = max(arrivals, tiles)
        return Scratch(
            torch.empty(partials, dtype=torch.float32, device=device),
            torch.zeros(arrivals, dtype=torch.int32, device=device),
        )


def _chunk(tiling: Tiling, rows: int) -> int:
    return row_class(rows) * (tiling.block_n + 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one product is launched: the grid, the arguments that are compiled in, and the scratch if it splits."""

    grid: tuple[int, int]
    constants: dict[str, int | bool]
    partials: Tensor | None
    arrivals: Tensor | None


def plan(
    x: Tensor,
    weight: Tensor,
    columns: int,
    tiling: Tiling | None,
    scratch: Scratch | None,
    pdl: bool,
    lets: bool = False,
) -> Plan:
    """Check x [T, K] and weight [N, K] and choose how to multiply them into [T, columns]; without scratch, without
    splits."""
    rows, k = x.shape
    assert 1 <= rows <= MOST_ROWS and weight.shape[1] == k, (x.shape, weight.shape)
    assert x.dtype == weight.dtype and weight.is_contiguous()
    assert x.stride(1) == 1 or k == 1
    if tiling is None:
        tiling = tiling_for(weight.shape[0], k, rows)
        if x.dtype == torch.float32 and rows > CUDA_CORE_ROWS:
            # Tables are for half precision. float32 is for exactness: its tiles are twice as large and their
            # products are not made on the tensor cores.
            tiling = replace(tiling, block_k=min(32, tiling.block_k), stages=1)
    splits = 1 if scratch is None else tiling.splits
    tiles = triton.cdiv(columns, tiling.block_n)
    partials = arrivals = None
    if scratch is not None and splits > 1:
        partials, arrivals = scratch.partials, scratch.arrivals
        assert partials.numel() >= tiles * splits * _chunk(tiling, rows) and arrivals.numel() >= tiles
    pdl = pdl and x.is_cuda
    constants: dict[str, int | bool] = {
        "ROWS": row_class(rows),
        "N": columns,
        "K": k,
        "BN": tiling.block_n,
        "BK": tiling.block_k,
        "SPLITS": splits,
        "STAGES": tiling.stages,
        "AHEAD": _ahead(tiling, k, weight.element_size()),
        "DOT": rows > CUDA_CORE_ROWS,
        "PDL": pdl,
        "LETS": lets and x.is_cuda,
        "num_warps": tiling.warps,
        "launch_pdl": pdl,
    }
    return Plan((tiles, splits), constants, partials, arrivals)


def _ahead(tiling: Tiling, k: int, element_bytes: int) -> int:
    """How many tiles a program that was started early asks for while it waits."""
    tile_bytes = tiling.block_n * tiling.block_k * element_bytes
    return max(1, min(triton.cdiv(k, tiling.block_k * tiling.splits), AHEAD_BYTES // tile_bytes))


@triton.jit
def tile_columns(tile, N: tl.constexpr, BN: tl.constexpr):
    """The columns [BN] of the output that a program computes; the last tile may reach beyond N."""
    return tile * BN + tl.arange(0, BN)


@triton.jit
def weight_start(weight, columns, split, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                 SPLITS: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """Where each element of a program's first tile lies. Columns beyond N point at the last row of W: what is
    computed from it is not stored."""
    row = columns
    if N % BN != 0:
        row = tl.minimum(row, N - 1)
    STEPS: tl.constexpr = (K + BK * SPLITS - 1) // (BK * SPLITS)
    k = split * (STEPS * BK) + tl.arange(0, BK)
    if DOT:
        at = weight + row[:, None].to(tl.int64) * K + k[None, :]
    else:
        at = weight + row[None, :, None].to(tl.int64) * K + k[None, None, :]
    return at


@triton.jit
def weight_tile(at, split, step, K: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr, DOT: tl.constexpr):
    """Tile number `step` of this program's part of K, zeros beyond K. Each tile is read by one program, once."""
    STEPS: tl.constexpr = (K + BK * SPLITS - 1) // (BK * SPLITS)
    if STEPS * SPLITS * BK == K:
        tile = tl.load(at + step * BK, eviction_policy="evict_first")
    else:
        k = (split * STEPS + step) * BK + tl.arange(0, BK)
        if DOT:
            tile = tl.load(at + step * BK, mask=k[None, :] < K, other=0.0, eviction_policy="evict_first")
        else:
            tile = tl.load(
                at + step * BK, mask=k[None, None, :] < K, other=0.0, eviction_policy="evict_first"
            )
    return tile


@triton.jit
def _prefetch(at, k, step, K: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr):
    """Ask for one tile to come into L2. `at` and `k` of one element per cache line."""
    if DOT:
        inside = k[None, :] + step * BK < K
    else:
        inside = k[None, None, :] + step * BK < K
    # A prefetch has no mask: what lies beyond K asks for the first tile, which is there anyway.
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; // $0", "=r,l", [at + tl.where(inside, step * BK, 0)], dtype=tl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def first_tile(weight, at, columns, split, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
               SPLITS: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, DOT: tl.constexpr,
               PDL: tl.constexpr):  # fmt: skip
    """What can be read of the weights before the kernel before this one has ended: the first tile, if tiles go to
    registers, and AHEAD tiles into L2, if this kernel was started early."""
    if PDL:
        LINE: tl.constexpr = 128 // (weight.dtype.element_ty.primitive_bitwidth // 8)
        if BK >= LINE and AHEAD > 0:
            STEPS: tl.constexpr = (K + BK * SPLITS - 1) // (BK * SPLITS)
            row = tl.minimum(columns, N - 1).to(tl.int64) * K
            k = split * (STEPS * BK) + tl.arange(0, BK // LINE) * LINE
            if DOT:
                lines = weight + row[:, None] + k[None, :]
            else:
                lines = weight + row[None, :, None] + k[None, None, :]
            for step in tl.static_range(1 if STAGES == 1 else 0, AHEAD):
                _prefetch(lines, k, step, K, BK, DOT)
    if STAGES == 1:
        tile = weight_tile(at, split, 0, K, BK, SPLITS, DOT)
    else:
        tile = 0
    return tile


@triton.jit
def _input_tile(x, x_stride, rows, split, step, ROWS: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
                SPLITS: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """x at the columns of this tile: [ROWS, BK], or [ROWS, 1, BK] for the CUDA cores. Rows beyond the last one
    repeat it: what is computed from them is not stored."""
    STEPS: tl.constexpr = (K + BK * SPLITS - 1) // (BK * SPLITS)
    row = tl.minimum(tl.arange(0, ROWS), rows - 1).to(tl.int64) * x_stride
    k = (split * STEPS + step) * BK + tl.arange(0, BK)
    if DOT:
        at = x + row[:, None] + k[None, :]
        inside = k[None, :] < K
    else:
        at = x + row[:, None, None] + k[None, None, :]
        inside = k[None, None, :] < K
    if STEPS * SPLITS * BK == K:
        tile = tl.load(at, eviction_policy="evict_last")
    else:
        tile = tl.load(at, mask=inside, other=0.0, eviction_policy="evict_last")
    return tile


@triton.jit
def _norm_tile(norm_weight, split, step, K: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr,
               DOT: tl.constexpr):  # fmt: skip
    """The norm weight at the columns of this tile, or 1 where there is none."""
    if norm_weight is None:
        tile = 1
    else:
        STEPS: tl.constexpr = (K + BK * SPLITS - 1) // (BK * SPLITS)
        k = (split * STEPS + step) * BK + tl.arange(0, BK)
        if DOT:
            k = k[None, :]
        else:
            k = k[None, None, :]
        if STEPS * SPLITS * BK == K:
            tile = tl.load(norm_weight + k, eviction_policy="evict_last")
        else:
            tile = tl.load(norm_weight + k, mask=k < K, other=0.0, eviction_policy="evict_last")
    return tile


@triton.jit
def _added_up(products, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):
    """Sums over groups of neighbours along K. A thread read them as one group, so that no other is asked."""
    return tl.sum(tl.reshape(products, [ROWS, COLUMNS, BK // GROUP, GROUP]), 3)


@triton.jit
def _step(total, second_total, squares, tile, second, given, scale, ROWS: tl.constexpr, BN: tl.constexpr,
          BK: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, DOT: tl.constexpr,
          PAIR: tl.constexpr):  # fmt: skip
    """The sums after one tile: `given` of x times `scale`, times one or two tiles of weights."""
    if DOT and not NORM:
        scaled = given
    else:
        scaled = given.to(tl.float32)
    if NORM:
        squares += tl.reshape(
            _added_up(scaled * scaled, ROWS, 1, BK, GROUP),
            [ROWS, BK // GROUP] if DOT else [ROWS, 1, BK // GROUP],
        )
        scaled *= scale.to(tl.float32)
        if DOT:
            scaled = scaled.to(given.dtype)
    if DOT:
        total = tl.dot(tile, tl.trans(scaled), total, input_precision="ieee")
        if PAIR:
            second_total = tl.dot(second, tl.trans(scaled), second_total, input_precision="ieee")
    else:
        total += _added_up(tile.to(tl.float32) * scaled, ROWS, BN, BK, GROUP)
        if PAIR:
            second_total += _added_up(second.to(tl.float32) * scaled, ROWS, BN, BK, GROUP)
    return total, second_total, squares


@triton.jit
def product(at, second_at, tile, second, x, x_stride, rows, norm_weight, split, ROWS: tl.constexpr,
            K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
            DOT: tl.constexpr, PAIR: tl.constexpr):  # fmt: skip
    """(x g) Wᵀ over this program's part of K as [ROWS, BN] (twice for a PAIR of matrices), and the sums of squares
    of x as [ROWS, 1] if there is a norm weight g.

    `tile` and `second` are what `first_tile` gave for the matrices at `at` and `second_at`. On the CUDA cores
    each thread has sums of its own until the end of the loop, where those of all threads are added up once.
    """
    STEPS: tl.constexpr = (K + BK * SPLITS - 1) // (BK * SPLITS)
    NORM: tl.constexpr = norm_weight is not None
    GROUP: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth  # elements in the 16 bytes of one load
    if DOT:
        total = tl.zeros([BN, ROWS], tl.float32)
        second_total = tl.zeros([BN, ROWS] if PAIR else [1, 1], tl.float32)
        squares = tl.zeros([ROWS, BK // GROUP] if NORM else [1, 1], tl.float32)
    else:
        total = tl.zeros([ROWS, BN, BK // GROUP], tl.float32)
        second_total = tl.zeros([ROWS, BN, BK // GROUP] if PAIR else [1, 1, 1], tl.float32)
        squares = tl.zeros([ROWS, 1, BK // GROUP] if NORM else [1, 1, 1], tl.float32)
    if STAGES > 1:
        # Tiles travel to shared memory, STAGES of them at once. A tile of the norm weight is too small for that: it
        # comes to registers one step early.
        scale = _norm_tile(norm_weight, split, 0, K, BK, SPLITS, DOT)
        for step in tl.range(0, STEPS, num_stages=STAGES):
            staged = weight_tile(at, split, step, K, BK, SPLITS, DOT)
            staged_second = staged
            if PAIR:
                staged_second = weight_tile(second_at, split, step, K, BK, SPLITS, DOT)
            staged_given = _input_tile(x, x_stride, rows, split, step, ROWS, K, BK, SPLITS, DOT)
            next_scale = _norm_tile(norm_weight, split, tl.minimum(step + 1, STEPS - 1), K, BK, SPLITS, DOT)
            total, second_total, squares = _step(
                total,
                second_total,
                squares,
                staged,
                staged_second,
                staged_given,
                scale,
                ROWS,
                BN,
                BK,
                GROUP,
                NORM,
                DOT,
                PAIR,
            )
            scale = next_scale
    else:
        # Tiles travel to registers; the next one is on its way while one is multiplied.
        given = _input_tile(x, x_stride, rows, split, 0, ROWS, K, BK, SPLITS, DOT)
        scale = _norm_tile(norm_weight, split, 0, K, BK, SPLITS, DOT)
        for step in tl.range(1, STEPS, num_stages=1):
            next_tile = weight_tile(at, split, step, K, BK, SPLITS, DOT)
            if PAIR:
                next_second = weight_tile(second_at, split, step, K, BK, SPLITS, DOT)
            next_given = _input_tile(x, x_stride, rows, split, step, ROWS, K, BK, SPLITS, DOT)
            next_scale = _norm_tile(norm_weight, split, step, K, BK, SPLITS, DOT)
            total, second_total, squares = _step(
                total, second_total, squares, tile, second, given, scale, ROWS, BN, BK, GROUP, NORM, DOT, PAIR
            )
            tile, given, scale = next_tile, next_given, next_scale
            if PAIR:
                second = next_second
        total, second_total, squares = _step(
            total, second_total, squares, tile, second, given, scale, ROWS, BN, BK, GROUP, NORM, DOT, PAIR
        )
    if DOT:
        total = tl.trans(total)
        second_total = tl.trans(second_total)
        squares = tl.sum(squares, 1, keep_dims=True)
    else:
        total = tl.sum(total, 2)
        second_total = tl.sum(second_total, 2)
        squares = tl.sum(squares, 2)
    return total, second_total, squares


@triton.jit
def joined(total, squares, rows, partials, arrivals, tile, split, SPLITS: tl.constexpr, ROWS: tl.constexpr,
           BN: tl.constexpr):  # fmt: skip
    """The sums of all splits, and how many rows this program is to store: all if it came last, else none.

    The barrier and the release of the count make the sums of every thread visible before the count moves; whoever
    counts last has acquired all of them. They are added in the order of the splits, whoever that is.
    """
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BN)[None, :]
    CHUNK: tl.constexpr = ROWS * (BN + 1)
    chunk = partials + tile * (SPLITS * CHUNK)
    tl.store(chunk + split * CHUNK + row * BN + column, total)
    tl.store(chunk + split * CHUNK + ROWS * BN + row, tl.broadcast_to(squares, [ROWS, 1]))
    tl.debug_barrier()
    before = tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu")
    rows = tl.where(before == SPLITS - 1, rows, 0)
    total = tl.zeros([ROWS, BN], tl.float32)
    squares = tl.zeros([ROWS, 1], tl.float32)
    for part in tl.static_range(SPLITS):
        found = chunk + part * CHUNK
        total += tl.load(found + row * BN + column, mask=row < rows, other=0.0, cache_modifier=".cg")
        squares += tl.load(found + ROWS * BN + row, mask=row < rows, other=0.0, cache_modifier=".cg")
    # Nobody else counts on this tile any more: the next launch finds it at zero again.
    tl.store(arrivals + tile, 0, mask=before == SPLITS - 1)
    return total, squares, rows
