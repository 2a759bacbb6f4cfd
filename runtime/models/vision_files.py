"""SigLIP's and CLIP's section of a model's config.json."""

from __future__ import annotations

from typing import Literal

from headrace.runtime.models.config import Fields
from headrace.runtime.models.vision_config import PlainVision

TOWER = "model.vision_tower"
HEAD = f"{TOWER}.head."


def read_tower(fields: Fields, token_id: int) -> PlainVision:
    """The section of either, as its `model_type` says."""
    kind = fields.get("model_type")
    if kind == "siglip_vision_model":
        return read_siglip(fields, token_id)
    if kind != "clip_vision_model":
        known = "clip_vision_model and siglip_vision_model are"
        raise fields.refuse("model_type", f"{str(kind)[:60]!r} is not supported ({known})")
    acts: dict[str | None, Literal["exact", "quick"]] = {
        None: "quick",
        "quick_gelu": "quick",
        "gelu": "exact",
    }
    act = fields.get("hidden_act")
    if act not in acts:
        raise fields.refuse("hidden_act", f"{str(act)[:60]!r} is not supported (quick_gelu and gelu are)")
    return read_plain(fields, token_id, acts[act], leading=True, eps=1e-5)


def spare_parts(depth: int, blocks: int) -> tuple[str, ...]:
    """What the files of a tower of `blocks` blocks hold that takes no part where only `depth` are computed."""
    layers = [f"{TOWER}.encoder.layers.{number}." for number in range(depth, blocks)]
    return (HEAD, f"{TOWER}.post_layernorm.", *layers)


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
    for name in ("projection_dim", "projection_size", "initializer_factor", "vocab_size"):
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
