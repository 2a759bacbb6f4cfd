"""A root mean square norm, the gate and up matrices after it and the gate itself in one launch, for few rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.cases import WIDTHS, Case, sets_for
from headrace.kernels.few_rows import first_tile, plan, product, tile_columns, weight_start
from headrace.kernels.tilings import Tiling


def gate_up(
    x: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    tiling: Tiling | None = None,
    pdl: bool = False,
    lets: bool = False,
) -> None:
    """out = silu(gate) * up of rms_norm(x) Wᵀ (+ bias); without a norm weight, of x Wᵀ (+ bias).

    x [T, K] with 1 <= T <= 64, norm_weight [K], weight [2I, K] with the gate's rows first, bias [2I], out [T, I],
    all of one dtype. A program owns gate rows and the up rows that belong to them. Never split: N is the wide side.
    `tiling` None: the tuned one of [2I, K], whose block_n counts pairs.

    Rounding: once, at the end; for the norm see norm_linear.
    """
    rows, k = x.shape
    width = weight.shape[0] // 2
    assert weight.shape[0] == 2 * width and out.shape == (rows, width) and out.dtype == x.dtype
    assert out.stride(1) == 1 or width == 1
    assert norm_weight is None or (norm_weight.shape == (k,) and norm_weight.dtype == x.dtype)
    assert bias is None or (bias.shape == (2 * width,) and bias.dtype == x.dtype)
    how = plan(x, weight, width, tiling, None, pdl, lets)
    _gate_up[how.grid](
        x, norm_weight, weight, bias, out, x.stride(0), out.stride(0), rows, eps, **how.constants
    )


@triton.jit(do_not_specialize=["rows", "eps"])
def _gate_up(
    x, norm_weight, weight, bias, out, x_stride, out_stride, rows, eps,
    ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SPLITS: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, DOT: tl.constexpr,
    PDL: tl.constexpr, LETS: tl.constexpr,
):  # fmt: skip
    if LETS:
        tl.extra.cuda.gdc_launch_dependents()
    columns = tile_columns(tl.program_id(0), N, BN)
    gate_at = weight_start(weight, columns, 0, N, K, BN, BK, SPLITS, DOT)
    weight_up = weight + tl.full([], N, tl.int64) * K
    up_at = weight_start(weight_up, columns, 0, N, K, BN, BK, SPLITS, DOT)
    first_gate = first_tile(weight, gate_at, columns, 0, N, K, BN, BK, SPLITS, STAGES, AHEAD, DOT, PDL)
    first_up = first_tile(weight_up, up_at, columns, 0, N, K, BN, BK, SPLITS, STAGES, AHEAD, DOT, PDL)
    if PDL:
        tl.extra.cuda.gdc_wait()
    gate, up, squares = product(
        gate_at, up_at, first_gate, first_up, x, x_stride, rows, norm_weight, 0,
        ROWS, K, BN, BK, SPLITS, STAGES, DOT, True,
    )  # fmt: skip
    if norm_weight is not None:
        scale = tl.rsqrt(squares / K + eps)
        gate *= scale
        up *= scale
    if bias is not None:
        gate += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        up += tl.load(bias + N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    active = gate / (1.0 + tl.exp(-gate)) * up
    row = tl.arange(0, ROWS)[:, None]
    place = out + row.to(tl.int64) * out_stride + columns[None, :]
    tl.store(place, active.to(out.dtype.element_ty), mask=(row < rows) & (columns[None, :] < N))


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The first half of the MLP."""
    for model, widths in WIDTHS.items():
        for rows in (1, 2, 4, 8, 16):
            yield _case(
                f"{model} gate_up rows={rows}", rows, widths["inner"], widths["hidden"], device, dtype
            )


def _case(name: str, rows: int, width: int, k: int, device: torch.device, dtype: torch.dtype) -> Case:
    sets = sets_for(2 * width * k * dtype.itemsize)
    weights = [torch.randn(2 * width, k, device=device, dtype=dtype) * k**-0.5 for _ in range(sets)]
    x = torch.randn(rows, k, device=device, dtype=dtype)
    norm_weight = torch.randn(k, device=device, dtype=dtype)
    normed = reference.rms_norm(x, norm_weight, 1e-6)
    out = x.new_empty(rows, width)

    def run(index: int) -> Tensor:
        gate_up(x, norm_weight, 1e-6, weights[index], None, out)
        return out

    return Case(
        name=name,
        run=run,
        twin=lambda index: reference.gate_up(x, norm_weight, 1e-6, weights[index]),
        peer=lambda index: torch.mm(normed, weights[index].t()),
        bytes=(2 * width * k + rows * (width + k) + k) * dtype.itemsize,
        flops=4 * rows * width * k,
        sets=sets,
    )
