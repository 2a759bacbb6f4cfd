"""Mixtral: Mistral with a mixture of experts behind every attention."""

from __future__ import annotations

from dataclasses import replace

from headrace.runtime.models import mistral
from headrace.runtime.models.config import ExpertTraits, Fields, ModelConfig

NAME = "MixtralForCausalLM"
OWN = frozenset({"num_local_experts"})


def read(fields: Fields) -> ModelConfig:
    """Mixtral 8x7B, 8x22B and models of their shape."""
    count = fields.integer("num_local_experts", 8)
    if "sliding_window" not in fields.raw:
        fields.raw = {**fields.raw, "sliding_window": None}  # absent means none here, unlike in Mistral
    for training in ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"):
        fields.get(training)
    config = mistral.read(fields)
    experts = ExpertTraits(
        count=count,
        chosen=fields.integer("num_experts_per_tok", 2, high=count),
        inner=config.intermediate_size,
        renormalised=True,
        name="block_sparse_moe",
        parts=("w1", "w3", "w2"),
    )
    return replace(config, architecture=NAME, experts=experts, unread=fields.unread())
