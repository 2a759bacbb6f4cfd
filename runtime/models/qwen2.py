"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and a window on the upper layers if asked for."""

from __future__ import annotations

from headrace.runtime.models.config import CONTEXT_LIMIT, Fields, ModelConfig, read_decoder, read_windows


def sliding_window(fields: Fields) -> int:
    """The window in tokens, or 0 where `use_sliding_window` is off (then `sliding_window` means nothing)."""
    used = fields.flag("use_sliding_window", False)
    given = fields.get("sliding_window")
    if not used or given is None:
        return 0
    return fields.integer("sliding_window", high=CONTEXT_LIMIT)


def read(fields: Fields) -> ModelConfig:
    """Dense Qwen2 models."""
    windows = read_windows(fields, sliding_window(fields))
    return read_decoder("Qwen2ForCausalLM", fields, qkv_bias=True, windows=windows)
