"""LLaVA-OneVision: LLaVA whose pictures are seen whole and, tile by tile, in their own resolution."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.runtime.backends.base import Ops
from headrace.runtime.image_shape import Tiling
from headrace.runtime.models.config import SIZE_LIMIT, Fields, ModelConfig
from headrace.runtime.models.layers import WeightSource
from headrace.runtime.models.llava import RENAMES as LLAVA_RENAMES
from headrace.runtime.models.llava import Projector, read_decoder_of, read_eyes
from headrace.runtime.models.seeing import Seeing
from headrace.runtime.models.vision_config import PlainVision
from headrace.runtime.models.vision_plain import PlainTower

NAME = "LlavaOnevisionForConditionalGeneration"
RENAMES = (*LLAVA_RENAMES, ("image_newline", "model.image_newline"))
ASPECT = re.compile(r"anyres_max_([1-9]\d?)\Z")
SIDES = (384, 768, 1152, 1536, 1920, 2304)  # of canvases, where the file does not say


def read(fields: Fields) -> ModelConfig:
    """LLaVA-OneVision of half a billion and seven billion parameters and models of their shape."""
    for name in ("video_token_index", "video_token_id", "use_image_newline_parameter", "ignore_index"):
        fields.get(name)
    config = read_decoder_of(fields, NAME)
    token_id = fields.integer("image_token_index", fields.integer("image_token_id", 151646, low=0), low=0)
    vision, unread = read_eyes(fields, token_id, config, feature_layer=-1, strategy="full")
    said = fields.get("vision_aspect_ratio")
    aspect = ASPECT.match(said if isinstance(said, str) else "anyres_max_9")
    if aspect is None or vision.leading:
        raise fields.refuse("vision_aspect_ratio", f"{str(said)[:60]!r} with this tower is not supported")
    vision = replace(vision, canvases=_canvases(fields, vision.side), most_tiles=int(aspect[1]))
    return replace(config, vision=vision, unread=tuple(sorted({*config.unread, *fields.unread(), *unread})))


def _canvases(fields: Fields, side: int) -> tuple[tuple[int, int], ...]:
    found = fields.get("image_grid_pinpoints")
    if found is None:
        found = [[high, wide] for high in SIDES for wide in SIDES]
    good = isinstance(found, list) and all(
        isinstance(each, list | tuple)
        and len(each) == 2
        and all(type(length) is int and 0 < length <= SIZE_LIMIT and length % side == 0 for length in each)
        for each in found
    )
    if not good or not found:
        raise fields.refuse("image_grid_pinpoints", f"must hold pairs of multiples of image_size {side}")
    return tuple((high, wide) for high, wide in found)


class TiledTower(PlainTower):
    """Rows of the whole picture, then those of all tiles put together, line by line, each line closed by a learned
    row."""

    def __init__(self, config: PlainVision, source: WeightSource, dtype: torch.dtype) -> None:
        super().__init__(config, source, dtype, Projector(config, source))
        self.newline = source.tensor([("model.image_newline", (config.out,))])

    def put_together(self, rows: Tensor, tiling: Tiling | None) -> Tensor:
        if tiling is None:
            return torch.cat((rows, self.newline[None]))
        side, out = self.config.patches, rows.shape[1]
        whole, tiles = rows[: side * side], rows[side * side :]
        picture = tiles.view(tiling.high, tiling.wide, side, side, out).permute(4, 0, 2, 1, 3)
        picture = picture.reshape(out, tiling.high * side, tiling.wide * side)
        high, wide = picture.shape[1], picture.shape[2]
        picture = picture[:, tiling.top : high - tiling.top, tiling.left : wide - tiling.left]
        if picture.shape[1:] != (tiling.lines, tiling.columns):
            picture = F.interpolate(picture[None], (tiling.lines, tiling.columns), mode="bilinear")[0]
        closed = torch.cat((picture, self.newline[:, None, None].expand(out, tiling.lines, 1)), 2)
        return torch.cat((whole, closed.flatten(1).t()))


class LlavaOnevision(Seeing):
    """The decoder, and its tower."""

    def __init__(self, config: ModelConfig, source: WeightSource, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__(config, source, ops, dtype)
        assert isinstance(config.vision, PlainVision)
        self.tower = TiledTower(config.vision, source, dtype)
