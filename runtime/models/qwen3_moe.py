"""Qwen3-MoE: Qwen3 with a mixture of experts behind the attention of most layers."""

from __future__ import annotations

from dataclasses import replace

from headrace.runtime.models import qwen3
from headrace.runtime.models.config import ExpertTraits, Fields, ModelConfig

NAME = "Qwen3MoeForCausalLM"
OWN = frozenset({"num_experts", "num_local_experts"})  # newer files say it by the second name


def read(fields: Fields) -> ModelConfig:
    """Qwen3-30B-A3B and models of its shape."""
    count = fields.integer("num_experts", fields.integer("num_local_experts", 128))
    chosen = fields.integer("num_experts_per_tok", 8, high=count)
    step = fields.integer("decoder_sparse_step", 1)
    layers = fields.integer("num_hidden_layers", high=4096)
    dense = set(fields.integers("mlp_only_layers", 0, layers - 1))
    dense |= {layer for layer in range(layers) if (layer + 1) % step}
    experts = ExpertTraits(
        count=count,
        chosen=chosen,
        inner=fields.integer("moe_intermediate_size", 768),
        renormalised=fields.flag("norm_topk_prob", False),
        name="mlp",
        parts=("gate_proj", "up_proj", "down_proj"),
        dense=frozenset(dense),
    )
    for training in ("output_router_logits", "router_aux_loss_coef"):
        fields.get(training)
    return replace(qwen3.read(fields), architecture=NAME, experts=experts)
