"""The layers that architectures are made of. Each names the checkpoint tensors it takes and how they are fused.

A layer is born complete: it asks a WeightSource for its tensors while it is built. Building a model from an Outline
instead of a real source lists every tensor the model needs, with its shape, before any memory is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.runtime.backends.base import Linear, Ops
from headrace.runtime.models.config import RopeConfig

VECTOR = 64  # numbers; a multiple of what one turn of a vector loop takes
Part = tuple[str, tuple[int, ...]]  # name and shape of one checkpoint tensor


class WeightSource(Protocol):
    """Where layers get their weights. Parts are stacked along their first dimension, in order."""

    def tensor(self, parts: Sequence[Part]) -> Tensor:
        """The stacked parts, in the compute dtype, owned by the caller."""

    def linear(self, weight: Sequence[Part], bias: Sequence[Part] | None) -> Linear:
        """The stacked parts as a matrix [out, in], ready to multiply with on the backend."""


class Outline:
    """A WeightSource that only takes notes: `parts` has every tensor asked for, by name, with its shape."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[int, ...]] = {}
        self.kept = 0  # elements that the built model would hold

    def tensor(self, parts: Sequence[Part]) -> Tensor:
        for name, shape in parts:
            assert self.parts.setdefault(name, shape) == shape, name
            self.kept += math.prod(shape)
        rows = sum(shape[0] for _, shape in parts)
        return torch.empty((rows, *parts[0][1][1:]), device="meta")

    def linear(self, weight: Sequence[Part], bias: Sequence[Part] | None) -> Linear:
        self.tensor(weight)
        if bias is not None:
            self.tensor(bias)
        return _NotComputed()


class _NotComputed:
    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        raise AssertionError("an outlined model has no weights")


class NoOps:
    """Ops of a model that computes nothing: it is outlined, or its weights are read by others."""

    def __getattr__(self, name: str) -> Any:
        return None


def fused_linear(
    source: WeightSource, names: Sequence[tuple[str, int]], columns: int, bias: bool = False
) -> Linear:
    """One matrix made of several checkpoint matrices: `names` are (name without suffix, rows), in order."""
    return source.linear(
        [(f"{name}.weight", (rows, columns)) for name, rows in names],
        [(f"{name}.bias", (rows,)) for name, rows in names] if bias else None,
    )


class RMSNorm:
    """x over its root mean square, times a weight."""

    def __init__(self, source: WeightSource, ops: Ops, name: str, size: int, eps: float) -> None:
        self.weight = source.tensor([(f"{name}.weight", (size,))])
        self.eps = eps
        self.op = ops.rms_norm

    def __call__(self, x: Tensor) -> Tensor:
        return self.op(x, self.weight, self.eps)


def grown(weight: Tensor) -> Tensor:
    """One more than each weight, in float32: rounded to bfloat16, the sum would lose what the weight says."""
    if weight.is_meta:  # arithmetic on the shapes of an outline would import all of torch's compiler
        return weight.new_empty(weight.shape, dtype=torch.float32)
    return weight.float() + 1.0


def grown_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over its root mean square, times a float32 weight (shape of x's last dims), rounded once."""
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).mul_(weight).to(x.dtype)


class GrownNorm(RMSNorm):
    """x over its root mean square, times one more than a weight."""

    def __init__(self, source: WeightSource, ops: Ops, name: str, size: int, eps: float) -> None:
        super().__init__(source, ops, name, size, eps)
        self.weight = grown(self.weight)
        self.op = grown_norm

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual` + what the norm makes of x, rounded once."""
        normed = F.rms_norm(x.float(), x.shape[-1:], None, self.eps)
        return torch.addcmul(residual.float(), normed, self.weight).to(x.dtype)


class Embedding:
    """Token ids to rows: int64 [T] -> [T, size]."""

    def __init__(self, source: WeightSource, name: str, rows: int, size: int) -> None:
        self.weight = source.tensor([(f"{name}.weight", (rows, size))])

    def __call__(self, ids: Tensor) -> Tensor:
        return self.weight.index_select(0, ids)


class GatedMLP:
    """down(silu(gate(x)) * up(x)) + residual; gate and up are one matrix. tanh: GELU by its tanh formula, where
    silu is else."""

    def __init__(
        self,
        source: WeightSource,
        ops: Ops,
        name: str,
        size: int,
        inner: int,
        bias: bool = False,
        fused: bool = False,
        tanh: bool = False,
    ) -> None:
        parts = [(f"{name}.gate_proj", inner), (f"{name}.up_proj", inner)]
        if fused:
            parts = [(f"{name}.gate_up_proj", 2 * inner)]
        self.gate_up = fused_linear(source, parts, size, bias)
        self.down = fused_linear(source, [(f"{name}.down_proj", size)], inner, bias)
        self.gated = gelu_mul if tanh else ops.silu_mul

    def __call__(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return self.down(self.gated(self.gate_up(x)), residual)


def gelu_mul(x: Tensor) -> Tensor:
    """gelu(x[:, :N]) * x[:, N:] for x [T, 2N], by the tanh formula."""
    half = x.shape[-1] // 2
    return F.gelu(x[:, :half], approximate="tanh").mul_(x[:, half:])


class Rotary:
    """cos and sin rows for positions, computed when asked for: no table that grows with the context."""

    def __init__(self, rope: RopeConfig, head_dim: int, dtype: torch.dtype) -> None:
        self.frequencies = _FREQUENCIES[rope.kind](rope, head_dim)
        self.axes = pair_axes(rope, head_dim // 2)
        # Filled up so that vectors divide the width: at the end of a loop cos may round otherwise, and where that
        # is would depend on how many tokens a step has.
        padding = torch.zeros(-len(self.axes) % VECTOR)
        self._filled = torch.concat((self.frequencies, padding))
        self._filled_axes = torch.concat((self.axes, padding.long()))
        self.attention = rope.attention
        self.dtype = dtype

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions int64 [T], or [3, T] where time, row and column differ -> cos, sin [T, 1, head_dim] in the
        compute dtype; the first half of sin negated."""
        if positions.dim() == 2:
            angles = positions.float()[self._filled_axes].t()[:, None, :] * self._filled
        else:
            angles = positions.float()[:, None, None] * self._filled
        pairs = len(self.axes)
        cos, sin = angles.cos()[..., :pairs], angles.sin()[..., :pairs]
        if self.attention != 1.0:
            cos, sin = cos * self.attention, sin * self.attention
        return torch.cat((cos, cos), -1).to(self.dtype), torch.cat((-sin, sin), -1).to(self.dtype)


def pair_axes(rope: RopeConfig, pairs: int) -> Tensor:
    """int64 [pairs]: which axis (0 time, 1 row, 2 column) turns each pair of a head."""
    if not rope.sections:
        return torch.zeros(pairs, dtype=torch.int64)
    if not rope.interleaved:
        return torch.repeat_interleave(torch.arange(3), torch.tensor(rope.sections))
    axes = torch.zeros(pairs, dtype=torch.int64)
    for axis in (1, 2):  # what neither reaches stays with time
        axes[axis : 3 * rope.sections[axis] : 3] = axis
    return axes


def _default(rope: RopeConfig, head_dim: int) -> Tensor:
    return 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2).float() / head_dim))


def _linear(rope: RopeConfig, head_dim: int) -> Tensor:
    return _default(rope, head_dim) / rope.factor


def _llama3(rope: RopeConfig, head_dim: int) -> Tensor:
    """Slow waves (longer than original / low) are stretched by the factor, fast ones (shorter than original /
    high) stay, and those between blend from one to the other."""
    frequency = _default(rope, head_dim)
    waves = rope.original * frequency / (2 * math.pi)  # how often each wave fits in the original context
    blend = ((waves - rope.low) / (rope.high - rope.low)).clamp(0.0, 1.0)
    return (1.0 - blend) * frequency / rope.factor + blend * frequency


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    """Like llama3, but the ramp between stretched and kept runs over dimensions, from where a wave turns `fast`
    times in the original context to where it turns `slow` times."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = dimension(rope.fast), dimension(rope.slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001
    stretched = ((torch.arange(head_dim // 2).float() - first) / (last - first)).clamp(0.0, 1.0)
    frequency = _default(rope, head_dim)
    return stretched * frequency / rope.factor + (1.0 - stretched) * frequency


_FREQUENCIES: dict[str, Callable[[RopeConfig, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
