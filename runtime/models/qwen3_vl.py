"""Qwen3-VL: a Qwen3 decoder that turns by three axes, and a tower whose rows also enter its first layers."""

from __future__ import annotations

from dataclasses import replace

import torch

from headrace.runtime.backends.base import Ops
from headrace.runtime.models.config import (
    SIZE_LIMIT,
    Fields,
    ModelConfig,
    check_refused,
    read_decoder,
)
from headrace.runtime.models.layers import WeightSource
from headrace.runtime.models.seeing import Seeing
from headrace.runtime.models.vision_config import QwenVision
from headrace.runtime.models.vision_qwen import QwenTower

NAME = "Qwen3VLForConditionalGeneration"
ROPE_THETA = 500000.0  # of the decoder, where the file does not say
# Of videos and of the prompt's text, which the template writes: nobody here reads them.
TOP_LEVEL = frozenset({"video_token_id", "vision_start_token_id", "vision_end_token_id"})


def read(fields: Fields) -> ModelConfig:
    """Dense Qwen3-VL models."""
    text = fields.inner(
        "text_config",
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        eos_token_id=fields.get("eos_token_id"),
    )
    check_refused(text)
    if not text.has("head_dim"):
        raise text.refuse("head_dim", "is missing")
    bias = text.flag("attention_bias", False)
    if not text.has("rope_parameters") and not text.has("rope_scaling"):
        raise text.refuse("rope_parameters", "is missing: it says which axis turns which part of a head")
    token_id = fields.integer("image_token_id", 151655, low=0)
    for name in TOP_LEVEL:
        fields.get(name)
    eyes = fields.inner("vision_config")
    vision = read_vision(eyes, token_id)
    config = read_decoder(
        NAME,
        text,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        prefix="model.language_model",
        vision=vision,
    )
    if not config.rope.sections:
        raise text.refuse("rope_parameters", "has no mrope_section")
    if vision.out != config.hidden_size:
        raise fields.refuse(
            "vision_config", f"has rows of {vision.out} numbers for a decoder of {config.hidden_size}"
        )
    if token_id >= config.vocab_size:
        raise fields.refuse("image_token_id", f"{token_id} is not below vocab_size {config.vocab_size}")
    if vision.deep > config.layers:
        raise fields.refuse("vision_config", f"feeds {vision.deep} layers, the decoder has {config.layers}")
    return replace(config, unread=config.unread + fields.unread() + eyes.unread())


def read_vision(fields: Fields, token_id: int) -> QwenVision:
    """The tower's own section of the file."""
    act = fields.get("hidden_act")
    if act not in (None, "gelu_pytorch_tanh", "gelu"):
        raise fields.refuse("hidden_act", "is not supported (gelu_pytorch_tanh and gelu are)")
    hidden, heads = fields.integer("hidden_size", 1152), fields.integer("num_heads", 16)
    if hidden % heads or hidden // heads % 4:
        raise fields.refuse("hidden_size", f"{hidden} does not give {heads} heads of a multiple of 4 numbers")
    depth = fields.integer("depth", 27, high=4096)
    positions = fields.integer("num_position_embeddings", 2304)
    grid = int(positions**0.5)
    if grid * grid != positions:
        raise fields.refuse("num_position_embeddings", f"{positions} is no square")
    rope = fields.get("rope_parameters") or {}
    theta = rope.get("rope_theta", 10000.0) if isinstance(rope, dict) else None
    if not isinstance(theta, int | float) or not 1.0 < theta < 1e12:
        raise fields.refuse("rope_parameters", "is not understood")
    patch, temporal = fields.pair("patch_size", (16, 16)), fields.pair("temporal_patch_size", (2, 2))
    if patch[0] != patch[1]:
        raise fields.refuse("patch_size", "is not square")
    return QwenVision(
        token_id=token_id,
        depth=depth,
        hidden=hidden,
        intermediate=fields.integer("intermediate_size", 4304),
        heads=heads,
        channels=fields.integer("in_channels", 3, low=3, high=3),
        patch=patch[0],
        merge=fields.integer("spatial_merge_size", 2, high=16),
        temporal=temporal[0],
        out=fields.integer("out_hidden_size", 3584, high=SIZE_LIMIT),
        grid=grid,
        deepstack=fields.integers("deepstack_visual_indexes", 0, depth - 1),
        tanh=act != "gelu",
        rope_theta=float(theta),
    )


class Qwen3VL(Seeing):
    """The decoder, and its tower."""

    def __init__(self, config: ModelConfig, source: WeightSource, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__(config, source, ops, dtype)
        assert isinstance(config.vision, QwenVision)
        self.tower = QwenTower(config.vision, source, dtype)
