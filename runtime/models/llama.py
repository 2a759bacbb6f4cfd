"""Llama, and everything that differs from it in settings only."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.graphs.inputs import StepInputs
from headrace.runtime.backends.base import Ops
from headrace.runtime.models.attention import PagedAttention, StepView, view_step
from headrace.runtime.models.config import Fields, ModelConfig, read_decoder
from headrace.runtime.models.experts import make_mlp
from headrace.runtime.models.layers import Embedding, RMSNorm, Rotary, WeightSource, fused_linear
from headrace.runtime.slab import KVSlab
from headrace.runtime.step_images import StepImages


def read(fields: Fields) -> ModelConfig:
    """Llama 2, 3, 3.1, 3.2 and models of their shape."""
    bias = fields.flag("attention_bias", False)
    return read_decoder(
        "LlamaForCausalLM",
        fields,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


class DecoderLayer:
    """Attention and MLP, each after a norm and added to what came in."""

    def __init__(self, source: WeightSource, ops: Ops, name: str, config: ModelConfig, layer: int) -> None:
        size, eps = config.hidden_size, config.norm_eps
        self.before_attention = RMSNorm(source, ops, f"{name}.input_layernorm", size, eps)
        self.attention = PagedAttention(source, ops, f"{name}.self_attn", config, layer)
        self.before_mlp = RMSNorm(source, ops, f"{name}.post_attention_layernorm", size, eps)
        self.mlp = make_mlp(source, ops, name, config, layer)

    def __call__(self, x: Tensor, step: StepView, key_cells: Tensor, value_cells: Tensor) -> Tensor:
        x = self.attention(self.before_attention(x), x, step, key_cells, value_cells)
        return self.mlp(self.before_mlp(x), x)


class Llama:
    """A decoder of Llama's structure. `forward` takes its tensors as arguments and holds no state."""

    def __init__(self, config: ModelConfig, source: WeightSource, ops: Ops, dtype: torch.dtype) -> None:
        self.config = config
        self.ops = ops
        self.windows = tuple(sorted(set(config.windows)))
        self.rotary = Rotary(config.rope, config.head_dim, dtype)
        prefix = config.prefix
        self.embedding = Embedding(source, f"{prefix}.embed_tokens", config.vocab_size, config.hidden_size)
        self.layers = [
            DecoderLayer(source, ops, f"{prefix}.layers.{layer}", config, layer)
            for layer in range(config.layers)
        ]
        self.norm = RMSNorm(source, ops, f"{prefix}.norm", config.hidden_size, config.norm_eps)
        head = f"{prefix}.embed_tokens" if config.tied_head else "lm_head"
        self.head = fused_linear(source, [(head, config.vocab_size)], config.hidden_size)

    def forward(self, inputs: StepInputs, kv: KVSlab, seen: StepImages | None = None) -> Tensor:
        """Writes this step's KV into `kv` and returns logits [samples, vocab] of the wanted tokens."""
        return self.logits(self.hidden(inputs, kv, seen).index_select(0, inputs.sample_tokens))

    def hidden(self, inputs: StepInputs, kv: KVSlab, seen: StepImages | None = None) -> Tensor:
        """Writes this step's KV into `kv` and returns what the last layer gives, [tokens, hidden].

        seen: what of this step comes from pictures; None where nothing does."""
        ids = self.ops.resolve_tokens(inputs.token_ids, inputs.token_slots, kv.last_tokens)
        turned = inputs.positions if seen is None or seen.angles is None else seen.angles
        cos, sin = self.rotary(turned)
        step = view_step(self.ops, inputs, kv, cos, sin, self.windows)
        x = self.embedding(ids)
        if seen is not None:
            x.index_copy_(0, seen.tokens, seen.rows[:, 0])
        for number, (layer, (key_cells, value_cells)) in enumerate(
            zip(self.layers, kv.layers, strict=True), 1
        ):
            x = layer(x, step, key_cells, value_cells)
            if seen is not None and number < seen.rows.shape[1]:
                x.index_add_(0, seen.tokens, seen.rows[:, number])
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocab] of rows that `hidden` returned."""
        return self.head(self.norm(hidden))
