"""Phi-3 and Phi-4: Llama whose files hold query, key and value, and gate and up, as one matrix each."""

from __future__ import annotations

from headrace.runtime.models.config import CONTEXT_LIMIT, Fields, ModelConfig, read_decoder

NAME = "Phi3ForCausalLM"


def read(fields: Fields) -> ModelConfig:
    """Phi-3 of 4k, Phi-4, and models of their shape. Longrope and half-turned heads are refused by name."""
    window = 0
    if fields.has("sliding_window"):
        window = fields.integer("sliding_window", high=CONTEXT_LIMIT)
    fields.seen.add("sliding_window")
    layers = fields.integer("num_hidden_layers", high=4096)
    return read_decoder(
        NAME,
        fields,
        qkv_bias=fields.flag("attention_bias", False),
        windows=(window,) * layers,
        fused=True,
    )
