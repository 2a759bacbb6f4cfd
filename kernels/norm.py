"""Root mean square norm over rows, for steps with so many rows that cuBLAS multiplies them.

Steps with few rows have the norm inside the product that follows it: see norm_linear.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.cases import WIDTHS, Case

# One program holds a whole row in registers.
WIDEST = 16384


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, *, pdl: bool = False) -> None:
    """out = x over its root mean square, rounded, times weight, as `reference.rms_norm`.

    x, out [T, N] of one dtype, columns contiguous; weight [N] of that dtype. `out` may be `x` itself.
    """
    rows, width = x.shape
    assert out.shape == x.shape and weight.shape == (width,) and 1 <= width <= WIDEST
    assert x.dtype == out.dtype == weight.dtype
    assert x.stride(1) == out.stride(1) == weight.stride(0) == 1 or width == 1
    pdl = pdl and out.is_cuda
    block = triton.next_power_of_2(width)
    _rms_norm[(rows,)](
        x, weight, out, x.stride(0), out.stride(0), eps,
        WIDTH=width, BLOCK=block, PDL=pdl, num_warps=min(16, max(1, block // 512)), launch_pdl=pdl,
    )  # fmt: skip


@triton.jit
def _rms_norm(
    x, weight, out, x_stride, out_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    scale = tl.load(weight + column, mask=inside, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    wide = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    # Rounded before the weight is applied, as the reference models do.
    normed = wide.to(scale.dtype).to(tl.float32) * scale.to(tl.float32)
    tl.store(out + row * out_stride + column, normed.to(scale.dtype), mask=inside)


def bench_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The norm before qkv and gate_up."""
    for model, widths in WIDTHS.items():
        width = widths["hidden"]
        for rows in (32, 256, 2048):
            x = torch.randn(rows, width, device=device, dtype=dtype)
            weight = torch.randn(width, device=device, dtype=dtype)
            yield _case(f"{model} norm rows={rows}", x, weight, torch.empty_like(x))


def _case(name: str, x: Tensor, weight: Tensor, out: Tensor) -> Case:
    def run(_: int) -> Tensor:
        rms_norm(x, weight, 1e-6, out)
        return out

    return Case(
        name=name,
        run=run,
        twin=lambda _: reference.rms_norm(x, weight, 1e-6),
        peer=lambda _: torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6),
        bytes=(2 * x.numel() + weight.numel()) * x.element_size(),
        flops=4 * x.numel(),
    )
