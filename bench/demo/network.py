"""Qwen3-VL in small and in plain torch, for training: weights by their names in a checkpoint, and pure functions.

Rows of a batch hold several dialogues; who sees whom is the mask's affair. Pictures are padded to one number
of patches, so that every shape is known before and a block is compiled once. Knows nothing of data or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headrace.bench.demo.canvas import MERGE, MOST_PATCHES, PATCH
from headrace.bench.demo.layout import VOCABULARY

Weights = dict[str, Tensor]
PICTURE_TOKENS = MOST_PATCHES // MERGE**2

HIDDEN, INNER, LAYERS, HEADS, SHARED, HEAD = 256, 768, 10, 4, 2, 64
SECTIONS = (12, 10, 10)  # of the 32 frequencies of a head: time, height, width, interleaved
THETA = 100_000.0
EPSILON = 1e-6
VISION_HIDDEN, VISION_INNER, VISION_LAYERS, VISION_HEADS = 192, 768, 6, 3
VISION_THETA = 10_000.0
SIDE = 16  # of the grid of learned positions
DEEPSTACK = (1, 3)  # vision layers whose output joins the first text layers
CONTEXT = 2048

TEXT, VISUAL = "model.language_model.", "model.visual."
LAYER_NAMES = (
    "input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.q_norm.weight", "self_attn.k_norm.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
    "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
)  # fmt: skip
BLOCK_NAMES = (
    "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
    "norm2.weight", "norm2.bias", "mlp.linear_fc1.weight", "mlp.linear_fc1.bias", "mlp.linear_fc2.weight", "mlp.linear_fc2.bias",
)  # fmt: skip
MERGER_NAMES = (
    "norm.weight", "norm.bias", "linear_fc1.weight", "linear_fc1.bias", "linear_fc2.weight", "linear_fc2.bias",
)  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order of their drawing."""
    wide, narrow = HEADS * HEAD, SHARED * HEAD
    found: dict[str, tuple[int, ...]] = {TEXT + "embed_tokens.weight": (VOCABULARY, HIDDEN)}
    layer_shapes = (
        (HIDDEN,), (wide, HIDDEN), (narrow, HIDDEN), (narrow, HIDDEN), (HEAD,), (HEAD,), (HIDDEN, wide), (HIDDEN,),
        (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER),
    )  # fmt: skip
    for at in range(LAYERS):
        found |= {f"{TEXT}layers.{at}.{n}": s for n, s in zip(LAYER_NAMES, layer_shapes, strict=True)}
    found[TEXT + "norm.weight"] = (HIDDEN,)
    own, inner = VISION_HIDDEN, VISION_INNER
    found |= {
        VISUAL + "patch_embed.proj.weight": (own, 3, 2, PATCH, PATCH),
        VISUAL + "patch_embed.proj.bias": (own,),
        VISUAL + "pos_embed.weight": (SIDE * SIDE, own),
    }
    block_shapes = (
        (own,), (own,), (3 * own, own), (3 * own,), (own, own), (own,), (own,), (own,), (inner, own), (inner,), (own, inner), (own,),
    )  # fmt: skip
    for at in range(VISION_LAYERS):
        found |= {f"{VISUAL}blocks.{at}.{n}": s for n, s in zip(BLOCK_NAMES, block_shapes, strict=True)}
    four = own * MERGE**2
    for front, normed in (
        ("merger.", own),
        *((f"deepstack_merger_list.{k}.", four) for k in range(len(DEEPSTACK))),
    ):
        merger_shapes = ((normed,), (normed,), (four, four), (four,), (HIDDEN, four), (HIDDEN,))
        found |= {f"{VISUAL}{front}{n}": s for n, s in zip(MERGER_NAMES, merger_shapes, strict=True)}
    return found


def starting_weights(seed: int) -> Weights:
    """float32 on the CPU, from one seed: norms one, biases zero, the rest normal with a width that keeps sums steady."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes().items():
        if "norm" in name and name.endswith("weight"):
            weights[name] = torch.ones(shape)
        elif name.endswith("bias"):
            weights[name] = torch.zeros(shape)
        else:
            inputs = 1
            for size in shape[1:]:
                inputs *= size
            deviation = 0.05 if "embed_tokens" in name or "pos_embed" in name else inputs**-0.5
            if name.endswith(
                ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight")
            ):
                deviation *= (2 * LAYERS) ** -0.5
            weights[name] = torch.randn(shape, generator=generator) * deviation
    return weights


@dataclass(frozen=True)
class Batch:
    """What one pass reads. Text: [rows, length]; pictures: [pictures, MOST_PATCHES, ...], unused ones all zero."""

    ids: Tensor
    dialogue: Tensor  # which dialogue of its row a token belongs to; 0: none
    positions: Tensor  # [3, rows, length]
    places: (
        Tensor  # [pictures * PICTURE_TOKENS]: where in the flattened text each goes; rows * length: nowhere
    )
    patches: Tensor  # uint8
    grids: Tensor  # [pictures, 2]: rows and columns in patches


def _half_turned(x: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    return torch.cat((-other, one), -1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight.to(x.dtype), bias.to(x.dtype), EPSILON)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), EPSILON)


def text_block(
    x: Tensor,
    ws: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    past: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One text layer: the new x, and its keys and values. past: those of earlier tokens, before them."""
    norm1, q_w, k_w, v_w, q_norm, k_norm, o_w, norm2, gate_w, up_w, down_w = ws
    rows, length, _ = x.shape
    y = _rms_norm(x, norm1)

    def heads(weight: Tensor, norm: Tensor | None) -> Tensor:
        z = _linear(y, weight).view(rows, length, -1, HEAD)
        if norm is not None:
            z = _rms_norm(z, norm)
        z = z.transpose(1, 2)
        return z if norm is None else z * cos + _half_turned(z) * sin

    q, k, v = heads(q_w, q_norm), heads(k_w, k_norm), heads(v_w, None)
    if past is not None:
        k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
    groups = HEADS // SHARED
    wide_k, wide_v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    seen = F.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=mask)
    x = x + _linear(seen.transpose(1, 2).reshape(rows, length, -1), o_w)
    y = _rms_norm(x, norm2)
    x = x + _linear(F.silu(_linear(y, gate_w)) * _linear(y, up_w), down_w)
    return x, k, v


def vision_block(x: Tensor, ws: list[Tensor], cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    """One vision layer; every patch of a picture sees all of it."""
    n1w, n1b, qkv_w, qkv_b, proj_w, proj_b, n2w, n2b, in_w, in_b, out_w, out_b = ws
    count, length, _ = x.shape
    qkv = _linear(_layer_norm(x, n1w, n1b), qkv_w, qkv_b).view(count, length, 3, VISION_HEADS, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    q, k = q * cos + _half_turned(q) * sin, k * cos + _half_turned(k) * sin
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + _linear(seen.transpose(1, 2).reshape(count, length, -1), proj_w, proj_b)
    y = F.gelu(_linear(_layer_norm(x, n2w, n2b), in_w, in_b), approximate="tanh")
    return x + _linear(y, out_w, out_b)


def loss_of(x: Tensor, norm: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross entropies; a target of -100 is not counted."""
    logits = _linear(_rms_norm(x, norm), embedding).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


class Network:
    """The forward passes over one set of weights. dtype: of the activations; compiled: blocks go through torch.compile."""

    def __init__(self, weights: Weights, dtype: torch.dtype, compiled: bool = False) -> None:
        self.weights, self.dtype = weights, dtype
        self.device = next(iter(weights.values())).device
        self._text: Callable[..., Any] = text_block
        self._vision: Callable[..., Any] = vision_block
        self._loss: Callable[..., Any] = loss_of
        if compiled:
            # Shapes are few and fixed; a graph for any shape would be a slower one.
            self._text = torch.compile(text_block, dynamic=False)
            self._vision = torch.compile(vision_block, dynamic=False)
            self._loss = torch.compile(loss_of, dynamic=False)
        self._layers = [[weights[f"{TEXT}layers.{at}.{n}"] for n in LAYER_NAMES] for at in range(LAYERS)]
        self._blocks = [
            [weights[f"{VISUAL}blocks.{at}.{n}"] for n in BLOCK_NAMES] for at in range(VISION_LAYERS)
        ]

    # -- positions

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [rows, 1, length, HEAD] of positions [3, rows, length], the axes interleaved."""
        steps = torch.arange(0, HEAD, 2, device=self.device).float() / HEAD
        angles = positions[..., None].float() * THETA**-steps
        mixed = angles[0].clone()
        for axis in (1, 2):
            mixed[..., axis : 3 * SECTIONS[axis] : 3] = angles[axis][..., axis : 3 * SECTIONS[axis] : 3]
        mixed = torch.cat((mixed, mixed), -1)[:, None]
        return mixed.cos().to(self.dtype), mixed.sin().to(self.dtype)

    def causal(self, dialogue: Tensor) -> Tensor:
        """What is added to scores [rows, 1, length, length]: 0 within a dialogue and backwards, else -inf."""
        length = dialogue.shape[1]
        order = torch.arange(length, device=self.device)
        seen = (dialogue[:, :, None] == dialogue[:, None, :]) & (order[:, None] >= order)
        return self.bias(seen)[:, None]

    def bias(self, seen: Tensor) -> Tensor:
        """0 where `seen`, -inf elsewhere, in the dtype of the activations."""
        return torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill_(
            ~seen, float("-inf")
        )

    # -- pictures

    def _places(self, grids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row and column of every patch in the order of the model [pictures, MOST_PATCHES], and which are real."""
        at = torch.arange(MOST_PATCHES, device=self.device)[None]
        rows, columns = grids[:, :1].clamp(min=MERGE), grids[:, 1:].clamp(min=MERGE)
        block, within = at // MERGE**2, at % MERGE**2
        across = columns // MERGE
        row = block // across * MERGE + within // MERGE
        column = block % across * MERGE + within % MERGE
        return row.minimum(rows - 1), column, at < (grids[:, :1] * grids[:, 1:])

    def _learned_places(self, grids: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The learned positions, stretched over each picture's grid."""
        table = self.weights[VISUAL + "pos_embed.weight"]
        rows, columns = grids[:, :1].clamp(min=MERGE), grids[:, 1:].clamp(min=MERGE)
        down, right = row * (SIDE - 1) / (rows - 1), column * (SIDE - 1) / (columns - 1)
        top, left = down.floor(), right.floor()
        total: Tensor | None = None
        for y, wy in ((top, 1 - (down - top)), (top + 1, down - top)):
            for x, wx in ((left, 1 - (right - left)), (left + 1, right - left)):
                index = (y.clamp(max=SIDE - 1) * SIDE + x.clamp(max=SIDE - 1)).long()
                part = F.embedding(index, table) * (wy * wx)[..., None]
                total = part if total is None else total + part
        assert total is not None
        return total

    def look(self, patches: Tensor, grids: Tensor) -> list[Tensor]:
        """Merged tokens [pictures * MOST_PATCHES / 4, HIDDEN]: those of the input, then those of deepstack."""
        weights, count = self.weights, patches.shape[0]
        row, column, real = self._places(grids)
        kernel = weights[VISUAL + "patch_embed.proj.weight"]
        # Both frames of the kernel see the same still picture.
        flat = kernel.sum(2).flatten(1)
        pixels = patches.to(self.dtype) * (2 / 255) - 1
        x = _linear(pixels, flat, weights[VISUAL + "patch_embed.proj.bias"])
        x = x + self._learned_places(grids, row, column).to(self.dtype)
        half = VISION_HIDDEN // VISION_HEADS // 2
        steps = torch.arange(0, half, 2, device=self.device).float() / half
        pace = VISION_THETA**-steps
        angles = torch.cat((row[..., None].float() * pace, column[..., None].float() * pace), -1)
        angles = torch.cat((angles, angles), -1)[:, None]
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        # An unused picture sees its first patch, so that no row of scores is all -inf.
        real = real | (torch.arange(MOST_PATCHES, device=self.device) == 0)
        mask = self.bias(real)[:, None, None, :].expand(count, 1, MOST_PATCHES, MOST_PATCHES).contiguous()
        found = []
        for at, ws in enumerate(self._blocks):
            x = self._vision(x, ws, cos, sin, mask)
            if at in DEEPSTACK:
                found.append(
                    self._merge(x, f"{VISUAL}deepstack_merger_list.{DEEPSTACK.index(at)}.", after=True)
                )
        return [self._merge(x, VISUAL + "merger.", after=False), *found]

    def _merge(self, x: Tensor, front: str, after: bool) -> Tensor:
        nw, nb, in_w, in_b, out_w, out_b = (self.weights[front + n] for n in MERGER_NAMES)
        if not after:
            x = _layer_norm(x, nw, nb)
        x = x.reshape(-1, VISION_HIDDEN * MERGE**2)
        if after:
            x = _layer_norm(x, nw, nb)
        return _linear(F.gelu(_linear(x, in_w, in_b)), out_w, out_b)

    # -- text

    def embed(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The input of the first layer, and what is added after the first ones."""
        x = self._embedded(batch.ids)
        if batch.patches.shape[0] == 0:
            return x, []
        merged, *deep = self.look(batch.patches, batch.grids)
        rows, length = batch.ids.shape

        def placed(ground: Tensor, what: Tensor) -> Tensor:
            # One row more, for the tokens that go nowhere. The way back is a gather, which adds nothing up.
            flat = F.pad(ground.flatten(0, 1), (0, 0, 0, 1)).index_copy(0, batch.places, what)
            return flat[:-1].view(rows, length, HIDDEN)

        ground = torch.zeros_like(x)
        return placed(x, merged), [placed(ground, each) for each in deep]

    def _embedded(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weights[TEXT + "embed_tokens.weight"]).to(self.dtype)

    def hidden(self, batch: Batch) -> Tensor:
        """The output of the last layer, before its norm."""
        x, deep = self.embed(batch)
        cos, sin = self.rotary(batch.positions)
        mask = self.causal(batch.dialogue)
        for at, ws in enumerate(self._layers):
            x, _, _ = self._text(x, ws, cos, sin, mask)
            if at < len(deep):
                x = x + deep[at]
        return x

    def loss(self, batch: Batch, targets: Tensor) -> Tensor:
        """Sum over the targets."""
        norm, embedding = self.weights[TEXT + "norm.weight"], self.weights[TEXT + "embed_tokens.weight"]
        found: Tensor = self._loss(self.hidden(batch), norm, embedding, targets)
        return found

    def logits(self, x: Tensor) -> Tensor:
        return _linear(
            _rms_norm(x, self.weights[TEXT + "norm.weight"]), self.weights[TEXT + "embed_tokens.weight"]
        ).float()

    def prefill(self, batch: Batch) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The output of the last layer, and the keys and values of all."""
        x, deep = self.embed(batch)
        cos, sin = self.rotary(batch.positions)
        mask = self.causal(batch.dialogue)
        kept = []
        for at, ws in enumerate(self._layers):
            x, k, v = text_block(x, ws, cos, sin, mask)
            kept.append((k, v))
            if at < len(deep):
                x = x + deep[at]
        return x, kept

    def step(self, ids: Tensor, positions: Tensor, seen: Tensor, kept: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The outputs of one more token a row; `kept` grows by it. seen: which kept tokens, and itself, a row sees."""
        x = self._embedded(ids[:, None])
        cos, sin = self.rotary(positions[None, :, None].expand(3, -1, -1))
        mask = self.bias(seen)[:, None, None, :]
        for at, ws in enumerate(self._layers):
            x, k, v = text_block(x, ws, cos, sin, mask, kept[at])
            kept[at] = (k, v)
        return x[:, 0]
