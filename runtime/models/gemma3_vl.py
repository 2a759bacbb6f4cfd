"""Gemma 3 with eyes: SigLIP's tower, means of squares of its patches, and a decoder in which the tokens of a
picture read each other."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headrace.runtime.backends.base import Ops
from headrace.runtime.models.config import Fields, ModelConfig, check_refused, with_defaults
from headrace.runtime.models.gemma import Gemma
from headrace.runtime.models.gemma3 import OWN, read_text
from headrace.runtime.models.layers import GrownNorm, WeightSource
from headrace.runtime.models.seeing import Seeing
from headrace.runtime.models.vision_config import PlainVision
from headrace.runtime.models.vision_files import HEAD, read_siglip
from headrace.runtime.models.vision_plain import PlainTower, mean_of_squares

NAME = "Gemma3ForConditionalGeneration"
TOKENS = {"image_token_index": 262144, "boi_token_index": 255999, "eoi_token_index": 256000}
# The files of its makers, and those of newer libraries, which leave out a level of the tower.
RENAMES = (
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)


def read(fields: Fields) -> ModelConfig:
    """Gemma 3 of 4, 12 and 27 billion parameters and models of their shape."""
    fields = with_defaults(fields, TOKENS)
    tied = fields.flag("tie_word_embeddings", True)
    text = fields.inner("text_config", tie_word_embeddings=tied, eos_token_id=fields.get("eos_token_id"))
    check_refused(text, OWN)
    if text.has("final_logit_softcapping"):
        raise text.refuse("final_logit_softcapping", "is not supported beside pictures")
    ids = {name: fields.integer(f"{name}_token_index", low=0) for name in ("image", "boi", "eoi")}
    eyes = fields.inner("vision_config")
    vision = read_siglip(eyes, ids["image"])
    per_picture = fields.integer("mm_tokens_per_image", 256)
    rows = int(per_picture**0.5)
    if rows * rows != per_picture or vision.patches % rows:
        why = f"{per_picture} rows do not divide {vision.patches} patches a side"
        raise fields.refuse("mm_tokens_per_image", why)
    config = read_text(NAME, text, prefix="model.language_model")
    for name, token in ids.items():
        if token >= config.vocab_size:
            raise fields.refuse(f"{name}_token_index", f"{token} is not below vocab_size {config.vocab_size}")
    frame = ids["boi"], ids["eoi"]
    vision = replace(
        vision, rows=rows, out=config.hidden_size, closing=True, spare=(HEAD,), mutual=True, frame=frame
    )
    left = set(config.unread) | set(fields.unread()) | set(eyes.unread())
    return replace(config, vision=vision, unread=tuple(sorted(left)))


class AveragedPatches:
    """Means of squares of patches, normalised, times a matrix."""

    def __init__(self, config: PlainVision, source: WeightSource, ops: Ops) -> None:
        self.config = config
        name = "model.multi_modal_projector"
        self.norm = GrownNorm(source, ops, f"{name}.mm_soft_emb_norm", config.hidden, config.eps)
        self.matrix = source.tensor([(f"{name}.mm_input_projection_weight", (config.hidden, config.out))])

    def __call__(self, patches: Tensor) -> Tensor:
        pooled = mean_of_squares(patches, self.config.patches, self.config.rows)
        return self.norm(pooled) @ self.matrix


class Gemma3VL(Gemma, Seeing):
    """The decoder, and its tower."""

    def __init__(self, config: ModelConfig, source: WeightSource, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__(config, source, ops, dtype)
        assert isinstance(config.vision, PlainVision)
        self.tower = PlainTower(config.vision, source, dtype, AveragedPatches(config.vision, source, ops))
