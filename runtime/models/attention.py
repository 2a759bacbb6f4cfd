"""Attention over paged KV: what one layer computes, and what all layers of one step share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from headrace.graphs.inputs import StepInputs
from headrace.runtime.backends.base import Ops, Reach
from headrace.runtime.models.config import ModelConfig
from headrace.runtime.models.layers import WeightSource, fused_linear, grown, grown_norm
from headrace.runtime.slab import KVSlab


class StepView(NamedTuple):
    """Computed once per step and read by every layer. Of a layer of window `w`: turns[w], the cos and sin of its
    heads, and reach[w], what it reads."""

    turns: Mapping[int, tuple[Tensor, Tensor]]
    cells: Tensor
    reach: dict[int, Reach]


def view_step(
    ops: Ops,
    inputs: StepInputs,
    kv: KVSlab,
    turns: Mapping[int, tuple[Tensor, Tensor]],
    windows: Sequence[int],
    mutual: Sequence[tuple[int, int]] = (),
) -> StepView:
    """Where this step's tokens are written and what each row reads. mutual: see `Ops.reach`."""
    cells = ops.kv_cells(kv.page_table, inputs.token_slots, inputs.positions, kv.page_size)
    reach = {window: ops.reach(inputs, kv.page_table, kv.page_size, window, mutual) for window in windows}
    return StepView(turns, cells, reach)


class HeadNorm:
    """RMS norm of each query and key head by itself; one weight for all query heads and one for all key heads."""

    def __init__(self, source: WeightSource, ops: Ops, name: str, config: ModelConfig) -> None:
        size = (config.head_dim,)
        query = source.tensor([(f"{name}.q_norm.weight", size)])
        key = source.tensor([(f"{name}.k_norm.weight", size)])
        # Not `torch.cat`: for the shapes of an outline it imports all of torch's compiler, a second at every start.
        self.weight = query.new_empty((config.heads + config.kv_heads, config.head_dim))
        self.weight[: config.heads] = query
        self.weight[config.heads :] = key
        self.eps = config.norm_eps
        self.op = ops.rms_norm
        if config.gemma is not None:
            self.weight = grown(self.weight)
            self.op = grown_norm

    def __call__(self, x: Tensor) -> Tensor:
        return self.op(x, self.weight, self.eps)


class PagedAttention:
    """qkv in one matrix, rotary positions, KV into its cells, attention, output matrix plus residual."""

    def __init__(self, source: WeightSource, ops: Ops, name: str, config: ModelConfig, layer: int) -> None:
        self.heads = config.heads
        self.kv_heads = config.kv_heads
        self.head_dim = config.head_dim
        self.scale = config.scale
        self.cap = 0.0 if config.gemma is None else config.gemma.score_cap
        self.window = config.windows[layer]
        self.ops = ops
        size = config.hidden_size
        query, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
        parts = [(f"{name}.q_proj", query), (f"{name}.k_proj", shared), (f"{name}.v_proj", shared)]
        if config.fused:
            parts = [(f"{name}.qkv_proj", query + 2 * shared)]
        self.qkv = fused_linear(source, parts, size, config.qkv_bias)
        self.norm = HeadNorm(source, ops, name, config) if config.qk_norm else None
        self.out = fused_linear(source, [(f"{name}.o_proj", size)], query, config.output_bias)

    def __call__(
        self, x: Tensor, residual: Tensor | None, step: StepView, key_cells: Tensor, value_cells: Tensor
    ) -> Tensor:
        """x [T, hidden], and what is added to the result; key_cells, value_cells: of this layer in the slab."""
        rotated = self.heads + self.kv_heads
        qkv = self.qkv(x).view(-1, rotated + self.kv_heads, self.head_dim)
        turning = qkv[:, :rotated]
        if self.norm is not None:
            turning = self.norm(turning)
        turning = self.ops.rope(turning, *step.turns[self.window])
        self.ops.store_kv(turning[:, self.heads :], qkv[:, rotated:], key_cells, value_cells, step.cells)
        reach = step.reach[self.window]
        read = self.ops.attend(turning[:, : self.heads], key_cells, value_cells, reach, self.scale, self.cap)
        return self.out(read.reshape(-1, self.heads * self.head_dim), residual)
