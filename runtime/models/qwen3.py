"""Qwen3: Llama whose query and key heads are normalised one by one (`ModelConfig.qk_norm`)."""

from __future__ import annotations

from headrace.runtime.models.config import Fields, ModelConfig, read_decoder, read_windows
from headrace.runtime.models.qwen2 import sliding_window


def read(fields: Fields) -> ModelConfig:
    """Dense Qwen3 models. Their head size is a setting of its own, never hidden_size over heads."""
    if not fields.has("head_dim"):
        raise fields.refuse("head_dim", "is missing")
    bias = fields.flag("attention_bias", False)
    windows = read_windows(fields, sliding_window(fields))
    return read_decoder(
        "Qwen3ForCausalLM", fields, qkv_bias=bias, output_bias=bias, qk_norm=True, windows=windows
    )
