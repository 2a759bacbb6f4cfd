"""A root mean square norm and the matrix after it in one launch, for few rows: qkv and the output head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.cases import WIDTHS, Case, sets_for
from headrace.kernels.few_rows import (
    Scratch,
    first_tile,
    joined,
    plan,
    product,
    tile_columns,
    weight_start,
)
from headrace.kernels.tilings import Tiling


def norm_linear(
    x: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    scratch: Scratch | None = None,
    tiling: Tiling | None = None,
    pdl: bool = False,
    lets: bool = False,
) -> None:
    """out = rms_norm(x) Wᵀ (+ bias); without a norm weight, x Wᵀ (+ bias).

    x [T, K] with 1 <= T <= 64, norm_weight [K], weight [N, K], bias [N], all of one dtype; out [T, N] of that dtype
    or float32. Splits happen only where there is `scratch`; `tiling` None: the tuned one.

    Rounding: the root mean square is one number per row, so it multiplies the finished sums. The reference rounds
    x / rms, and again times the weight, before it multiplies; here x times the norm weight enters unrounded (up to
    4 rows) or rounded once (more rows, for the tensor cores), which is nearer to the exact result.
    """
    rows, k = x.shape
    n = weight.shape[0]
    assert out.shape == (rows, n) and out.dtype in (x.dtype, torch.float32)
    assert out.stride(1) == 1 or n == 1
    assert norm_weight is None or (norm_weight.shape == (k,) and norm_weight.dtype == x.dtype)
    assert bias is None or (bias.shape == (n,) and bias.dtype == x.dtype)
    how = plan(x, weight, n, tiling, scratch, pdl, lets)
    _norm_linear[how.grid](
        x, norm_weight, weight, bias, out, how.partials, how.arrivals, x.stride(0), out.stride(0), rows, eps,
        **how.constants,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "eps"])
def _norm_linear(
    x, norm_weight, weight, bias, out, partials, arrivals, x_stride, out_stride, rows, eps,
    ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, DOT: tl.constexpr,
    PDL: tl.constexpr, LETS: tl.constexpr,
):  # fmt: skip
    if LETS:
        tl.extra.cuda.gdc_launch_dependents()
    tile, split = tl.program_id(0), tl.program_id(1)
    columns = tile_columns(tile, N, BN)
    at = weight_start(weight, columns, split, N, K, BN, BK, SPLITS, DOT)
    first = first_tile(weight, at, columns, split, N, K, BN, BK, SPLITS, STAGES, AHEAD, DOT, PDL)
    if PDL:
        tl.extra.cuda.gdc_wait()
    total, _, squares = product(
        at,
        at,
        first,
        first,
        x,
        x_stride,
        rows,
        norm_weight,
        split,
        ROWS,
        K,
        BN,
        BK,
        SPLITS,
        STAGES,
        DOT,
        False,
    )
    if SPLITS > 1:
        total, squares, rows = joined(total, squares, rows, partials, arrivals, tile, split, SPLITS, ROWS, BN)
    if norm_weight is not None:
        total *= tl.rsqrt(squares / K + eps)
    if bias is not None:
        total += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    place = out + row.to(tl.int64) * out_stride + columns[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(row < rows) & (columns[None, :] < N))


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """qkv and the head."""
    for model, widths in WIDTHS.items():
        qkv = (widths["heads"] + 2 * widths["kv_heads"]) * widths["head_dim"]
        for name, n in (("qkv", qkv), ("head", widths["vocab"])):
            for rows in (1, 2, 4, 8, 16):
                yield _case(f"{model} {name} rows={rows}", rows, n, widths["hidden"], device, dtype)


def _case(name: str, rows: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> Case:
    sets = sets_for(n * k * dtype.itemsize)
    weights = [torch.randn(n, k, device=device, dtype=dtype) * k**-0.5 for _ in range(sets)]
    x = torch.randn(rows, k, device=device, dtype=dtype)
    norm_weight = torch.randn(k, device=device, dtype=dtype)
    normed = reference.rms_norm(x, norm_weight, 1e-6)
    out = x.new_empty(rows, n)
    scratch = Scratch.of([(n, k)], rows, device)

    def run(index: int) -> Tensor:
        norm_linear(x, norm_weight, 1e-6, weights[index], None, out, scratch=scratch)
        return out

    return Case(
        name=name,
        run=run,
        twin=lambda index: reference.norm_linear(x, norm_weight, 1e-6, weights[index]),
        peer=lambda index: torch.mm(normed, weights[index].t()),
        bytes=(n * k + rows * (n + k) + k) * dtype.itemsize,
        flops=2 * rows * n * k,
        sets=sets,
    )
