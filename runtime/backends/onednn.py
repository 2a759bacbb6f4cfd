"""The one place that calls torch's private oneDNN linear. A matrix is reordered once, for every row count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.runtime.backends.base import Linear


class PackedLinear:
    """x Wᵀ + b (+ residual) in float32 or bfloat16, summed in float32 and rounded once.

    keep: `weight` stays beside its packed form, for who reads it row by row."""

    def __init__(self, weight: Tensor, bias: Tensor | None, keep: bool = False) -> None:
        self.weight = weight if keep else None
        self.packed = torch.ops.mkldnn._reorder_linear_weight.default(weight)
        self.bias = bias
        self.plain = torch.ops.mkldnn._linear_pointwise.default
        self.fused = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            return self.plain(x, self.packed, self.bias, "none", [], "")
        return self.fused(x, residual, self.packed, self.bias, "add")


class PlainLinear:
    """The same with public calls: slower, and the residual is added after a first rounding."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if residual is None else y.add_(residual)


def packs(dtype: torch.dtype) -> bool:
    """True if this torch on this CPU has the packed linear for `dtype`."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


def make_linear(weight: Tensor, bias: Tensor | None, keep: bool = False) -> Linear:
    """`weight` [out, in] and `bias` [out] or None, ready to multiply with; packed where that is possible.

    keep: the matrix as it was given stays, too, as `weight`."""
    assert weight.dim() == 2 and weight.dtype in (torch.float32, torch.bfloat16), weight.dtype
    assert bias is None or bias.shape == weight.shape[:1], "one bias per output"
    return PackedLinear(weight, bias, keep) if packs(weight.dtype) else PlainLinear(weight, bias)
