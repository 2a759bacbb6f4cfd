"""Qwen2.5-VL: a Qwen2 decoder that turns by three axes, and a tower most of whose blocks look through windows."""

from __future__ import annotations

from dataclasses import replace

import torch

from headrace.runtime.backends.base import Ops
from headrace.runtime.models.config import SIZE_LIMIT, Fields, ModelConfig, check_refused, read_decoder
from headrace.runtime.models.layers import WeightSource
from headrace.runtime.models.qwen2 import sliding_window
from headrace.runtime.models.seeing import Seeing
from headrace.runtime.models.vision_config import QwenWindowVision
from headrace.runtime.models.vision_qwen_windows import QwenWindowTower

NAME = "Qwen2_5_VLForConditionalGeneration"
# Of videos and of the prompt's text, which the template writes: nobody here reads them.
SPARE = ("video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
# Files from before the decoder had a name of its own.
RENAMES = (
    ("visual.", "model.visual."),
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
)


def read(fields: Fields) -> ModelConfig:
    """Dense Qwen2.5-VL models; older files have the decoder's fields at the top."""
    for name in SPARE:
        fields.get(name)
    token_id = fields.integer("image_token_id", 151655, low=0)
    eyes = fields.inner("vision_config")
    vision = read_vision(eyes, token_id)
    text = fields
    if fields.has("text_config"):
        inner = fields.inner("text_config")
        tied = fields.flag("tie_word_embeddings", False) or inner.flag("tie_word_embeddings", False)
        text = fields.inner("text_config", tie_word_embeddings=tied, eos_token_id=fields.get("eos_token_id"))
        check_refused(text)
    for name in SPARE:
        text.get(name)
    if sliding_window(text):
        raise text.refuse("use_sliding_window", "true is not supported beside pictures")
    config = read_decoder(NAME, text, qkv_bias=True, prefix="model.language_model", vision=vision)
    if not config.rope.sections:
        raise text.refuse("rope_scaling", "has no mrope_section")
    if vision.out != config.hidden_size:
        raise eyes.refuse("out_hidden_size", f"{vision.out} differs from the decoder's {config.hidden_size}")
    if token_id >= config.vocab_size:
        raise fields.refuse("image_token_id", f"{token_id} is not below vocab_size {config.vocab_size}")
    left = set(config.unread) | set(fields.unread()) | set(eyes.unread())
    return replace(config, unread=tuple(sorted(left)))


def read_vision(fields: Fields, token_id: int) -> QwenWindowVision:
    """The tower's own section of the file."""
    if fields.get("hidden_act") not in (None, "silu"):
        raise fields.refuse("hidden_act", "is not supported (silu is)")
    for name in ("tokens_per_second", "spatial_patch_size", "rope_parameters", "in_chans"):
        fields.get(name)
    hidden, heads = fields.integer("hidden_size", 3584), fields.integer("num_heads", 16)
    if hidden % heads or hidden // heads % 4:
        raise fields.refuse("hidden_size", f"{hidden} does not give {heads} heads of a multiple of 4 numbers")
    depth = fields.integer("depth", 32, high=4096)
    patch, temporal = fields.pair("patch_size", (14, 14)), fields.pair("temporal_patch_size", (2, 2))
    if patch[0] != patch[1]:
        raise fields.refuse("patch_size", "is not square")
    merge = fields.integer("spatial_merge_size", 2, high=16)
    window = fields.integer("window_size", 112) // merge // patch[0]
    if not window:
        raise fields.refuse("window_size", "is smaller than one row of the picture")
    full = fields.integers("fullatt_block_indexes", 0, depth - 1)
    return QwenWindowVision(
        token_id=token_id,
        depth=depth,
        hidden=hidden,
        intermediate=fields.integer("intermediate_size", 3420),
        heads=heads,
        channels=fields.integer("in_channels", 3, low=3, high=3),
        patch=patch[0],
        merge=merge,
        temporal=temporal[0],
        out=fields.integer("out_hidden_size", 3584, high=SIZE_LIMIT),
        window=window,
        full=full if "fullatt_block_indexes" in fields.raw else (7, 15, 23, 31),
    )


class Qwen25VL(Seeing):
    """The decoder, and its tower."""

    def __init__(self, config: ModelConfig, source: WeightSource, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__(config, source, ops, dtype)
        assert isinstance(config.vision, QwenWindowVision)
        self.tower = QwenWindowTower(config.vision, source, dtype)
