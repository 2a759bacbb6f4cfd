"""The gate of the MLP, for steps with so many rows that cuBLAS multiplies them.

Steps with few rows have it inside the product before it: see gate_up.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.cases import WIDTHS, Case

BLOCK = 1024


def silu_mul(x: Tensor, out: Tensor, *, pdl: bool = False) -> None:
    """out [T, I] = silu(x[:, :I]) * x[:, I:] for x [T, 2I], rounded twice, as `reference.silu_mul`.

    One dtype, columns contiguous.
    """
    rows, width = out.shape
    assert x.shape == (rows, 2 * width) and x.dtype == out.dtype
    assert x.stride(1) == 1 and (out.stride(1) == 1 or width == 1)
    pdl = pdl and out.is_cuda
    block = min(BLOCK, triton.next_power_of_2(width))
    _silu_mul[(rows, triton.cdiv(width, block))](
        x, out, x.stride(0), out.stride(0),
        WIDTH=width, BLOCK=block, PDL=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip


@triton.jit
def _silu_mul(
    x, out, x_stride, out_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    gate = tl.load(x + row * x_stride + column, mask=inside, other=0.0)
    up = tl.load(x + row * x_stride + WIDTH + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    # The activation is rounded before it multiplies: two ops in the reference, each with its rounding.
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = silu.to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * out_stride + column, product.to(gate.dtype), mask=inside)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Between gate_up and down."""
    for model, widths in WIDTHS.items():
        width = widths["inner"]
        for rows in (32, 256, 2048):
            x = torch.randn(rows, 2 * width, device=device, dtype=dtype)
            yield _case(f"{model} silu_mul rows={rows}", x, x.new_empty(rows, width))


def _case(name: str, x: Tensor, out: Tensor) -> Case:
    def run(_: int) -> Tensor:
        silu_mul(x, out)
        return out

    return Case(
        name=name,
        run=run,
        twin=lambda _: reference.silu_mul(x),
        peer=None,
        bytes=(x.numel() + out.numel()) * x.element_size(),
        flops=5 * out.numel(),
    )
