"""Mistral: Llama without biases, where every layer may read only the newest `sliding_window` tokens."""

from __future__ import annotations

from headrace.runtime.models.config import CONTEXT_LIMIT, Fields, ModelConfig, read_decoder

WINDOW_WHEN_UNSAID = 4096  # what the reference takes when the field is absent; null means no window


def read(fields: Fields) -> ModelConfig:
    """Mistral 7B of all versions and models of its shape."""
    window = 0
    if fields.has("sliding_window") or "sliding_window" not in fields.raw:
        window = fields.integer("sliding_window", WINDOW_WHEN_UNSAID, high=CONTEXT_LIMIT)
    fields.seen.add("sliding_window")
    layers = fields.integer("num_hidden_layers", high=4096)
    return read_decoder("MistralForCausalLM", fields, windows=(window,) * layers)
