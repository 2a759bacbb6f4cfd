"""The vision tower of Qwen3-VL: pixels of one picture to rows that a decoder reads. Knows no prompt and no slab."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.runtime.image_shape import Tiling
from headrace.runtime.models.layers import WeightSource, fused_linear
from headrace.runtime.models.patches import cut, grid, rotation, turned, turns
from headrace.runtime.models.seeing import Tower
from headrace.runtime.models.vision_config import QwenVision

NORM_EPS = 1e-6


class LayerNorm:
    """(x - mean) over its deviation, times a weight, plus a bias."""

    def __init__(self, source: WeightSource, name: str, size: int, eps: float = NORM_EPS) -> None:
        self.weight = source.tensor([(f"{name}.weight", (size,))])
        self.bias = source.tensor([(f"{name}.bias", (size,))])
        self.size = size
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)


class Merger:
    """merge x merge neighbours become one row of the decoder's width. `late`: the norm sees the joined row."""

    def __init__(self, source: WeightSource, name: str, config: QwenVision, late: bool) -> None:
        self.joined = config.hidden * config.merge**2
        self.norm = LayerNorm(source, f"{name}.norm", self.joined if late else config.hidden)
        self.late = late
        self.first = fused_linear(source, [(f"{name}.linear_fc1", self.joined)], self.joined, bias=True)
        self.second = fused_linear(source, [(f"{name}.linear_fc2", config.out)], self.joined, bias=True)

    def __call__(self, x: Tensor) -> Tensor:
        joined = self.norm(x.view(-1, self.joined)) if self.late else self.norm(x).view(-1, self.joined)
        return self.second(F.gelu(self.first(joined)))


class Block:
    """Attention among all patches of the picture, then an MLP; each after a norm and added to what came in."""

    def __init__(self, source: WeightSource, name: str, config: QwenVision) -> None:
        size = config.hidden
        self.heads = config.heads
        self.before_attention = LayerNorm(source, f"{name}.norm1", size)
        self.qkv = fused_linear(source, [(f"{name}.attn.qkv", 3 * size)], size, bias=True)
        self.out = fused_linear(source, [(f"{name}.attn.proj", size)], size, bias=True)
        self.before_mlp = LayerNorm(source, f"{name}.norm2", size)
        self.first = fused_linear(source, [(f"{name}.mlp.linear_fc1", config.intermediate)], size, bias=True)
        self.second = fused_linear(source, [(f"{name}.mlp.linear_fc2", size)], config.intermediate, bias=True)
        self.act = "tanh" if config.tanh else "none"

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        count, size = x.shape
        qkv = self.qkv(self.before_attention(x)).view(count, 3, self.heads, -1).permute(1, 2, 0, 3)
        query, key = turned(qkv[0], cos, sin), turned(qkv[1], cos, sin)
        read = F.scaled_dot_product_attention(query[None], key[None], qkv[2][None])[0]
        x = self.out(read.transpose(0, 1).reshape(count, size), x)
        return self.second(F.gelu(self.first(self.before_mlp(x)), approximate=self.act), x)


class QwenTower(Tower):
    """Sides of its pictures are whole multiples of patch x merge; rows stand line by line. A block is a stage."""

    def __init__(self, config: QwenVision, source: WeightSource, dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = dtype
        self.stages = config.depth
        name = "model.visual"
        shape = (config.hidden, config.channels, config.temporal, config.patch, config.patch)
        self.embed = source.linear(
            [(f"{name}.patch_embed.proj.weight", shape)],
            [(f"{name}.patch_embed.proj.bias", (config.hidden,))],
        )
        self.positions = source.tensor([(f"{name}.pos_embed.weight", (config.grid**2, config.hidden))])
        self.blocks = [Block(source, f"{name}.blocks.{i}", config) for i in range(config.depth)]
        self.merger = Merger(source, f"{name}.merger", config, late=False)
        self.deep = {
            block: Merger(source, f"{name}.deepstack_merger_list.{i}", config, late=True)
            for i, block in enumerate(config.deepstack)
        }
        # Once, on the device: a copy in every call would wait for the steps ahead.
        self.frequencies = turns(config.head_dim, config.rope_theta, self.positions.device)

    def encode(self, pixels: Tensor, tiling: Tiling | None = None) -> Iterator[Tensor | None]:
        config = self.config
        high, wide = pixels.shape[1] // config.patch, pixels.shape[2] // config.patch
        row, column = grid(high, wide, config.merge, pixels.device)
        x = self.embed(cut(pixels, config.patch, config.merge, config.temporal).to(self.dtype))
        x = x + self._learned(row, column, high, wide).to(x.dtype)
        cos, sin = rotation(row, column, self.frequencies)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x = block(x, cos, sin)
            if number in self.deep:
                found[number] = self.deep[number](x)
            if number + 1 < self.stages:
                yield None
        yield torch.stack([self.merger(x), *(found[number] for number in config.deepstack)], 1)

    def _learned(self, row: Tensor, column: Tensor, high: int, wide: int) -> Tensor:
        """The square of learned positions stretched over the picture, its corners on the picture's corners."""
        side = self.config.grid

        def between(index: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
            place = index.float() * (side - 1) / max(size - 1, 1)
            low = place.floor()
            share = place - low
            return low.long(), (low.long() + 1).clamp(max=side - 1), share

        top, bottom, down = between(row, high)
        left, right, along = between(column, wide)
        found = torch.zeros(len(row), self.config.hidden, dtype=torch.float32, device=row.device)
        for line, weight in ((top, 1 - down), (bottom, down)):
            for place, part in ((left, 1 - along), (right, along)):
                found += self.positions[line * side + place] * (weight * part)[:, None]
        return found
