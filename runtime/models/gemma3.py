"""Gemma 3's decoder: heads normalised one by one, five of six layers slide and turn by a base of their own."""

from __future__ import annotations

from typing import Any

from headrace.runtime.models.config import (
    CONTEXT_LIMIT,
    Fields,
    GemmaTraits,
    ModelConfig,
    RopeConfig,
    read_decoder,
    read_rope,
    read_windows,
    with_defaults,
)
from headrace.runtime.models.gemma import check_gemma

NAME = "Gemma3ForCausalLM"
OWN = frozenset({"query_pre_attn_scalar", "final_logit_softcapping"})
GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0
PATTERN = 6  # one layer of so many reads everything
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
KINDS = ("full_attention", "sliding_attention")


def read(fields: Fields) -> ModelConfig:
    """Gemma 3 of 270 million and one billion parameters and models of their shape."""
    return read_text(NAME, fields)


def read_text(architecture: str, fields: Fields, **traits: Any) -> ModelConfig:
    """The decoder of any Gemma 3; `traits` are ModelConfig fields of this one."""
    fields = with_defaults(fields, DEFAULTS)
    check_gemma(fields)
    layers = fields.integer("num_hidden_layers", high=4096)
    window = fields.integer("sliding_window", high=CONTEXT_LIMIT)
    pattern = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", PATTERN))
    windows = tuple(window if (layer + 1) % pattern else 0 for layer in range(layers))
    if fields.has("layer_types"):
        windows = read_windows(fields, window)
    far, near = read_ropes(fields)
    bias = fields.flag("attention_bias", False)
    gemma = GemmaTraits(
        embedding_scale=fields.integer("hidden_size") ** 0.5,
        score_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        logit_cap=fields.number("final_logit_softcapping", 0.0),
        local_rope=near,
    )
    return read_decoder(
        architecture,
        fields,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        windows=windows,
        rope=far,
        gemma=gemma,
        **traits,
    )


def read_ropes(fields: Fields) -> tuple[RopeConfig, RopeConfig]:
    """How layers that read everything turn, and those that slide: in the new spelling, one object for each, or the
    old one, where `rope_scaling` is of the first alone."""
    positions = fields.integer("max_position_embeddings", high=CONTEXT_LIMIT)
    given = fields.get("rope_parameters") or {}
    if not isinstance(given, dict) or set(given) - set(KINDS):
        raise fields.refuse("rope_parameters", f"must hold {KINDS[0]} and {KINDS[1]} and nothing else")
    thetas = (
        fields.number("rope_theta", GLOBAL_THETA, low=1.0),
        fields.number("rope_local_base_freq", LOCAL_THETA, low=1.0),
    )
    scaled = fields.get("rope_scaling") or {}
    found = []
    for kind, theta, more in zip(KINDS, thetas, (scaled, {}), strict=True):
        own = given.get(kind) or {}
        if not isinstance(own, dict) or not isinstance(more, dict):
            raise fields.refuse("rope_parameters", "is not understood")
        settings = {"rope_theta": theta, "rope_parameters": {**own, **more}}
        found.append(read_rope(Fields(settings, f"{fields.name}: {kind}"), positions))
    return found[0], found[1]
