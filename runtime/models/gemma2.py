"""Gemma 2: every other layer slides, scores and logits are capped."""

from __future__ import annotations

from headrace.runtime.models.config import (
    CONTEXT_LIMIT,
    Fields,
    GemmaTraits,
    ModelConfig,
    read_decoder,
    read_windows,
    with_defaults,
)
from headrace.runtime.models.gemma import check_gemma

NAME = "Gemma2ForCausalLM"
OWN = frozenset({"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"})
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}


def read(fields: Fields) -> ModelConfig:
    """Gemma 2 of 2, 9 and 27 billion parameters and models of their shape."""
    fields = with_defaults(fields, DEFAULTS)
    check_gemma(fields)
    layers = fields.integer("num_hidden_layers", high=4096)
    window = fields.integer("sliding_window", high=CONTEXT_LIMIT)
    windows = tuple(0 if layer % 2 else window for layer in range(layers))
    if fields.has("layer_types"):
        windows = read_windows(fields, window)
    bias = fields.flag("attention_bias", False)
    traits = GemmaTraits(
        embedding_scale=fields.integer("hidden_size") ** 0.5,
        score_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        score_cap=fields.number("attn_logit_softcapping", 0.0),
        logit_cap=fields.number("final_logit_softcapping", 0.0),
    )
    return read_decoder(NAME, fields, qkv_bias=bias, output_bias=bias, windows=windows, gemma=traits)
