"""A matrix and the residual after it in one launch, for few rows: o and down."""

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


def linear_add(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    out: Tensor,
    *,
    scratch: Scratch | None = None,
    tiling: Tiling | None = None,
    pdl: bool = False,
    lets: bool = False,
) -> None:
    """out = residual + x Wᵀ (+ bias), rounded once.

    x [T, K] with 1 <= T <= 64, weight [N, K], bias [N], residual and out [T, N], all of one dtype. `out` may be
    `residual`: each element is read and written by one program. It must not overlap x. Splits happen only where
    there is `scratch`; `tiling` None: the tuned one.
    """
    rows = x.shape[0]
    n = weight.shape[0]
    assert out.shape == residual.shape == (rows, n) and out.dtype == residual.dtype == x.dtype
    assert out.stride(1) == residual.stride(1) == 1 or n == 1
    assert bias is None or (bias.shape == (n,) and bias.dtype == x.dtype)
    how = plan(x, weight, n, tiling, scratch, pdl, lets)
    _linear_add[how.grid](
        x, weight, bias, residual, out, how.partials, how.arrivals,
        x.stride(0), residual.stride(0), out.stride(0), rows, **how.constants,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _linear_add(
    x, weight, bias, residual, out, partials, arrivals, x_stride, residual_stride, out_stride, rows,
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
    row = tl.arange(0, ROWS)[:, None]
    before = residual + row.to(tl.int64) * residual_stride + columns[None, :]
    if SPLITS == 1:
        # Asked for ahead of the loop, so that nothing waits for it at the end.
        added = tl.load(before, mask=(row < rows) & (columns[None, :] < N), other=0.0)
    total, _, squares = product(
        at,
        at,
        first,
        first,
        x,
        x_stride,
        rows,
        None,
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
        added = tl.load(before, mask=(row < rows) & (columns[None, :] < N), other=0.0)
    if bias is not None:
        total += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    total += added.to(tl.float32)
    place = out + row.to(tl.int64) * out_stride + columns[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(row < rows) & (columns[None, :] < N))


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """o and down."""
    for model, widths in WIDTHS.items():
        for name, k in (("o", widths["heads"] * widths["head_dim"]), ("down", widths["inner"])):
            for rows in (1, 2, 4, 8, 16):
                yield _case(f"{model} {name} rows={rows}", rows, widths["hidden"], k, device, dtype)


def _case(name: str, rows: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> Case:
    sets = sets_for(n * k * dtype.itemsize)
    weights = [torch.randn(n, k, device=device, dtype=dtype) * k**-0.5 for _ in range(sets)]
    x = torch.randn(rows, k, device=device, dtype=dtype)
    residual = torch.randn(rows, n, device=device, dtype=dtype)
    out = torch.empty_like(residual)
    scratch = Scratch.of([(n, k)], rows, device)

    def run(index: int) -> Tensor:
        linear_add(x, weights[index], None, residual, out, scratch=scratch)
        return out

    return Case(
        name=name,
        run=run,
        twin=lambda index: reference.linear_add(x, weights[index], None, residual),
        peer=lambda index: torch.addmm(residual, x, weights[index].t()),
        bytes=(n * k + rows * (2 * n + k)) * dtype.itemsize,
        flops=2 * rows * n * k,
        sets=sets,
    )
