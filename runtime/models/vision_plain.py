"""The towers of SigLIP and CLIP: patches of a square, all of which see each other. Knows no prompt and no slab."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.runtime.image_shape import Tiling
from headrace.runtime.models.layers import WeightSource, fused_linear
from headrace.runtime.models.patches import cut
from headrace.runtime.models.seeing import Tower
from headrace.runtime.models.vision_config import PlainVision
from headrace.runtime.models.vision_files import TOWER as NAME
from headrace.runtime.models.vision_qwen import LayerNorm


def _quick(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTS: dict[str, Callable[[Tensor], Tensor]] = {"exact": F.gelu, "tanh": _tanh, "quick": _quick}


class PlainBlock:
    """Attention among all patches, then an MLP; each after a norm and added to what came in."""

    def __init__(self, source: WeightSource, name: str, config: PlainVision) -> None:
        size, inner = config.hidden, config.intermediate
        self.heads = config.heads
        self.before_attention = LayerNorm(source, f"{name}.layer_norm1", size, config.eps)
        parts = [(f"{name}.self_attn.{part}_proj", size) for part in "qkv"]
        self.qkv = fused_linear(source, parts, size, bias=True)
        self.out = fused_linear(source, [(f"{name}.self_attn.out_proj", size)], size, bias=True)
        self.before_mlp = LayerNorm(source, f"{name}.layer_norm2", size, config.eps)
        self.first = fused_linear(source, [(f"{name}.mlp.fc1", inner)], size, bias=True)
        self.second = fused_linear(source, [(f"{name}.mlp.fc2", size)], inner, bias=True)
        self.act = ACTS[config.act]

    def __call__(self, x: Tensor, tiles: int) -> Tensor:
        """x: the patches of all tiles, one tile after the other."""
        count, size = x.shape
        qkv = self.qkv(self.before_attention(x)).view(tiles, count // tiles, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(query, key, value)
        x = self.out(read.transpose(1, 2).reshape(count, size), x)
        return self.second(self.act(self.first(self.before_mlp(x))), x)


class PlainTower(Tower):
    """Rows stand line by line. A block is a stage. project: what the decoder gets of the patches [patches, hidden],
    which stand line by line too."""

    def __init__(
        self,
        config: PlainVision,
        source: WeightSource,
        dtype: torch.dtype,
        project: Callable[[Tensor], Tensor],
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.stages = config.depth
        self.project = project
        size, eps = config.hidden, config.eps
        shape = (size, config.channels, config.patch, config.patch)
        embed = f"{NAME}.embeddings.patch_embedding"
        self.embed = source.linear(
            [(f"{embed}.weight", shape)], None if config.leading else [(f"{embed}.bias", (size,))]
        )
        count = config.patches**2 + config.leading
        self.positions = source.tensor([(f"{NAME}.embeddings.position_embedding.weight", (count, size))])
        self.leading = self.opening = self.closing = None
        if config.leading:
            self.leading = source.tensor([(f"{NAME}.embeddings.class_embedding", (size,))])
            self.opening = LayerNorm(source, f"{NAME}.pre_layrnorm", size, eps)  # so it is spelled
        self.blocks = [PlainBlock(source, f"{NAME}.encoder.layers.{i}", config) for i in range(config.depth)]
        if config.closing:
            self.closing = LayerNorm(source, f"{NAME}.post_layernorm", size, eps)

    def encode(self, pixels: Tensor, tiling: Tiling | None = None) -> Iterator[Tensor | None]:
        tiles = pixels.shape[1] // pixels.shape[2]
        x = self.embed(cut(pixels, self.config.patch, 1, 1).to(self.dtype))
        if self.leading is not None and self.opening is not None:
            x = self.opening(torch.cat((self.leading[None], x)) + self.positions)
        else:
            x = x + (self.positions if tiles == 1 else self.positions.repeat(tiles, 1))
        for number, block in enumerate(self.blocks, 1):
            x = block(x, tiles)
            if number < self.stages:
                yield None
        if self.closing is not None:
            x = self.closing(x)
        yield self.put_together(self.project(x if self.leading is None else x[1:]), tiling)[:, None]

    def put_together(self, rows: Tensor, tiling: Tiling | None) -> Tensor:
        """[rows, out] of the whole picture, of those of its tiles."""
        assert tiling is None, "a picture of one square"
        return rows


def mean_of_squares(x: Tensor, side: int, rows: int) -> Tensor:
    """x [side x side, size], line by line -> [rows x rows, size], the mean of each square of them."""
    square = side // rows
    return x.view(rows, square, rows, square, -1).mean((1, 3)).flatten(0, 1)
