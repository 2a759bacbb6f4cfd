"""The vision tower of Qwen2.5-VL: most blocks attend within windows of the picture, a few across all of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.runtime.image_shape import Tiling
from headrace.runtime.models.layers import WeightSource, fused_linear
from headrace.runtime.models.patches import cut, grid, rotation, turned, turns
from headrace.runtime.models.seeing import Tower
from headrace.runtime.models.vision_config import QwenWindowVision

NORM_EPS = 1e-6


class WindowBlock:
    """Attention and a gated MLP, each after a norm and added to what came in."""

    def __init__(self, source: WeightSource, name: str, config: QwenWindowVision) -> None:
        size = config.hidden
        self.size = (size,)
        self.heads = config.heads
        self.before_attention = source.tensor([(f"{name}.norm1.weight", self.size)])
        self.qkv = fused_linear(source, [(f"{name}.attn.qkv", 3 * size)], size, bias=True)
        self.out = fused_linear(source, [(f"{name}.attn.proj", size)], size, bias=True)
        self.before_mlp = source.tensor([(f"{name}.norm2.weight", self.size)])
        self.gate = fused_linear(source, [(f"{name}.mlp.gate_proj", config.intermediate)], size, bias=True)
        self.up = fused_linear(source, [(f"{name}.mlp.up_proj", config.intermediate)], size, bias=True)
        self.down = fused_linear(source, [(f"{name}.mlp.down_proj", size)], config.intermediate, bias=True)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, windows: list[Tensor]) -> Tensor:
        """windows: for each length of a window, the patches of all windows of that length, [count, length]."""
        qkv = self.qkv(F.rms_norm(x, self.size, self.before_attention, NORM_EPS))
        query, key, value = qkv.view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        query, key = turned(query, cos, sin), turned(key, cos, sin)
        read = torch.empty_like(x)
        for index in windows:
            q, k, v = (side[:, index].transpose(0, 1) for side in (query, key, value))
            found = F.scaled_dot_product_attention(q, k, v)
            read[index.flatten()] = found.transpose(1, 2).reshape(index.numel(), -1)
        x = self.out(read, x)
        wide = F.rms_norm(x, self.size, self.before_mlp, NORM_EPS)
        return self.down(F.silu(self.gate(wide)) * self.up(wide), x)


class QwenWindowTower(Tower):
    """Rows stand line by line. A block is a stage."""

    def __init__(self, config: QwenWindowVision, source: WeightSource, dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = dtype
        self.stages = config.depth
        name = "model.visual"
        shape = (config.hidden, config.channels, config.temporal, config.patch, config.patch)
        self.embed = source.linear([(f"{name}.patch_embed.proj.weight", shape)], None)
        self.blocks = [WindowBlock(source, f"{name}.blocks.{i}", config) for i in range(config.depth)]
        self.joined = config.hidden * config.merge**2
        self.norm = source.tensor([(f"{name}.merger.ln_q.weight", (config.hidden,))])
        self.first = fused_linear(source, [(f"{name}.merger.mlp.0", self.joined)], self.joined, bias=True)
        self.second = fused_linear(source, [(f"{name}.merger.mlp.2", config.out)], self.joined, bias=True)
        self.frequencies = turns(config.head_dim, config.rope_theta, self.norm.device)

    def encode(self, pixels: Tensor, tiling: Tiling | None = None) -> Iterator[Tensor | None]:
        config = self.config
        high, wide = pixels.shape[1] // config.patch, pixels.shape[2] // config.patch
        x = self.embed(cut(pixels, config.patch, config.merge, config.temporal).to(self.dtype))
        cos, sin = rotation(*grid(high, wide, config.merge, pixels.device), self.frequencies)
        whole = [torch.arange(len(x), device=pixels.device)[None]]
        windows = self._windows(high // config.merge, wide // config.merge, pixels.device)
        for number, block in enumerate(self.blocks):
            x = block(x, cos, sin, whole if number in config.full else windows)
            if number + 1 < self.stages:
                yield None
        x = F.rms_norm(x, (config.hidden,), self.norm, NORM_EPS).view(-1, self.joined)
        yield self.second(F.gelu(self.first(x)))[:, None]

    def _windows(self, lines: int, columns: int, device: torch.device) -> list[Tensor]:
        """The patches of each window, windows of one size together; those at two edges may be smaller."""
        side, unit = self.config.window, self.config.merge**2
        found: dict[int, list[Tensor]] = {}
        squares = torch.arange(lines * columns).view(lines, columns)
        for top in range(0, lines, side):
            for left in range(0, columns, side):
                inside = squares[top : top + side, left : left + side].flatten()
                patches = (inside[:, None] * unit + torch.arange(unit)).flatten()
                found.setdefault(len(patches), []).append(patches)
        return [torch.stack(same).to(device, non_blocking=True) for same in found.values()]
