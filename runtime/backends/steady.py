"""Deterministic computing on the CPU: a token's numbers depend on its sequence alone, bit by bit.

Libraries choose another order of summing for another number of rows, and vector loops another way for what is left
at their end. Neither may show, whatever else is in the step and however a prompt was cut into chunks:

- Matrix products run at a few row counts only (row_counts.py).
- Attention looks at keys in blocks that begin at fixed places of the sequence, every block a product of the same
  shape, summed one after the other (steady_attention.py).
- What remains is computed by one thread (a range that is shared out is cut anywhere), in loops whose ends are the
  same for every row: whole rows, or widths that vectors divide.
- Each operation rounds for itself: a product and a sum written as one call may or may not be fused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.runtime.backends.base import Linear
from headrace.runtime.backends.cpu import CpuBackend, CpuOps
from headrace.runtime.backends.onednn import make_linear
from headrace.runtime.backends.row_counts import Compute, agreeing, pieces
from headrace.runtime.backends.steady_attention import BLOCK, SteadyAttention

LADDER = (16, 1, 2, 4, 8, 32, 64, 128)  # row counts that are tried; the first is the measure of the others
TRIALS = 2  # draws of numbers that two row counts must agree on


def _both_ways(linear: Linear) -> Compute:
    """The product without and with a residual, which each row makes of itself."""

    def compute(x: Tensor) -> Tensor:
        alone = linear(x)
        return torch.cat((alone, linear(x, alone.flip(1))), 1)

    return compute


class SteadyLinear:
    """A product whose rows do not know of each other. threads: of this product alone."""

    def __init__(self, linear: Linear, counts: tuple[int, ...], threads: int) -> None:
        self.linear = linear
        self.counts = counts
        self.threads = threads

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        parts = [
            self._part(x[begin:end], None if residual is None else residual[begin:end], count)
            for begin, end, count in pieces(len(x), self.counts)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, x: Tensor, residual: Tensor | None, count: int) -> Tensor:
        rows = len(x)
        if rows < count:
            x = _padded(x, count)
            residual = None if residual is None else _padded(residual, count)
        torch.set_num_threads(self.threads)
        try:
            return self.linear(x.contiguous(), residual)[:rows]
        finally:
            torch.set_num_threads(1)


def _padded(x: Tensor, count: int) -> Tensor:
    full = x.new_zeros((count, *x.shape[1:]))
    full[: len(x)] = x
    return full


class SteadyOps(CpuOps):
    """The CPU's ops with every rounding in its place."""

    def __init__(self, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__(dtype)
        attention = SteadyAttention(heads, kv_heads, head_dim)
        self.tiles = attention.tiles
        self.reach = attention.reach  # type: ignore[assignment]
        self.attend = attention.attend  # type: ignore[assignment]

    @staticmethod
    def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class SteadyBackend(CpuBackend):
    """A CpuBackend whose steps are deterministic. Matrices are made on its worker, with the threads they get."""

    def __init__(self, threads: int, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> None:
        self.team = threads
        super().__init__(1, dtype)
        self.ops: SteadyOps = self.submit(lambda: SteadyOps(dtype, heads, kv_heads, head_dim)).result()
        self._counts: dict[tuple[int, int, torch.dtype], tuple[int, ...]] = {}

    def linear(self, weight: Tensor, bias: Tensor | None, keep: bool = False) -> Linear:
        assert not keep, "native steps read plain weights, and none run here"
        key = (*weight.shape, weight.dtype)
        linear = make_linear(weight, bias)
        if key not in self._counts:
            made = torch.Generator().manual_seed(0)
            draws = [
                torch.randn((max(LADDER), weight.shape[1]), generator=made).to(weight.dtype)
                for _ in range(TRIALS)
            ]
            torch.set_num_threads(self.team)
            try:
                self._counts[key] = agreeing(LADDER, _both_ways(linear), draws)
            finally:
                torch.set_num_threads(1)
        return SteadyLinear(linear, self._counts[key], self.team)

    @property
    def plan(self) -> dict[str, object]:
        """What decides bits besides weights and inputs: two servers with equal plans compute alike."""
        found = torch.cpu.get_capabilities()
        return {
            "torch": torch.__version__,
            "cpu": sorted(str(name) for name, there in found.items() if there is True),
            "threads": self.team,
            "block": BLOCK,
            "tiles": list(self.ops.tiles),
            "rows": sorted(
                [outer, inner, str(dtype).removeprefix("torch."), list(counts)]
                for (outer, inner, dtype), counts in self._counts.items()
            ),
        }
