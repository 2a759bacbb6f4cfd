"""Llama, and everything that differs from it in settings only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

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


class Layer(Protocol):
    """x [T, hidden] of all the step's tokens -> the same; writes their KV into its cells."""

    def __call__(self, x: Tensor, step: StepView, key_cells: Tensor, value_cells: Tensor) -> Tensor: ...


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
    """A decoder of Llama's structure. `forward` takes its tensors as arguments and holds no state.

    layer_class, norm_class: what its layers and its last norm are."""

    layer_class: Callable[[WeightSource, Ops, str, ModelConfig, int], Layer] = DecoderLayer
    norm_class: type[RMSNorm] = RMSNorm

    def __init__(self, config: ModelConfig, source: WeightSource, ops: Ops, dtype: torch.dtype) -> None:
        self.config = config
        self.ops = ops
        self.windows = tuple(sorted(set(config.windows)))
        self.rotary = Rotary(config.rope, config.head_dim, dtype)
        prefix = config.prefix
        self.embedding = self.embed(source, f"{prefix}.embed_tokens")
        self.layers = [
            self.layer_class(source, ops, f"{prefix}.layers.{layer}", config, layer)
            for layer in range(config.layers)
        ]
        self.norm = self.norm_class(source, ops, f"{prefix}.norm", config.hidden_size, config.norm_eps)
        head = f"{prefix}.embed_tokens" if config.tied_head else "lm_head"
        self.head = fused_linear(source, [(head, config.vocab_size)], config.hidden_size)

    def forward(self, inputs: StepInputs, kv: KVSlab, seen: StepImages | None = None) -> Tensor:
        """Writes this step's KV into `kv` and returns logits [samples, vocab] of the wanted tokens."""
        return self.logits(self.hidden(inputs, kv, seen).index_select(0, inputs.sample_tokens))

    def hidden(self, inputs: StepInputs, kv: KVSlab, seen: StepImages | None = None) -> Tensor:
        """Writes this step's KV into `kv` and returns what the last layer gives, [tokens, hidden].

        seen: what of this step comes from pictures; None where nothing does."""
        ids = self.ops.resolve_tokens(inputs.token_ids, inputs.token_slots, kv.last_tokens)
        places = inputs.positions if seen is None or seen.angles is None else seen.angles
        mutual = () if seen is None else seen.mutual
        step = view_step(self.ops, inputs, kv, self.turns(places), self.windows, mutual)
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

    def embed(self, source: WeightSource, name: str) -> Embedding:
        """What its token ids become, made while it is built."""
        return Embedding(source, name, self.config.vocab_size, self.config.hidden_size)

    def turns(self, places: Tensor) -> Mapping[int, tuple[Tensor, Tensor]]:
        """By window: cos and sin of tokens at `places` in the layers that have it."""
        return dict.fromkeys(self.windows, self.rotary(places))

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocab] of rows that `hidden` returned."""
        return self.head(self.norm(hidden))
