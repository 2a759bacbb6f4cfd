"""LLaVA 1.5 and models of its kind: CLIP's or SigLIP's tower, two matrices, and a decoder like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.runtime.backends.base import Ops
from headrace.runtime.models import llama, mistral, qwen2
from headrace.runtime.models.config import Fields, ModelConfig, check_refused, with_defaults
from headrace.runtime.models.layers import WeightSource, fused_linear
from headrace.runtime.models.seeing import Seeing
from headrace.runtime.models.vision_config import PlainVision
from headrace.runtime.models.vision_files import read_tower, spare_parts
from headrace.runtime.models.vision_plain import PlainTower

NAME = "LlavaForConditionalGeneration"
PROJECTOR = "model.multi_modal_projector"
# The files of its makers, and those of newer libraries, which leave out a level of the tower.
RENAMES = (
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)
DECODERS: dict[str, Callable[[Fields], ModelConfig]] = {
    "llama": llama.read,
    "mistral": mistral.read,
    "qwen2": qwen2.read,
}
# Of Llama's own reference: its files say only what differs.
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "eos_token_id": 2,
}


def read(fields: Fields) -> ModelConfig:
    """LLaVA 1.5 of 7 and 13 billion parameters and models of their shape."""
    for name in ("image_seq_length", "ignore_index", "vocab_size", "pad_token_id"):
        fields.get(name)  # of training, of older files, or what the sizes say anyway
    config = read_decoder_of(fields, NAME)
    token_id = fields.integer("image_token_index", fields.integer("image_token_id", 32000, low=0), low=0)
    vision, unread = read_eyes(fields, token_id, config, feature_layer=-2, strategy="default")
    return replace(config, vision=vision, unread=tuple(sorted({*config.unread, *fields.unread(), *unread})))


def read_decoder_of(fields: Fields, name: str) -> ModelConfig:
    """The decoder of the file, which is a model of its own."""
    own = fields.inner("text_config")
    tied = fields.flag("tie_word_embeddings", False) or own.flag("tie_word_embeddings", False)
    kind = own.get("model_type")
    if kind not in DECODERS:
        raise own.refuse("model_type", f"{str(kind)[:60]!r} is not supported ({', '.join(DECODERS)} are)")
    text = fields.inner("text_config", tie_word_embeddings=tied, eos_token_id=fields.get("eos_token_id"))
    check_refused(text)
    config = DECODERS[kind](with_defaults(text, LLAMA_DEFAULTS if kind == "llama" else {}))
    return replace(config, architecture=name, prefix="model.language_model")


def read_eyes(
    fields: Fields, token_id: int, config: ModelConfig, *, feature_layer: int, strategy: str
) -> tuple[PlainVision, tuple[str, ...]]:
    """The tower as far as a decoder reads it, and what nobody reads of its section. feature_layer, strategy: where
    the file does not say."""
    if token_id >= config.vocab_size:
        raise fields.refuse("image_token_index", f"{token_id} is not below vocab_size {config.vocab_size}")
    eyes = fields.inner("vision_config")
    tower = read_tower(eyes, token_id)
    layer = fields.get("vision_feature_layer")
    layer = feature_layer if layer is None else layer
    if type(layer) is not int or not -tower.depth <= layer <= tower.depth or not layer:
        raise fields.refuse("vision_feature_layer", f"{str(layer)[:60]} is not one block of the tower")
    said = fields.get("vision_feature_select_strategy") or strategy
    if said != ("default" if tower.leading else "full"):
        raise fields.refuse("vision_feature_select_strategy", f"{str(said)[:60]!r} is not supported here")
    if fields.get("projector_hidden_act") not in (None, "gelu"):
        raise fields.refuse("projector_hidden_act", "is not supported (gelu is)")
    depth = layer if layer > 0 else tower.depth + 1 + layer
    spare = spare_parts(depth, tower.depth)
    bias = fields.flag("multimodal_projector_bias", True)
    return replace(tower, depth=depth, out=config.hidden_size, bias=bias, spare=spare), eyes.unread()


class Projector:
    """Patches to the decoder's width, through a GELU."""

    def __init__(self, config: PlainVision, source: WeightSource) -> None:
        self.first = fused_linear(source, [(f"{PROJECTOR}.linear_1", config.out)], config.hidden, config.bias)
        self.second = fused_linear(source, [(f"{PROJECTOR}.linear_2", config.out)], config.out, config.bias)

    def __call__(self, patches: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(patches)))


class Llava(Seeing):
    """The decoder, and its tower."""

    def __init__(self, config: ModelConfig, source: WeightSource, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__(config, source, ops, dtype)
        assert isinstance(config.vision, PlainVision)
        self.tower = PlainTower(config.vision, source, dtype, Projector(config.vision, source))
