"""Gemma: Llama with norms around attention and MLP, scaled embeddings, and scores and logits that may be capped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from headrace.runtime.backends.base import Ops
from headrace.runtime.models.attention import PagedAttention, StepView
from headrace.runtime.models.config import Fields, ModelConfig
from headrace.runtime.models.layers import Embedding, GatedMLP, GrownNorm, Rotary, WeightSource
from headrace.runtime.models.llama import Llama

OLDER = ("cache_implementation", "_sliding_window_pattern", "sliding_window_pattern")


class GemmaLayer:
    """Attention and MLP, each between two norms and added to what came in."""

    def __init__(self, source: WeightSource, ops: Ops, name: str, config: ModelConfig, layer: int) -> None:
        size, eps = config.hidden_size, config.norm_eps

        def norm(part: str) -> GrownNorm:
            return GrownNorm(source, ops, f"{name}.{part}_layernorm", size, eps)

        self.before_attention = norm("input")
        self.attention = PagedAttention(source, ops, f"{name}.self_attn", config, layer)
        self.after_attention = norm("post_attention")
        self.before_mlp = norm("pre_feedforward")
        self.mlp = GatedMLP(source, ops, f"{name}.mlp", size, config.intermediate_size, tanh=True)
        self.after_mlp = norm("post_feedforward")

    def __call__(self, x: Tensor, step: StepView, key_cells: Tensor, value_cells: Tensor) -> Tensor:
        read = self.attention(self.before_attention(x), None, step, key_cells, value_cells)
        x = self.after_attention.added(read, x)
        return self.after_mlp.added(self.mlp(self.before_mlp(x), None), x)


class ScaledEmbedding(Embedding):
    """Token ids to rows, times a number that is rounded to their type first, as the reference does."""

    def __init__(self, source: WeightSource, name: str, rows: int, size: int, scale: float) -> None:
        super().__init__(source, name, rows, size)
        self.scale = torch.tensor(scale).to(self.weight.dtype).item()

    def __call__(self, ids: Tensor) -> Tensor:
        return super().__call__(ids).mul_(self.scale)


class Gemma(Llama):
    """A decoder of Gemma's structure (`ModelConfig.gemma`)."""

    layer_class = GemmaLayer
    norm_class = GrownNorm

    def __init__(self, config: ModelConfig, source: WeightSource, ops: Ops, dtype: torch.dtype) -> None:
        assert config.gemma is not None
        super().__init__(config, source, ops, dtype)
        self.cap = config.gemma.logit_cap
        local = config.gemma.local_rope
        self.local_rotary = self.rotary if local is None else Rotary(local, config.head_dim, dtype)

    def embed(self, source: WeightSource, name: str) -> Embedding:
        config = self.config
        assert config.gemma is not None
        scale = config.gemma.embedding_scale
        return ScaledEmbedding(source, name, config.vocab_size, config.hidden_size, scale)

    def turns(self, places: Tensor) -> Mapping[int, tuple[Tensor, Tensor]]:
        if self.local_rotary is self.rotary:
            return super().turns(places)
        return {window: (self.local_rotary if window else self.rotary)(places) for window in self.windows}

    def logits(self, hidden: Tensor) -> Tensor:
        found = super().logits(hidden)
        return found.div_(self.cap).tanh_().mul_(self.cap) if self.cap else found


def check_gemma(fields: Fields) -> None:
    """Raise CheckpointError for what no Gemma here computes."""
    act = fields.get("hidden_activation")
    if act not in (None, "gelu_pytorch_tanh"):
        raise fields.refuse("hidden_activation", f"{str(act)[:60]!r} is not supported (gelu_pytorch_tanh is)")
    if fields.get("use_bidirectional_attention"):
        raise fields.refuse(
            "use_bidirectional_attention", "true is not supported: such a model writes nothing"
        )
    # `hidden_act` and `sliding_window_size`: what older files say beside those that count, and nobody obeys.
    for name in (*OLDER, "hidden_act", "sliding_window_size"):
        fields.get(name)
