"""A mixture of experts in place of an MLP: each token goes through the few that its router chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.runtime.backends.base import Ops
from headrace.runtime.models.config import ModelConfig
from headrace.runtime.models.layers import GatedMLP, WeightSource, fused_linear


class Expert:
    """down(silu(gate(x)) * up(x)); gate and up are one matrix."""

    def __init__(
        self, source: WeightSource, ops: Ops, config: ModelConfig, gate: str, up: str, down: str
    ) -> None:
        assert config.experts is not None
        size, inner = config.hidden_size, config.experts.inner
        self.gate_up = fused_linear(source, [(gate, inner), (up, inner)], size)
        self.down = fused_linear(source, [(down, size)], inner)
        self.silu_mul = ops.silu_mul

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.silu_mul(self.gate_up(x)))


class ExpertMLP:
    """The chosen experts' outputs, each times its share, + residual."""

    def __init__(self, source: WeightSource, ops: Ops, name: str, config: ModelConfig) -> None:
        assert config.experts is not None
        traits = self.traits = config.experts
        self.router = fused_linear(source, [(f"{name}.gate", traits.count)], config.hidden_size)
        self.experts = [
            Expert(source, ops, config, *(f"{name}.experts.{number}.{part}" for part in traits.parts))
            for number in range(traits.count)
        ]

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        shares, chosen = self.router(x).float().softmax(-1).topk(self.traits.chosen, -1)
        if self.traits.renormalised:
            shares = shares / shares.sum(-1, keepdim=True)
        shares = shares.to(x.dtype)
        out = torch.zeros_like(x)
        for number in chosen.unique().tolist():
            tokens, place = torch.where(chosen == number)
            out.index_add_(0, tokens, self.experts[number](x[tokens]) * shares[tokens, place, None])
        return out.add_(residual)


def make_mlp(
    source: WeightSource, ops: Ops, name: str, config: ModelConfig, layer: int
) -> GatedMLP | ExpertMLP:
    """What stands behind the attention of `layer`, whose tensors begin with `name`."""
    experts = config.experts
    if experts is None or layer in experts.dense:
        size, inner = config.hidden_size, config.intermediate_size
        return GatedMLP(source, ops, f"{name}.mlp", size, inner, config.mlp_bias, config.fused)
    return ExpertMLP(source, ops, f"{name}.{experts.name}", config)
