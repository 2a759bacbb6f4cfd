"""SigLIP's and CLIP's section of a model's config.json."""

from __future__ import annotations

from typing import Literal

from headrace.runtime.models.config import Fields
from headrace.runtime.models.vision_config import PlainVision


def read_siglip(fields: Fields, token_id: int) -> PlainVision:
    """SigLIP's section of a file, all its blocks and no closing norm; a row for each patch."""
    act = fields.get("hidden_act")
    if act not in (None, "gelu_pytorch_tanh", "gelu"):
        raise fields.refuse(
            "hidden_act", f"{str(act)[:60]!r} is not supported (gelu_pytorch_tanh and gelu are)"
        )
    fields.get("vision_use_head")  # it looks at the whole picture: no decoder reads it
    return read_plain(fields, token_id, "exact" if act == "gelu" else "tanh", leading=False)


def read_plain(
    fields: Fields, token_id: int, act: Literal["exact", "tanh", "quick"], leading: bool, eps: float = 1e-6
) -> PlainVision:
    """What both have. Absent fields mean what they mean in the reference."""
    for name in ("projection_dim", "projection_size", "initializer_factor", "model_type"):
        fields.get(name)  # of training, and of what compares pictures with texts
    hidden = fields.integer("hidden_size", 768)
    heads = fields.integer("num_attention_heads", 12)
    if hidden % heads:
        raise fields.refuse("hidden_size", f"{hidden} is not a multiple of num_attention_heads {heads}")
    sizes = (
        fields.pair("image_size", (224, 224)),
        fields.pair("patch_size", (32, 32) if leading else (16, 16)),
    )
    (side, height), (patch, tall) = sizes
    if side != height or patch != tall or patch > side:
        raise fields.refuse("image_size", f"{side} x {height} is not a square of square patches")
    return PlainVision(
        token_id=token_id,
        depth=fields.integer("num_hidden_layers", 12, high=4096),
        hidden=hidden,
        intermediate=fields.integer("intermediate_size", 3072),
        heads=heads,
        channels=fields.integer("num_channels", 3, low=3, high=3),
        patch=patch,
        side=side,
        rows=side // patch,
        out=hidden,
        eps=fields.number("layer_norm_eps", eps, high=1.0),
        act=act,
        leading=leading,
        closing=False,
    )
